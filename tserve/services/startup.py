"""Models named by `load_models`, `--models`: made sure to be there when the server starts.

What the store already holds wins; a model that cannot be registered is logged and left out (DESIGN.md section 11).
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import PurePosixPath

from tserve.archive.fetch.rules import without_query
from tserve.archive.keep import Keep
from tserve.archive.sources import remote
from tserve.domain.actor import START
from tserve.errors import Conflict, InvalidModel, TserveError
from tserve.services.desired import RegisterRequest
from tserve.services.management import Management
from tserve.settings import Settings

_SCHEME = re.compile(r"(?:https?|s3)://", re.IGNORECASE)
_log = logging.getLogger("tserve.services")


async def load_models(management: Management, keep: Keep, settings: Settings) -> None:
    """Register what is named, `all` for everything at the store's top level (spec/server.md section 8)."""
    items = settings.load_models
    if any(item.lower() == "all" for item in items):
        items = tuple(keep.startup_sources())
    for item in items:
        source, _, digest = item.partition("#sha256=")
        name, separator, url = ("", "", source) if _SCHEME.match(source) else source.partition("=")
        ask = RegisterRequest(
            url=url if separator else source, model_name=name if separator else None, sha256=digest or None
        )
        if _SCHEME.match(ask.url or "") and (held := management.registered_from(ask.url or "", ask.model_name)):
            management.startup_names.add(held.name)
            _log.info("%s: registered already, as %s; not fetched again", without_query(item), held)
            continue
        try:
            await _ensure(management, ask)
        except TserveError as e:
            _log.warning("Failed to load model: %s: %s", without_query(item), e.message)


async def _ensure(management: Management, ask: RegisterRequest) -> None:
    try:
        await management.register(ask, actor=START, at_startup=True)
    except Conflict as e:
        management.startup_names.add(e.name)
        _log.info("%s: version %s of model %s is registered already and stays as it is", ask.url, e.version, e.name)
    except InvalidModel:
        if ask.model_name is not None:
            raise
        # An archive without a name takes its file's.
        stem = _file_name(ask.url or "").removesuffix(".tar.gz").removesuffix(".mar").removesuffix(".model")
        await _ensure(management, replace(ask, model_name=re.sub(r"\W", "_", stem)))


def _file_name(url: str) -> str:
    return remote(url).name if _SCHEME.match(url) else PurePosixPath(url).name
