"""The HTTP skin over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.http.client", "tests.http.stack")

from tests.http.stack import Api, serving  # noqa: E402 - after the line that makes their assertions speak


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """Both ports, and an archive `noop.mar` whose handler echoes."""
    async with serving(tmp_path) as served:
        served.services.mar()
        yield served
