"""Starts the intake process for one archive, waits for it and turns its answer into an Archive or an error."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tserve.archive.one_shot import ask
from tserve.archive.quota import Quota
from tserve.archive.sources import Source
from tserve.domain.model_config import ModelConfig
from tserve.domain.versions import Archive, Manifest
from tserve.errors import IntegrityFailed, InternalServer, InvalidModel, TserveError

_log = logging.getLogger("tserve.archive")


async def take_in(source: Source, desk: Path, *, quota: Quota, demand: Mapping[str, object] | None = None) -> Archive:
    """Have `source` unpacked into `desk`/model.  Whatever the end, `desk` is the caller's to remove.

    `demand` is what Integrity asks of it.  Raises IntegrityFailed, InternalServer ("Failed to save model: …") or
    InvalidModel with the cause.  When cancelled, the process is killed and reaped first.
    """
    request = {"source": source.path, "kind": source.kind, "desk": str(desk), "quota": quota, "demand": demand}
    try:
        output, status = await ask("intake", json.dumps(request).encode())
    except OSError as error:
        raise not_saved(source, "intake_died", f"the intake process cannot be started: {error}") from error
    try:
        if status != 0:
            raise ValueError("no clean end")
        answer = json.loads(output)
        archive = _refusal(source, answer) if "refused" in answer else _archive(answer)
        warnings = answer.get("warnings", [])
    except (ValueError, LookupError, TypeError) as error:
        raise not_saved(source, "intake_died", f"the intake process ended with status {status}") from error
    if isinstance(archive, TserveError):
        raise archive
    for warning in warnings:
        _log.warning("archive %r: %s", source.url, warning)
    return archive


def not_saved(source: Source, reason: str, detail: str) -> InternalServer:
    """The recorded sentence for everything that cannot be unpacked or kept (spec/management.md section 1.4)."""
    return InternalServer(f"Failed to save model: {source.url}", cause={"reason": reason, "detail": detail})


def _refusal(source: Source, answer: dict[str, Any]) -> TserveError:
    if answer["refused"] == "manifest":  # the sentence names another file than the one that is broken: recorded
        cause = {"reason": answer["reason"], "detail": answer["detail"]}
        return InvalidModel("Failed to parse signature.json.", cause=cause)
    if answer["refused"] == "integrity":
        return IntegrityFailed(source.url, cause={name: answer[name] for name in answer if name != "refused"})
    return not_saved(source, answer["reason"], answer["detail"])


def _archive(answer: dict[str, Any]) -> Archive:
    fields = answer["config"]
    config = None
    if fields is not None:
        written: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        config = ModelConfig(**written, given=frozenset(fields))
    return Archive(answer["digest"], answer["size"], Manifest(**answer["manifest"]), config, answer["signature"])
