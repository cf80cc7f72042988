"""The desired state of all models in memory: what every read is answered from.

Names sort by UTF-16 code unit, as the recorded server's do (spec/management.md section 1.8).  The registry is
changed only by the services, right after the store has committed the same change (DESIGN.md section 7).
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from tserve.domain.versions import Archive, Key, Version
from tserve.errors import Conflict, DefaultVersionInUse, ModelNotFound, ModelVersionNotFound


def code_units(name: str) -> bytes:
    """Sort key of a name."""
    return name.encode("utf-16-be", "surrogatepass")


@dataclass(frozen=True, slots=True)
class Contents:
    """All that the store holds of the registry, as loaded at start."""

    versions: tuple[Version, ...] = ()
    defaults: tuple[Key, ...] = ()
    archives: tuple[Archive, ...] = ()


class Registry:
    """Versions by name in order of registration, their defaults, and the archives they stand on."""

    def __init__(self, contents: Contents = Contents()) -> None:
        self._models: dict[str, dict[str, Version]] = {}
        self._defaults: dict[str, str] = {}
        self._archives: dict[str, Archive] = {archive.digest: archive for archive in contents.archives}
        self._order: list[tuple[bytes, str]] = []
        defaults = {key.name: key.version for key in contents.defaults}
        for version in contents.versions:
            self._insert(version)
        self._defaults.update(defaults)

    def __iter__(self) -> Iterator[Version]:
        for versions in self._models.values():
            yield from versions.values()

    def find(self, name: str, version: str | None = None) -> Version:
        """The version asked for, the default one when none is.  Raises ModelNotFound, ModelVersionNotFound."""
        versions = self._models.get(name)
        if versions is None:
            raise ModelNotFound.named(name)
        found = versions.get(self._defaults[name] if version is None else version)
        if found is None:
            raise ModelVersionNotFound(name, str(version))
        return found

    def get(self, key: Key) -> Version | None:
        return self._models.get(key.name, {}).get(key.version)

    def all_of(self, name: str) -> list[Version]:
        """Every version of a model, oldest registration first.  Raises ModelNotFound."""
        if name not in self._models:
            raise ModelNotFound.named(name)
        return list(self._models[name].values())

    def archive(self, digest: str) -> Archive:
        return self._archives[digest]

    def with_signature(self, archive: Archive) -> Archive:
        """An archive with the signature that is known of it, where it came without: it is the same bytes."""
        held = self._archives.get(archive.digest)
        if archive.signature is None and held is not None:
            return replace(archive, signature=held.signature)
        return archive

    def defaults(self) -> Iterable[Version]:
        return (self.find(name) for name in self._models)

    def names_from(self, offset: int, limit: int) -> list[str]:
        return [name for _, name in self._order[offset : offset + limit]]

    def names_after(self, name: str, limit: int) -> list[str]:
        """The next names in order behind `name`, which need not exist any more."""
        start = bisect.bisect_right(self._order, (code_units(name), name))
        return self.names_from(start, limit)

    def __len__(self) -> int:
        """Number of model names."""
        return len(self._order)

    def check_free(self, key: Key) -> None:
        """Raises Conflict when the version is registered."""
        if self.get(key) is not None:
            raise Conflict(key.name, key.version)

    def check_removable(self, key: Key) -> None:
        """Raises DefaultVersionInUse when the version is the default of a model with others."""
        if self._defaults[key.name] == key.version and len(self._models[key.name]) > 1:
            raise DefaultVersionInUse(key.name)

    def is_default(self, key: Key) -> bool:
        return self._defaults.get(key.name) == key.version

    def add(self, version: Version, archive: Archive) -> None:
        self._archives[archive.digest] = archive
        self._insert(version)

    def _insert(self, version: Version) -> None:
        name = version.key.name
        if name not in self._models:
            self._models[name] = {}
            self._defaults[name] = version.key.version
            bisect.insort(self._order, (code_units(name), name))
        self._models[name][version.key.version] = version

    def replace(self, version: Version) -> None:
        self._models[version.key.name][version.key.version] = version

    def set_default(self, key: Key) -> None:
        self._defaults[key.name] = key.version

    def remove(self, key: Key) -> None:
        versions = self._models[key.name]
        removed = versions.pop(key.version)
        if not versions:
            del self._models[key.name], self._defaults[key.name]
            self._order.remove((code_units(key.name), key.name))
        if not self.references(removed.digest):
            del self._archives[removed.digest]

    def digests_from(self, url: str) -> set[str]:
        """The archives of all versions that were registered from this URL."""
        return {version.digest for version in self if version.url == url}

    def references(self, digest: str) -> bool:
        return any(version.digest == digest for version in self)
