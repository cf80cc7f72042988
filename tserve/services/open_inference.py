"""What the Open Inference Protocol asks about the server and its models (spec/inference.md section 7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tserve.domain.model_config import ModelConfig
from tserve.domain.registry import Registry
from tserve.services.health import Health

Tensors = tuple[Mapping[str, object], ...]
_NO_CONFIG = ModelConfig()


@dataclass(frozen=True, slots=True)
class Metadata:
    """Of a model: all of its versions, and the tensors that the default one's yaml declares."""

    name: str
    versions: tuple[str, ...]
    inputs: Tensors
    outputs: Tensors


class OpenInference:
    def __init__(self, registry: Registry, health: Health) -> None:
        self._registry = registry
        self._health = health

    def server_is_ready(self) -> bool:
        """Whether every version has the workers that it wants."""
        return all(version.lacks_nothing for version in self._health.all())

    def is_ready(self, name: str) -> bool:
        """Whether the default version has a worker that is loaded.  Raises ModelNotFound."""
        return self._health.one(name, None).ready > 0

    def metadata(self, name: str) -> Metadata:
        """Raises ModelNotFound."""
        default = self._registry.find(name, None)
        config = self._registry.archive(default.digest).config or _NO_CONFIG
        versions = tuple(version.key.version for version in self._registry.all_of(name))
        return Metadata(name, versions, config.inputs, config.outputs)
