"""The probe (tests/support/chroot_probe.c), and places for it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from confinement import compile_c
from harness import Pybuild


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_c("chroot_probe.c", tmp_path_factory.mktemp("probe") / "probe", "-static")


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    """A folder on the file system that the world is on, and not on that of /dev/shm."""
    folder = tempfile.mkdtemp(prefix="probing.", dir="/var/tmp")
    yield Path(folder)
    shutil.rmtree(folder)


@pytest.fixture
def chroot(tmp_path: Path) -> Pybuild:
    """The command on an empty store: the images here are the probe alone."""
    return Pybuild(tmp_path / "store", tmp_path)
