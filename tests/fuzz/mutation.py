"""Inputs out of inputs: what a parser meets when bytes are lost, doubled, swapped, or put there on purpose."""

from __future__ import annotations

import random
from collections.abc import Sequence

MOST_BYTES = 20_000
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 62, (1 << 64) - 1)


def mutated(dice: random.Random, corpus: Sequence[bytes], words: Sequence[bytes], *, most: int = MOST_BYTES) -> bytes:
    """One to eight changes of one of the inputs; at most so many bytes."""
    data = bytearray(dice.choice(corpus))
    for _ in range(1 << dice.randrange(4)):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(9):
            case 0 if data:
                data[at % len(data)] ^= 1 << dice.randrange(8)
            case 1 if data:
                data[at % len(data)] = dice.randrange(256)
            case 2:
                del data[at : at + dice.randrange(1, 1 + max(1, len(data) // 8))]
            case 3:
                data[at:at] = data[at : at + dice.randrange(1, 100)]
            case 4:
                data[at:at] = dice.randbytes(dice.randrange(1, 9))
            case 5:
                size, order = dice.choice((1, 2, 4, 8)), dice.choice(("big", "little"))
                number = dice.choice(_NUMBERS) % (1 << 8 * size)
                data[at : at + size] = number.to_bytes(size, "big" if order == "big" else "little")
            case 6:
                other = dice.choice(corpus)
                start = dice.randrange(len(other) + 1)
                data[at:] = other[start : start + MOST_BYTES]
            case 7 if words:
                word = dice.choice(words)
                data[at : at + dice.choice((0, len(word)))] = word
            case _:
                data = data[:at] if dice.randrange(4) == 0 else data + dice.randbytes(2)
    return bytes(data[:most])
