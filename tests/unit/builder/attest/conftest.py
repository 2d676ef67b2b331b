"""A store for attestations."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache.store import Store


@pytest.fixture
def made_store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))
