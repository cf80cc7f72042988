"""A label of a metric."""

from __future__ import annotations

from typing import Any


class Dimension:
    """One name and its value; as text `name:value`."""

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self.value = value

    def __str__(self) -> str:
        return f"{self.name}:{self.value}"

    def __repr__(self) -> str:
        return f"Dimension({self.name!r}, {self.value!r})"
