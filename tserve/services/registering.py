"""Registrations that are not done yet, for those who wonder: above all how far their downloads are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tserve.archive.downloads import UnderWay
from tserve.archive.fetch.rules import without_query
from tserve.domain.times import shown_time


@dataclass(frozen=True, slots=True, eq=False)
class _Registration:
    url: str
    model_name: str | None
    since: float


class Registrations:
    """`downloads` says what is being fetched now."""

    def __init__(self, downloads: Callable[[], Sequence[UnderWay]]) -> None:
        self._downloads = downloads
        self._under_way: list[_Registration] = []

    @contextmanager
    def under_way(self, url: str, model_name: str | None) -> Iterator[None]:
        """Count the block as a registration."""
        one = _Registration(url, model_name, time.time())
        self._under_way.append(one)
        try:
            yield
        finally:
            self._under_way.remove(one)

    def shown(self, model_name: str | None = None) -> list[dict[str, object]]:
        """All of them, or those that name this model, oldest first.  Queries are left out: they may hold keys."""
        downloads = {each.url: each for each in self._downloads()}
        return [
            _shown(one, downloads.get(one.url))
            for one in self._under_way
            if model_name is None or one.model_name == model_name
        ]


def _shown(one: _Registration, download: UnderWay | None) -> dict[str, object]:
    shown: dict[str, object] = {
        "url": without_query(one.url),
        **({} if one.model_name is None else {"modelName": one.model_name}),
        "since": shown_time(one.since),
        "phase": "checking" if download is None else "downloading",
    }
    if download is None:
        return shown
    progress = download.progress
    expected = {} if progress.expected is None else {"expectedBytes": progress.expected}
    said = {"receivedBytes": progress.received, **expected, "tries": progress.tries, "waiting": download.users}
    return shown | {"download": said}
