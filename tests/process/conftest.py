"""Assertions of the contract explain themselves, too."""

import pytest

pytest.register_assert_rewrite("tests.process.launcher_contract")
