"""Stores on full disks, and stores that are being made or were left half made."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import PYBUILD, Pybuild

pytestmark = pytest.mark.e2e

NONE = "--network=none"


@pytest.fixture
def small(tmp_path: Path, busybox: Path) -> Iterator[Pybuild]:
    """The command on a store of its own, with busybox in it, on a file system of 8 MB."""
    disk = tmp_path / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
    try:
        made = Pybuild(disk / "store", tmp_path)
        made("load", busybox).ok()
        yield made
    finally:
        subprocess.run(["umount", disk], check=True)


def fill(pybuild: Pybuild) -> None:
    """Leave no byte on the disk of the store."""
    with (
        pytest.raises(OSError, match="No space left"),
        open(pybuild.store.parent / "filler", "ab", 0) as file,
    ):
        while file.write(bytes(4096)):
            pass


@pytest.mark.parametrize("reserve", [True, False])
def test_a_full_disk_can_be_read_and_freed(small: Pybuild, reserve: bool) -> None:
    """Whatever reads, removes, or has nothing to do works, also where the reserve is used up or never was."""
    context = small.context("FROM busybox\nRUN echo fine > /f\n")
    small(NONE, "-t", "x", "-t", "y", context).ok()
    if not reserve:
        (small.store / "reserve").unlink()
    fill(small)
    for _ in range(2):
        assert small("images").ok().out.count("\n") == 4
        assert small(NONE, "-t", "x", "-t", "y", context).ok().executed == 0
        assert small(NONE, "-t", "x", context).ok().executed == 0
        assert small("run", NONE, "x", "cat", "/f").ok().out == "fine\n"
    small("rmi", "y").ok()
    assert small("images").ok().out.count("\n") == 3
    (small.store.parent / "filler").unlink()
    assert small(NONE, "-t", "y", context).ok().executed == 0
    assert (small.store / "reserve").stat().st_blocks


def test_a_step_that_fills_the_disk_leaves_nothing(small: Pybuild) -> None:
    """It fails, or is made whole; and what a build that failed had made does not take space for ever."""
    before = set(os.listdir(small.store / "snapshots"))
    (small.store / "reserve").unlink()
    (small.store / "reserve").touch()  # so that the index has nothing left
    context = small.context("FROM busybox\nRUN dd if=/dev/zero of=/big bs=4k count=5000; true\n")
    said = small(NONE, context).failed().err
    assert "no space left while writing" in said and "database" not in said, said
    assert set(os.listdir(small.store / "snapshots")) == before
    assert not os.listdir(small.store / "tmp")
    subprocess.run(["mount", "-o", "remount,size=64m", small.store.parent], check=True)
    image = small.export(context, NONE)
    assert len(image.read("big")) == 5000 << 12


def test_snapshots_that_nobody_knows_are_removed(fresh: Pybuild) -> None:
    """Such as those of an index that was lost; not what images need, and not while others use the store."""
    context = fresh.context("FROM busybox\nRUN echo fine > /f\nRUN rm /f\n")
    fresh(NONE, "-t", "x", fresh.context("FROM busybox\nRUN echo fine > /f\n", name="x")).ok()
    fresh(NONE, context).ok()
    (fresh.store / "snapshots/0123456789/d").mkdir(parents=True)
    other = fresh.context("FROM busybox\nRUN true\n", name="other")
    with open(fresh.store / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        fresh(NONE, other).ok()
        assert (fresh.store / "snapshots/0123456789").is_dir()
    count = len(os.listdir(fresh.store / "snapshots"))
    fresh(NONE, "--no-cache", other).ok()
    assert not (fresh.store / "snapshots/0123456789").exists()
    assert len(os.listdir(fresh.store / "snapshots")) == count  # one gone, one new
    for name in os.listdir(fresh.store):
        if name.startswith("index.db"):
            (fresh.store / name).unlink()
    assert fresh("run", NONE, "x", "cat", "/f").ok().out == "fine\n"
    assert fresh(NONE, context).ok().executed == 2


def test_commands_that_begin_at_once_on_no_store(tmp_path: Path) -> None:
    """Who makes the index has it to itself, and the others wait."""
    for number in range(3):
        empty = Pybuild(tmp_path / f"store{number}", tmp_path)
        started = [
            subprocess.Popen([PYBUILD, "images"], env=empty.environment(), stderr=subprocess.PIPE)
            for _ in range(8)
        ]
        for process in started:
            assert process.communicate(timeout=60)[1] == b"" and process.returncode == 0


def test_an_index_that_is_being_made(tmp_path: Path) -> None:
    """One that another process has begun and not finished is not waited for, and is no reason to fail."""
    pybuild = Pybuild(tmp_path / "store", tmp_path)
    pybuild("images").ok()
    for name in os.listdir(pybuild.store):
        if name.startswith("index.db"):
            (pybuild.store / name).unlink()
    begun = sqlite3.connect(pybuild.store / "index.db", isolation_level=None)
    begun.execute("BEGIN IMMEDIATE")
    pybuild("images").ok()
    begun.close()
