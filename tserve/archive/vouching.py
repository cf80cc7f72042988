"""Whether an archive is the one that was meant: its digest and signature against what is asked of them.

Runs in the intake process, before anything is unpacked, on bytes that nobody else can write to.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from tserve.archive.quota import Quota
from tserve.archive.refusal import NotVouchedFor

_FICLONE = 0x40049409  # ioctl: share the blocks of another file, on file systems that can
_PIECE = 1 << 20


class Demand:
    """What the server asks of an archive, as it travels to the intake process (tserve/archive/integrity.py).

    `digests`: one of these, None for any.  `signature`: lines from the client.  `beside`: files that may hold some.
    """

    def __init__(self, asked: dict[str, Any] | None = None) -> None:
        asked = asked or {}
        self._digests: list[str] | None = asked.get("digests")
        self._signature: str | None = asked.get("signature")
        self._beside = [Path(path) for path in asked.get("beside", ())]
        self._trusted_keys: str | None = asked.get("trusted_keys")
        self._must_be_signed = bool(asked.get("must_be_signed"))
        self._is_private = bool(asked.get("private"))

    @contextmanager
    def private(self, file: BufferedReader, desk: Path, quota: Quota) -> Iterator[BufferedReader]:
        """The file itself where nothing is asked or nobody else can write to it, else a copy without a name.

        Who may write to the model store could else change the file between check and use, and wind its times back.
        Raises Refused for want of space.
        """
        if self._is_private or (self._digests is None and self._trusted_keys is None):
            yield file
            return
        path = desk / "archive"
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "rb") as copy:
            path.unlink()
            quota.check_free(desk, os.fstat(file.fileno()).st_size)
            _copy(file, copy.fileno())
            copy.seek(0)
            yield copy

    def check(self, digest: str) -> str | None:
        """The signature that vouches for a digest, if one does.  Raises NotVouchedFor."""
        if self._digests is not None and digest not in self._digests:
            expected = self._digests[0] if len(self._digests) == 1 else None
            said = f"sha256:{expected} was asked for" if expected else "no entry of models has that"
            raise NotVouchedFor(
                "digest_mismatch", f"the archive is sha256:{digest}, {said}", expected=expected, actual=digest
            )
        if self._trusted_keys is None:
            return None
        return self._signed(digest, self._trusted_keys)

    def _signed(self, digest: str, trusted_keys: str) -> str | None:
        from tserve.archive import signatures  # late: cryptography takes longer to load than most archives

        lines = signatures.lines_of(self._signature) if self._signature else signatures.lines_beside(self._beside)
        if not lines and not self._must_be_signed:
            return None
        try:
            trusted = signatures.read_trusted(Path(trusted_keys))
        except signatures.BadKey as error:
            raise NotVouchedFor("bad_trusted_key", str(error)) from error
        good = signatures.verified(digest, lines, trusted)
        if good is not None or not (self._must_be_signed or self._signature):
            return good
        if not lines:
            raise NotVouchedFor("not_signed", f"nobody signed sha256:{digest}", actual=digest)
        keys = ", ".join(line.split(":")[1] for line in lines)
        raise NotVouchedFor("untrusted_key", f"signed by {keys}, none of which is in trusted_keys", actual=digest)


def _copy(file: BufferedReader, copy: int) -> None:
    with suppress(OSError):
        fcntl.ioctl(copy, _FICLONE, file.fileno())
        return
    while piece := file.read(_PIECE):
        written = 0
        while written < len(piece):
            written += os.write(copy, memoryview(piece)[written:])
