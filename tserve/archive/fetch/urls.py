"""URLs that all who read them read alike."""

from __future__ import annotations

import re
from typing import Final

import httpx

from tserve.archive.fetch.rules import TransferFailed

_MOST_URL: Final = 8192
_STRANGE: Final = re.compile(r"[\x00-\x20\x7f\\]|(?:\.|%2e){2}", re.IGNORECASE)


def checked_url(text: str) -> httpx.URL:
    """An http(s) URL that all readers of it read alike.  Raises TransferFailed."""
    try:
        url = httpx.URL(text)
        named = bool(url.host)  # decodes the name, which not every one survives
    except (httpx.InvalidURL, ValueError, UnicodeError) as error:
        raise TransferFailed("bad_url", "the URL cannot be read") from error
    if len(text) > _MOST_URL or _STRANGE.search(text):
        detail = f"a URL has at most {_MOST_URL} characters, no blanks, no backslashes and no parent folders"
        raise TransferFailed("bad_url", detail)
    if url.scheme not in ("http", "https") or not named or url.userinfo:
        raise TransferFailed("bad_url", "the URL needs http or https and a host, without a user name")
    return url


def same_origin(one: httpx.URL, other: httpx.URL) -> bool:
    return (one.scheme, one.raw_host, one.port) == (other.scheme, other.raw_host, other.port)
