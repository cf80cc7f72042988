"""A streamer for `generate` of the package transformers that keeps the rows of a batch apart."""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

_WITHOUT_SPACES = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))  # CJK ideographs


class TextIteratorStreamerBatch:
    """Give it to `generate` in one thread and iterate over it in another: each item has one text per row.

    Only words that are complete come out, so that no text has to be taken back.  An iteration ends where `generate`
    does; the next one belongs to the next `generate`.  Of the tokenizer only `decode` is used.
    """

    def __init__(
        self,
        tokenizer: Any,
        batch_size: int,
        skip_prompt: bool = False,
        timeout: float | None = None,
        **decode_kwargs: Any,
    ) -> None:
        """`timeout`: seconds to wait for the next item, after which iterating raises `queue.Empty`."""
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.skip_prompt = skip_prompt
        self.timeout = timeout
        self.decode_kwargs = decode_kwargs
        self._ready: SimpleQueue[list[str] | None] = SimpleQueue()
        self._rows: list[_Row] = []
        self._is_prompt = True
        self._begin()

    def put(self, value: Any) -> None:
        """Take the next token of each row; the first call brings the prompts.  Raises ValueError for other rows."""
        if len(value) != self.batch_size:
            raise ValueError(f"The streamer was made for a batch of {self.batch_size}, not of {len(value)}.")
        if self._is_prompt and self.skip_prompt:
            self._is_prompt = False
            return
        self._is_prompt = False
        self._hand_out([row.take(tokens) for row, tokens in zip(self._rows, value, strict=True)])

    def end(self) -> None:
        """Hand out what is left and end the iteration."""
        self._hand_out([row.rest() for row in self._rows])
        self._begin()
        self._ready.put(None)

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        texts = self._ready.get(timeout=self.timeout)
        if texts is None:
            raise StopIteration
        return texts

    def _begin(self) -> None:
        self._rows = [_Row(self) for _ in range(self.batch_size)]
        self._is_prompt = True

    def _hand_out(self, texts: list[str]) -> None:
        if any(texts):
            self._ready.put(texts)


class _Row:
    """The tokens of one row that do not make a whole word yet."""

    def __init__(self, streamer: TextIteratorStreamerBatch) -> None:
        self._streamer = streamer
        self._tokens: list[int] = []
        self._told = 0  # characters of their text that are out

    def take(self, tokens: Any) -> str:
        tokens = tokens.tolist() if hasattr(tokens, "tolist") else tokens
        self._tokens.extend(tokens if isinstance(tokens, list) else [tokens])
        text = self._text()
        if text.endswith("\n"):
            self._tokens, told = [], self._told
            self._told = 0
            return text[told:]
        whole = len(text) if _ends_whole(text) else text.rfind(" ") + 1
        new = text[self._told : whole]
        self._told = max(self._told, whole)
        return new

    def rest(self) -> str:
        return self._text()[self._told :]

    def _text(self) -> str:
        return (
            str(self._streamer.tokenizer.decode(self._tokens, **self._streamer.decode_kwargs)) if self._tokens else ""
        )


def _ends_whole(text: str) -> bool:
    return bool(text) and any(first <= ord(text[-1]) <= last for first, last in _WITHOUT_SPACES)
