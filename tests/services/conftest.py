"""A running set of services, and a clock that stands still until a test moves it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from trio.testing import MockClock

from tests.services.stack import Services, running


@pytest.fixture
async def services(tmp_path: Path, mock_clock: MockClock) -> AsyncIterator[Services]:
    """Services with an archive `noop.mar` in the store."""
    async with running(tmp_path) as made:
        made.mar()
        yield made
