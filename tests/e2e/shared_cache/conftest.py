"""A registry, and a second store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Pybuild
from servers import registry


@pytest.fixture
def server(tools: dict[str, str], tmp_path: Path) -> Iterator[str]:
    with registry(tools["docker-registry"], tmp_path) as host:
        yield host


@pytest.fixture
def empty(fresh: Pybuild, tmp_path: Path, busybox: Path) -> Pybuild:
    """Another store with busybox in it."""
    made = Pybuild(tmp_path / "empty", tmp_path)
    made("load", busybox).ok()
    return made
