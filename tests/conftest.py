"""What all tests share: how Hypothesis behaves."""

from __future__ import annotations

from hypothesis import settings

# No deadline: a busy machine is no bug.  No database: a run leaves nothing behind in the checkout.
settings.register_profile("tserve", deadline=None, database=None)
settings.load_profile("tserve")
