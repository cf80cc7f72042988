"""The JSON columns: manifests, model yaml keys and the versions shown in a change.

Text, so that nothing of it depends on a Python class.  Fields at their default are not written.  A key that this
release does not know is left out on reading, so that a later release may add some without a new schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from tserve.domain.model_config import ModelConfig
from tserve.domain.versions import Manifest, Version

_MANIFEST_DEFAULTS: Final = {field.name: getattr(Manifest(), field.name) for field in fields(Manifest)}
_CONFIG_DEFAULTS: Final = {field.name: getattr(ModelConfig(), field.name) for field in fields(ModelConfig)}
VERSION_FIELDS: Final = tuple(field.name for field in fields(Version) if field.name != "key")
"""What a version is besides its key, in the order of its constructor; the columns have the same names."""


def write_document(document: Mapping[str, object]) -> str:
    """ASCII only: a lone surrogate out of a hostile manifest stays an escape and cannot break the UTF-8 column."""
    return json.dumps(document, separators=(",", ":"))


def write_manifest(manifest: Manifest) -> str:
    return write_document(_set_fields(manifest, _MANIFEST_DEFAULTS))


def read_manifest(text: str) -> Manifest:
    return Manifest(**_known(text, _MANIFEST_DEFAULTS))


def write_config(config: ModelConfig) -> str:
    return write_document(_set_fields(config, _CONFIG_DEFAULTS) | {"given": sorted(config.given)})


def read_config(text: str) -> ModelConfig:
    document = _known(text, _CONFIG_DEFAULTS)
    document |= {name: tuple(value) for name, value in document.items() if isinstance(value, list)}
    document["given"] = frozenset(document.get("given", ()))
    return ModelConfig(**document)


def version_document(version: Version) -> dict[str, object]:
    """A version as a change shows it; name and version stand in columns of their own."""
    return {name: getattr(version, name) for name in VERSION_FIELDS}


def _set_fields(item: Manifest | ModelConfig, defaults: Mapping[str, object]) -> dict[str, object]:
    values = ((name, getattr(item, name)) for name in defaults)
    return {name: value for name, value in values if value != defaults[name]}


def _known(text: str, names: Mapping[str, object]) -> dict[str, Any]:
    return {name: value for name, value in json.loads(text).items() if name in names}
