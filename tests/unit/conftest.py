"""What unit tests share."""

from __future__ import annotations

import sys
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Do not count branches in a test marked ``no_cover``: it limits its own time.

    pytest-cov pauses its own collector, and in a test process that brings back the one of the process.
    """
    trace = sys.gettrace()
    if item.get_closest_marker("no_cover") is not None:
        sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(trace)
