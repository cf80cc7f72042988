"""Named tokens as a running server has them: in memory, and looked after, since another process changes them."""

from __future__ import annotations

import logging
from types import MappingProxyType
from typing import Final

import trio

from tserve.errors import StateUnusable
from tserve.services.authorization import Authorization
from tserve.services.ports import TokenStore

LOOK_AGAIN_S: Final = 0.5
"""`tserve token` says that a change takes effect within a second."""
_log = logging.getLogger("tserve.tokens")


class NamedTokens:
    def __init__(self, store: TokenStore, authorization: Authorization) -> None:
        self._store = store
        self._authorization = authorization
        self._seen = -1

    async def load(self) -> None:
        """Those there are now.  Raises StateUnusable."""
        changes = await self._store.outside_changes()
        if changes != self._seen:
            tokens = await self._store.tokens()
            self._authorization.named = MappingProxyType({token.id: token for token in tokens})
            self._seen = changes

    async def run(self) -> None:
        """Look for changes, for ever.

        While they cannot be read the tokens stay as they are: nor can anybody change them then.
        """
        failing = False
        while True:
            await trio.sleep(LOOK_AGAIN_S)
            try:
                await self.load()
                failing = False
            except StateUnusable as error:
                if not failing:
                    _log.warning("the named tokens stay as they are: %s", error)
                failing = True
