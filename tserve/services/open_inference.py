"""What the Open Inference Protocol asks about the server and its models (spec/inference.md section 7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tserve.domain.model_config import ModelConfig
from tserve.domain.registry import Registry
from tserve.services.health import Health

NAME = "Torchserve"
VERSION = "0.12.0"  # of the contract, as handlers see it, too
EXTENSIONS = ("kserve", "kubeflow")
PLATFORM = "pytorch_torchserve"  # framework and format, as the protocol has it
_BINARY_ENVELOPE = "kservev2"  # that of ts which reads and writes the protocol's binary extension
Tensors = tuple[Mapping[str, object], ...]
_NO_CONFIG = ModelConfig()


@dataclass(frozen=True, slots=True)
class Metadata:
    """Of a model: all of its versions, and the tensors that the yaml of the one asked for declares."""

    name: str
    versions: tuple[str, ...]
    inputs: Tensors
    outputs: Tensors


class OpenInference:
    """`envelope` is the one of models whose manifest names none."""

    def __init__(self, registry: Registry, health: Health, *, envelope: str = "") -> None:
        self._registry = registry
        self._health = health
        self._envelope = envelope

    def server_is_ready(self) -> bool:
        """Whether every version has the workers that it wants."""
        return all(version.lacks_nothing for version in self._health.all())

    def is_ready(self, name: str, version: str | None = None) -> bool:
        """Whether the version, else the default one, has a worker that is loaded.

        Raises ModelNotFound, ModelVersionNotFound.
        """
        return self._health.one(name, version).ready > 0

    def metadata(self, name: str, version: str | None = None) -> Metadata:
        """Raises ModelNotFound, ModelVersionNotFound."""
        found = self._registry.find(name, version)
        config = self._registry.archive(found.digest).config or _NO_CONFIG
        versions = tuple(version.key.version for version in self._registry.all_of(name))
        return Metadata(name, versions, config.inputs, config.outputs)

    def takes_binary(self, name: str, version: str | None) -> bool:
        """Whether its handler gets and answers tensors in binary.  Raises ModelNotFound, ModelVersionNotFound."""
        archive = self._registry.archive(self._registry.find(name, version).digest)
        return (archive.manifest.envelope or self._envelope) == _BINARY_ENVELOPE
