"""What stock handlers raise that drive another engine, which tserve does not do itself."""

from __future__ import annotations


def not_driven(handler: str, engine: str, package: str, instead: str) -> ImportError:
    """An ImportError, so that the server does not try again: waiting helps as little as installing does."""
    return ImportError(
        f"{handler} is known by name only: tserve does not drive {engine} itself. {instead} Such a handler needs the "
        f"package {package} where the worker runs: pip install {package}"
    )
