"""One text under way: what a request asked for, and the words that follow."""

from __future__ import annotations

from typing import Any

import torch
from model import ALPHABET

MOST_WORDS, MOST_CHARACTERS, LONGEST_WORD = 400, 2000, 40
NUMBERS = {character: number for number, character in enumerate(ALPHABET)}


class Author:
    """Its dice are its own, so that a seed gives the same text whatever else is in the batch."""

    def __init__(self, model: Any, device: Any, asked: Any) -> None:
        """Raises ValueError with what is wrong about a request."""
        if not isinstance(asked, dict):
            raise ValueError("the body must be a JSON object, sent as application/json")
        prompt = asked.get("prompt", "The ")
        if not isinstance(prompt, str) or not 0 < len(prompt) <= MOST_CHARACTERS:
            raise ValueError(f"prompt must be a text of 1 to {MOST_CHARACTERS} characters")
        self.left = whole_number(asked, "words", 40, 1, MOST_WORDS)
        self.temperature = number(asked, "temperature", 0.5, 0, 5)
        self.dice = torch.Generator().manual_seed(whole_number(asked, "seed", 0, 0, 2**31))
        self.model, self.device = model, device
        self.memory: torch.Tensor | None = None
        self.next = self.read([NUMBERS[character] for character in prompt if character in NUMBERS] or [0])

    def read(self, characters: list[int]) -> int:
        """Take in characters; the next one."""
        scores, self.memory = self.model(torch.tensor([characters], device=self.device), self.memory)
        last = scores[0, -1].cpu()  # where the dice are
        if self.temperature == 0:
            return int(last.argmax())
        return int(torch.multinomial(torch.softmax(last / self.temperature, 0), 1, generator=self.dice))

    def word(self) -> str:
        """The next characters up to where a word ends; empty when all has been written."""
        if self.left == 0:
            return ""
        self.left -= 1
        written = ""
        while len(written) < LONGEST_WORD and not (written.strip() and written[-1].isspace()):
            written += ALPHABET[self.next]
            self.next = self.read([self.next])
        return written


def whole_number(asked: dict[str, Any], name: str, default: int, least: int, most: int) -> int:
    value = asked.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, not {value!r}")
    return value


def number(asked: dict[str, Any], name: str, default: float, least: float, most: float) -> float:
    value = asked.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(f"{name} must be a number from {least} to {most}, not {value!r}")
    return value
