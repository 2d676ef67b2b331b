"""Scans of a build context: what is taken, what is remembered, and what changes meanwhile."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cache import context_scan
from cache.context_scan import ScannedFiles, Stat, StatIndex, content_digest, scan
from cache.errors import CacheError


@pytest.fixture
def top(tmp_path: Path) -> Path:
    made = tmp_path / "context"
    (made / "d/deep").mkdir(parents=True)
    (made / "d-file").write_text("1")
    (made / "d/deep/f").write_text("2")
    (made / "d/link").symlink_to("deep/f")
    return made


@pytest.fixture
def root(top: Path) -> Iterator[int]:
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock an hour on, so that new files are old enough to be trusted."""
    now = time.time_ns
    monkeypatch.setattr("cache.context_scan.time.time_ns", lambda: now() + 3600 * 10**9)


def paths(entries: list[Stat]) -> list[str]:
    return [item[0] for item in entries]


def digest(root: int, index: StatIndex, base: str = "") -> str:
    files = ScannedFiles(root)
    try:
        return content_digest(files, scan(root, base), index, base, lambda count: None)
    finally:
        files.close()


def test_walk_order(root: int) -> None:
    assert paths(scan(root, "")) == ["", "d", "d/deep", "d/deep/f", "d/link", "d-file"]
    assert paths(scan(root, "d/deep")) == ["d/deep", "d/deep/f"]
    assert paths(scan(root, "d-file")) == ["d-file"]


def test_directories_are_taken_for_what_is_below(root: int) -> None:
    def keep(path: str, is_dir: bool) -> int:
        return 2 if path.endswith("/f") else 1 if is_dir else 0

    assert paths(scan(root, "", keep)) == ["", "d", "d/deep", "d/deep/f"]
    assert paths(scan(root, "", lambda path, is_dir: int(is_dir))) == [""]


def test_digest_counts_names_modes_and_content(root: int, top: Path, tmp_path: Path) -> None:
    index = StatIndex(str(tmp_path / "index"))
    seen = {digest(root, index)}
    (top.parent / "other-link").symlink_to("other")
    changes: tuple[Callable[[], object], ...] = (
        lambda: (top / "d-file").write_text("3"),
        lambda: os.chmod(top / "d-file", 0o700),
        lambda: os.rename(top / "d-file", top / "d-fil"),
        lambda: os.replace(top.parent / "other-link", top / "d/link"),
        lambda: os.link(top / "d-fil", top / "second"),
    )
    for change in changes:
        change()
        seen.add(digest(root, index))
    assert len(seen) == 6
    os.utime(top / "d-fil", (1, 1))
    os.utime(top / "d", (1, 1))
    assert digest(root, index) in seen  # times do not count


def test_equal_trees_elsewhere_are_equal(root: int, top: Path, tmp_path: Path) -> None:
    (top / "e/deep").mkdir(parents=True)
    (top / "e/deep/f").write_text("2")
    index = StatIndex(str(tmp_path / "index"))
    assert digest(root, index, "d/deep") == digest(root, index, "e/deep")


def test_what_is_remembered(root: int, tmp_path: Path, settled: None) -> None:
    path = str(tmp_path / "index")
    index, entries = StatIndex(path), scan(root, "")
    value = digest(root, index)
    index.remember("all", entries, value)
    saved: list[bytes] = []
    index.save(lambda name, data: saved.append(data))
    index.save(lambda name, data: pytest.fail("nothing has changed"))
    Path(path).write_bytes(saved[0])
    again = StatIndex(path)
    assert again.known("all", scan(root, "")) == value
    assert again.known("other", entries) == ""
    item = next(item for item in entries if item[0] == "d-file")
    closed = ScannedFiles(-1)  # so no file is read
    assert again.content(closed, item)[0] == hashlib.sha256(b"1").hexdigest()


def test_fresh_files_are_not_trusted(root: int, top: Path, tmp_path: Path) -> None:
    """A file may change again within the tick of the clock in which it was read."""
    index, entries = StatIndex(str(tmp_path / "index")), scan(root, "")
    index.remember("all", entries, digest(root, index))
    assert index.known("all", entries) == ""
    before = os.stat(top / "d-file")
    (top / "d-file").write_text("9")
    os.utime(top / "d-file", ns=(before.st_atime_ns, before.st_mtime_ns))
    files = ScannedFiles(root)
    item = next(item for item in scan(root, "") if item[0] == "d-file")
    assert index.content(files, item)[0] == hashlib.sha256(b"9").hexdigest()
    files.close()


@pytest.mark.parametrize("damage", [b"", b"x" * 100])
def test_a_damaged_index_is_no_index(root: int, tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "index").write_bytes(damage)
    assert StatIndex(str(tmp_path / "index")).known("all", scan(root, "")) == ""


def test_changes_while_reading(root: int, top: Path) -> None:
    item = next(item for item in scan(root, "") if item[0] == "d/deep/f")
    files = ScannedFiles(root)
    (top / "d/deep/f").write_text("longer")
    with pytest.raises(CacheError, match="d/deep/f changed while"):
        files.read(item)
    os.unlink(top / "d/deep/f")
    with pytest.raises(CacheError, match="changed while"):
        files.read(item)
    (top / "d/deep/f").symlink_to("/etc/passwd")
    with pytest.raises(CacheError, match="changed while"):
        files.read(item)
    files.close()
    with pytest.raises(CacheError, match="changed while"):
        context_scan.read_link(root, "d-file")


def test_a_directory_that_goes_away(root: int, top: Path) -> None:
    """It was listed, and is gone when it is opened."""
    (top / "e").mkdir()
    seen: list[str] = []

    def keep(path: str, is_dir: bool) -> int:
        seen.append(path)
        if seen[-1] in ("d", "e") and {"d", "e"} <= set(seen):
            os.rename(top / ("d" if path == "e" else "e"), top.parent / "moved")
        return 2

    with pytest.raises(CacheError, match="changed while"):
        scan(root, "", keep)
