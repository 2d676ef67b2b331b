from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_cgroups import FakeKernel, open_groups


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    fake = FakeKernel(tmp_path, monkeypatch)
    yield fake
    for fd in open_groups(fake):
        os.close(fd)
