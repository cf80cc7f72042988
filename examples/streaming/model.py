"""A small recurrent network that writes text, character by character."""

from __future__ import annotations

import torch
from torch import nn

ALPHABET = "\n" + "".join(chr(code) for code in range(32, 127))


class Writer(nn.Module):
    """Characters as numbers, and what it remembers of those before them, to scores of the next one."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(ALPHABET), 64)
        self.read = nn.GRU(64, width, batch_first=True)
        self.choose = nn.Linear(width, len(ALPHABET))

    def forward(
        self, characters: torch.Tensor, memory: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`characters`: [batch, length]; scores: [batch, length, alphabet]; memory: [1, batch, width]."""
        told, memory = self.read(self.embed(characters), memory)
        return self.choose(told), memory
