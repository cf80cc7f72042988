"""The key file, as upstream has it: three keys made anew at each start, renewed with the third of them.

Source: spec/server.md section 6; the keys are longer, and a file of ours is never readable for others.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import trio

from tserve.domain.access import Scope
from tserve.domain.times import shown_time
from tserve.errors import BadConfiguration, InternalServer
from tserve.services.authorization import Authorization, Key, Keys

KEY_BYTES: Final = 24
_NAMES: Final = {Scope.MANAGEMENT: "management", Scope.INFERENCE: "inference", Scope.TOKEN: "API"}


def new_keys(life_s: float) -> Keys:
    return {scope: new_key(None if scope is Scope.TOKEN else life_s) for scope in _NAMES}


def new_key(life_s: float | None) -> Key:
    return Key(secrets.token_urlsafe(KEY_BYTES), None if life_s is None else time.time() + life_s)


class KeyFile:
    """Where the keys of a running server stand, for those who may read it."""

    def __init__(self, path: Path, authorization: Authorization, life_s: float) -> None:
        self._path = path
        self._authorization = authorization
        self._life_s = life_s
        self._turn = trio.Lock()
        self._disk = trio.CapacityLimiter(1)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """There from now on, and gone at the end: keys of a server that is no more open nothing.

        Raises BadConfiguration.
        """
        try:
            write_private(self._path, shown(self._keys))
        except OSError as error:
            raise BadConfiguration(f"key_file={self._path}: cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            with suppress(OSError):
                if self._path.read_text() == shown(self._keys):  # not that of a server started since
                    self._path.unlink()

    async def renew(self, scope: Scope) -> None:
        """A new key in the file, and then in force, cancelled or not; the old one is worth nothing from then on.

        Raises InternalServer when it cannot be written; the old one stays good then.
        """
        async with self._turn:
            keys = {**self._keys, scope: new_key(self._life_s)}
            try:
                await trio.to_thread.run_sync(write_private, self._path, shown(keys), limiter=self._disk)
            except OSError as error:
                cause = {"reason": "key_file", "detail": error.strerror}
                raise InternalServer("The key file could not be written.", cause=cause) from error
            self._authorization.keys = keys

    @property
    def _keys(self) -> Keys:
        assert self._authorization.keys is not None
        return self._authorization.keys


def shown(keys: Keys) -> str:
    members = {
        name: {"key": keys[scope].text, **_expiry(keys[scope])} for scope, name in _NAMES.items() if scope in keys
    }
    return json.dumps(members, indent=2) + "\n"


def _expiry(key: Key) -> dict[str, str]:
    if key.expires_at is None:
        return {}
    return {"expiration time": shown_time(key.expires_at)}


def write_private(path: Path, text: str) -> None:
    """Put a file in the place of another: whole or not at all, and readable for its owner only from its first byte.

    Raises OSError.
    """
    made = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(made, flags, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(made, path)
    except BaseException:
        made.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
