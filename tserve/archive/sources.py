"""From a `url` parameter to the file, the folder or the download it names, or the recorded refusal.

Rules: spec/management.md sections 1.4, 3.1, 3.2 and 12 (rows 10, 11); DESIGN.md section 11.  Looks at the disk, so call
it from a thread.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from tserve.archive.fetch.rules import matches
from tserve.errors import BadConfiguration, DownloadFailed, InvalidModel, ModelNotFound

_log = logging.getLogger("tserve.archive")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_NETWORK = ("http", "https", "s3")
_ZIP_NAMES = (".mar", ".model")
# One sentence for absent and for outside, so that an answer does not tell which files of the host exist.
_NOT_THERE = {
    "reason": "not_in_model_store",
    "detail": "no archive file at the top level of the model store, and no folder inside it, has this name",
}


class Kind(StrEnum):
    """How the content is read: by the file's name, not by its bytes (spec/management.md section 3.1)."""

    ZIP = "zip"
    TAR = "tar"
    FOLDER = "folder"


@dataclass(frozen=True, slots=True)
class Source:
    """`url` as the client gave it; `path` absolute, without symbolic links."""

    url: str
    path: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Remote:
    """A source on another machine; `name` is the file's own, which may be empty."""

    url: str
    name: str

    @property
    def kind(self) -> Kind:
        return _kind(self.name)


def compile_allowed(patterns: Sequence[str]) -> tuple[re.Pattern[str], ...]:
    """The `allowed_urls` expressions.  Raises BadConfiguration for one that cannot be compiled."""
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern, re.IGNORECASE))
        except re.error as error:
            raise BadConfiguration(f"allowed_urls: {pattern!r} is not a regular expression: {error}") from error
    return tuple(compiled)


def resolve(
    url: str, store: Path, allowed: Sequence[re.Pattern[str]], downloads: Path | None = None
) -> Source | Remote:
    """What `url` names, seen from the model store; links into `downloads` count as files of the store.

    Raises ModelNotFound, InvalidModel or DownloadFailed with the recorded sentences.
    """
    shown = _sendable(url)
    if not url:
        raise ModelNotFound("empty url")
    if ".." in url:
        raise ModelNotFound(f"Relative path is not allowed in url: {shown}")
    if shown != url or "\0" in url:
        raise ModelNotFound.at(shown, cause=_NOT_THERE)
    scheme = _SCHEME.match(url)
    roots = _Roots(os.path.realpath(store), None if downloads is None else os.path.realpath(downloads))
    if scheme is None:
        return _in_store(url, roots)
    name = scheme[1].lower()
    if name != "file" and name not in _NETWORK:
        raise ModelNotFound.at(url, cause={"reason": "unknown_scheme", "detail": f"{name} is not a known source"})
    if not matches(url, allowed):
        raise ModelNotFound(f"Given URL {url} does not match any allowed URL(s)")
    if name == "file":
        return _file_url(url, roots)
    return remote(url)


def remote(url: str) -> Remote:
    """A URL of another machine and the name of its file: the last part of the path, as it is written."""
    _, _, rest = url.partition("://")
    path = rest if url.lower().startswith("s3://") else re.split(r"[?#]", rest, maxsplit=1)[0]
    return Remote(url, path.partition("/")[2].rpartition("/")[2])


def startup_sources(store: Path, is_download: Callable[[Path], bool] = lambda _: False) -> list[str]:
    """What `load_models=all` means: the archives and folders at the store's top level by name, without hidden ones.

    Links to downloads are left out: what they stand for is registered already.
    """
    if not store.is_dir():
        return []
    found = []
    for entry in store.iterdir():
        name = entry.name
        named_so = name.endswith((*_ZIP_NAMES, ".tar.gz"))
        if name.startswith(".") or is_download(entry) or not (entry.is_dir() or (named_so and entry.is_file())):
            continue
        if name == _sendable(name):
            found.append(name)
        else:
            _log.warning("left out of load_models=all, since its name is not UTF-8: %a", name)
    return sorted(found)


@dataclass(frozen=True, slots=True)
class _Roots:
    store: str
    downloads: str | None

    def hold(self, real: str) -> bool:
        return any(
            root is not None and real.startswith(root.rstrip("/") + "/") for root in (self.store, self.downloads)
        )


def _in_store(url: str, roots: _Roots) -> Source:
    root = roots.store
    path = os.path.normpath(f"{root}/{url}" if not url.startswith("/") else url)
    real = _real(path)
    if (url.endswith("/") and not url.startswith("/")) or root in (path, real):
        # The recorded server takes the whole store as the model here (section 3.1) and then misses a name.
        detail = "the url stands for the model store itself; name an archive or a folder in it, without a slash behind"
        raise InvalidModel("Model name is not defined.", cause={"reason": "names_the_store", "detail": detail})
    if real is not None and roots.hold(real):
        mode = Path(real).stat().st_mode
        if stat.S_ISDIR(mode):
            return Source(url, real, Kind.FOLDER)
        at_top = _real(str(Path(path).parent)) == root and not url.endswith("/")
        if stat.S_ISREG(mode) and at_top:
            return Source(url, real, _kind(path))
    raise ModelNotFound.at(url, cause=_NOT_THERE)


def _file_url(url: str, roots: _Roots) -> Source:
    """A file URL may name any file inside the store, where the recorded server copies any file of the host."""
    try:
        parts = urlsplit(url)
        path = os.fsdecode(unquote_to_bytes(parts.path))
    except ValueError:
        parts, path = None, ""
    real = _real(path) if parts is not None and parts.netloc.lower() in ("", "localhost") else None
    if real is None or not roots.hold(real) or not Path(real).is_file():
        detail = "a file URL must name a file inside the model store"
        raise DownloadFailed(url, cause={"reason": "not_in_model_store", "detail": detail})
    return Source(url, real, _kind(path))


def _sendable(text: str) -> str:
    """Lone surrogates become question marks: no answer could carry them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _real(path: str) -> str | None:
    """The path without symbolic links; None when nothing is there, or a part of it cannot be looked at."""
    try:
        return os.path.realpath(path, strict=True)
    except (OSError, ValueError):
        return None


def _kind(path: str) -> Kind:
    return Kind.ZIP if path.endswith(_ZIP_NAMES) else Kind.TAR
