"""A linear layer, to be filled from a state dict."""

import torch
from torch import nn


class TwoSums(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.layer(rows)
