"""The HTTP skin over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.http.stack import Api, serving


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """Both ports, and an archive `noop.mar` whose handler echoes."""
    async with serving(tmp_path) as served:
        served.services.mar()
        yield served
