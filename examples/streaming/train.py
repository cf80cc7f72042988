"""Trains the writer on the prose that comes with Python itself, its language reference, and writes writer.pt.

Needs torch and nothing else; no network.  Seed and number of epochs are fixed.  The weights are kept in half precision,
the network that reads them is in single precision.
"""

import time
from pathlib import Path
from pydoc_data.topics import topics

import torch
from model import ALPHABET, Writer
from torch import nn

WEIGHTS = Path(__file__).resolve().parent / "writer.pt"
STREAMS, LENGTH, EPOCHS = 32, 64, 24
HELD_OUT = 0.05
NUMBERS = {character: number for number, character in enumerate(ALPHABET)}


def main() -> None:
    began = time.monotonic()
    torch.manual_seed(0)
    torch.set_num_threads(2)
    paragraphs = prose()
    order = torch.randperm(len(paragraphs)).tolist()
    last = int(len(order) * HELD_OUT)
    held_out, known = (numbers_of([paragraphs[i] for i in part]) for part in (order[:last], sorted(order[last:])))
    writer = train(known)
    print(f"trained on {len(known):,} characters in {time.monotonic() - began:.0f} s")
    for what, text in (("trained on", known), ("held out", held_out)):
        print(f"{what}: {loss_of(writer, text):.2f} nats a character")
    torch.save({name: weight.half() for name, weight in writer.state_dict().items()}, WEIGHTS)
    print(f"wrote {WEIGHTS} ({WEIGHTS.stat().st_size:,} bytes)")


def prose() -> list[str]:
    """The paragraphs of the reference that are sentences, each once: no grammar, tables or code."""
    lines = (" ".join(part.split()) for name in sorted(topics) for part in topics[name].split("\n\n"))
    return list(dict.fromkeys(line for line in lines if line[:1].isalpha() and line.endswith((".", ":"))))


def numbers_of(paragraphs: list[str]) -> torch.Tensor:
    """What is not in the alphabet is left out."""
    return torch.tensor([NUMBERS[character] for character in "\n".join(paragraphs) if character in NUMBERS])


def train(text: torch.Tensor) -> Writer:
    """Each stream reads on where it left off, so that the memory is carried over."""
    writer = Writer()
    streams = text[: len(text) // STREAMS * STREAMS].view(STREAMS, -1)
    starts = range(0, streams.shape[1] - LENGTH, LENGTH)
    optimizer = torch.optim.AdamW(writer.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=EPOCHS * len(starts))
    for epoch in range(EPOCHS):
        memory = None
        for start in starts:
            seen = streams[:, start : start + LENGTH + 1]
            scores, memory = writer(seen[:, :-1], memory)
            memory = memory.detach()
            loss = nn.functional.cross_entropy(scores.flatten(0, 1), seen[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(writer.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: {loss.item():.2f} nats a character", flush=True)
    return writer


@torch.inference_mode()
def loss_of(writer: Writer, text: torch.Tensor) -> float:
    """In nats a character, over the text in one go."""
    scores, _ = writer(text[None, :-1])
    return nn.functional.cross_entropy(scores[0], text[1:]).item()


if __name__ == "__main__":
    main()
