"""What all tests share: how Hypothesis behaves."""

from __future__ import annotations

import pytest
from hypothesis import settings

# Before the first of several folders imports them.
pytest.register_assert_rewrite("tests.services.stack", "tests.http.client", "tests.http.stack")
# No deadline: a busy machine is no bug.  No database: a run leaves nothing behind in the checkout.
settings.register_profile("tserve", deadline=None, database=None)
settings.load_profile("tserve")
