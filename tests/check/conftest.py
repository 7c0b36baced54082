"""What is compiled here is compiled quickly, and once."""

from __future__ import annotations

import pytest
from tiny_runs import quick_compiling  # noqa: F401


@pytest.fixture(autouse=True)
def _quick_compiling(quick_compiling):  # noqa: F811
    return quick_compiling
