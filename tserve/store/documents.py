"""The JSON columns: manifests, model yaml keys and the versions shown in a change.

Text, so that nothing of it depends on a Python class.  A key that this release does not know is left out and a
missing one takes its default, so that a file written by a later release of the same schema can still be read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from tserve.domain.model_config import ModelConfig
from tserve.domain.versions import Manifest, Version

_MANIFEST_FIELDS: Final = frozenset(field.name for field in fields(Manifest))
_CONFIG_FIELDS: Final = frozenset(field.name for field in fields(ModelConfig))
VERSION_FIELDS: Final = tuple(field.name for field in fields(Version) if field.name != "key")
"""What a version is besides its key, in the order of its constructor; the columns have the same names."""


def write_document(document: Mapping[str, object]) -> str:
    """ASCII only: a lone surrogate out of a hostile manifest stays an escape and cannot break the UTF-8 column."""
    return json.dumps(document, separators=(",", ":"))


def write_manifest(manifest: Manifest) -> str:
    return write_document({name: getattr(manifest, name) for name in sorted(_MANIFEST_FIELDS)})


def read_manifest(text: str) -> Manifest:
    return Manifest(**_known(text, _MANIFEST_FIELDS))


def write_config(config: ModelConfig) -> str:
    document = {name: getattr(config, name) for name in sorted(_CONFIG_FIELDS)}
    return write_document(document | {"given": sorted(config.given)})


def read_config(text: str) -> ModelConfig:
    document = _known(text, _CONFIG_FIELDS)
    if document.get("device_ids") is not None:
        document["device_ids"] = tuple(document["device_ids"])
    return ModelConfig(**document | {"given": frozenset(document.get("given", ()))})


def version_document(version: Version) -> dict[str, object]:
    """A version as a change shows it; name and version stand in columns of their own."""
    return {name: getattr(version, name) for name in VERSION_FIELDS}


def _known(text: str, names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in json.loads(text).items() if name in names}
