"""The registry as the contract has it after a row of changes, to be held against what the server says.

Independent of the server's own code: names, versions, defaults, order of names and the answers of each change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Wish:
    """The desired state of one version; times as on the wire."""

    url: str
    handler: str = "handler.py"
    batch_size: int = 1
    max_batch_delay: int = 100
    response_timeout: int = 120
    startup_timeout: int = 120
    min_workers: int = 0
    max_workers: int = 0

    @classmethod
    def described(cls, description: dict[str, Any]) -> Wish:
        """What the server describes of a version, read back."""
        return cls(
            url=description["modelUrl"],
            handler=description["tserve"]["handler"],
            batch_size=description["batchSize"],
            max_batch_delay=description["maxBatchDelay"],
            response_timeout=description["responseTimeout"],
            startup_timeout=description["startupTimeout"],
            min_workers=description["minWorkers"],
            max_workers=description["maxWorkers"],
        )


@dataclass(frozen=True)
class Change:
    """One call: `kind` as the record of changes names it, `workers` minimum and maximum of a scale."""

    kind: str
    name: str
    version: str
    wish: Wish | None = None
    workers: tuple[int, int] | None = None


@dataclass
class Expected:
    """`versions`: name to version to wish, in order of registration."""

    versions: dict[str, dict[str, Wish]] = field(default_factory=dict)
    defaults: dict[str, str] = field(default_factory=dict)

    @classmethod
    def described(cls, registry: dict[str, dict[str, dict[str, Any]]]) -> Expected:
        """What the server describes (Server.registry), read back."""
        seen = cls()
        for name, versions in registry.items():
            seen.versions[name] = {version: Wish.described(description) for version, description in versions.items()}
            (seen.defaults[name],) = (v for v, description in versions.items() if description["tserve"]["default"])
        return seen

    def copy(self) -> Expected:
        return Expected({name: dict(versions) for name, versions in self.versions.items()}, dict(self.defaults))

    def only(self, names: Iterable[str]) -> Expected:
        chosen = [name for name in names if name in self.versions]
        return Expected({n: self.versions[n] for n in chosen}, {n: self.defaults[n] for n in chosen})

    def names(self) -> list[str]:
        """In the list's order: by UTF-16 code unit."""
        return sorted(self.versions, key=lambda name: name.encode("utf-16-be"))

    def urls(self) -> dict[str, str]:
        """What the list shows, in its order."""
        return {name: self.versions[name][self.defaults[name]].url for name in self.names()}

    def apply(self, change: Change) -> bool:
        """Make a change that the contract allows; whether anything is different afterwards."""
        name, version = change.name, change.version
        before = self.versions.get(name, {}).get(version), self.defaults.get(name)
        if change.kind == "add_version":
            assert before[0] is None
            assert change.wish is not None
            self.versions.setdefault(name, {})[version] = change.wish
            self.defaults.setdefault(name, version)
        elif change.kind == "replace_version":
            assert change.workers is not None
            fewest, most = change.workers
            self.versions[name][version] = replace(self.versions[name][version], min_workers=fewest, max_workers=most)
        elif change.kind == "set_default":
            assert version in self.versions[name]
            self.defaults[name] = version
        else:
            assert change.kind == "remove_version"
            assert self.may_remove(name, version)
            del self.versions[name][version]
            if not self.versions[name]:
                del self.versions[name], self.defaults[name]
        return (self.versions.get(name, {}).get(version), self.defaults.get(name)) != before

    def may_remove(self, name: str, version: str) -> bool:
        return self.defaults[name] != version or len(self.versions[name]) == 1
