"""Models, versions and archives as plain data.  Desired state only: nothing here is observed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tserve.domain.model_config import ModelConfig


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Identity of a version: both parts are free text and case-sensitive (spec/management.md section 3.7)."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the server reads of `MAR-INF/MANIFEST.json` (section 3.5); `raw` is the whole object for the handler.

    `raw` is None when the archive has no manifest.
    """

    model_name: str | None = None
    model_version: str = "1.0"
    handler: str | None = None
    runtime: str | None = "python"  # None: the manifest names one we do not know
    config_file: str | None = None
    requirements_file: str | None = None
    raw: Mapping[str, object] | None = None
    envelope: str | None = None


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive kept by content.

    `digest` is the sha-256 of the file's bytes in hex (of a canonical listing for a folder), `size` its bytes,
    `config` the front-end keys of its model yaml, None when it has none or an unreadable one, `signature` the line of
    the trusted key that signed it, None when none did.
    """

    digest: str
    size: int
    manifest: Manifest = field(default_factory=Manifest)
    config: ModelConfig | None = None
    signature: str | None = None


@dataclass(frozen=True, slots=True)
class Version:
    """Desired state of one version, as written to the store and shown by describe.

    Numbers stand as the client gave them (negative and zero ones too, section 2.1) in upstream's units:
    `max_batch_delay` milliseconds, timeouts whole seconds.  They are clamped where they take effect.
    """

    key: Key
    url: str
    digest: str
    handler: str
    runtime: str = "python"
    batch_size: int = 1
    max_batch_delay: int = 100
    response_timeout: int = 120
    startup_timeout: int = 120
    min_workers: int = 0
    max_workers: int = 0


def key_of(signature: str) -> str:
    """The id of the key that made a signature, a line `ed25519:<id>:<signature>`."""
    return signature.split(":")[1]
