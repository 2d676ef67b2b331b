"""What a step wrote is reduced to what it changed; the one rule for equal entries."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cache import fs
from cache.entry import entry_of
from cache.errors import LayerError
from cache.layer.merged_tree import Tree
from cache.layer.reduce import check_name, normalise
from cache.layer.same import same_entry, same_files, same_metadata

WHEN = 1_700_000_000_000_000_000


@pytest.fixture(autouse=True)
def socket_whiteouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whiteouts as sockets, which any user can make."""
    mknod = os.mknod

    def refusing(path: str, mode: int, device: int = 0, *, dir_fd: int | None = None) -> None:
        if stat.S_ISCHR(mode):
            raise PermissionError
        mknod(path, mode, device, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mknod", refusing)


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    return made(tmp_path / "lower")


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    return made(tmp_path / "upper")


def made(top: Path) -> Path:
    (top / "d/sub").mkdir(parents=True)
    (top / "d/file").write_text("content")
    (top / "d/link").symlink_to("file")
    for path in ("d/file", "d/link", "d/sub", "d"):
        os.utime(top / path, ns=(WHEN, WHEN), follow_symlinks=False)
    return top


def left(upper: Path, lower: Path) -> list[str]:
    normalise(str(upper), Tree((str(lower),)))
    return sorted(str(path.relative_to(upper)) for path in upper.rglob("*"))


def test_nothing_changed(upper: Path, lower: Path) -> None:
    os.utime(upper / "d")  # a directory's time does not count
    assert left(upper, lower) == []


@pytest.mark.parametrize(
    ("change", "stays"),
    [
        (lambda top: os.chmod(top / "d/file", 0o600), ["d", "d/file"]),
        (lambda top: os.chmod(top / "d/sub", 0o700), ["d", "d/sub"]),
        (lambda top: os.utime(top / "d/file", ns=(WHEN, WHEN + 1)), ["d", "d/file"]),
        (lambda top: os.utime(top / "d/link", ns=(1, 1), follow_symlinks=False), ["d", "d/link"]),
        (lambda top: (top / "d/new").touch(), ["d", "d/new"]),
    ],
)
def test_a_change_stays(upper: Path, lower: Path, change: object, stays: list[str]) -> None:
    assert callable(change)
    change(upper)
    assert left(upper, lower) == stays


def test_equal_times_prove_nothing(upper: Path, lower: Path) -> None:
    (upper / "d/file").write_text("CONTENT")
    os.utime(upper / "d/file", ns=(WHEN, WHEN))
    assert left(upper, lower) == ["d", "d/file"]


def test_whiteouts_of_nothing_go(upper: Path, lower: Path) -> None:
    os.unlink(upper / "d/file")
    fs.make_whiteout(str(upper / "d/file"))
    fs.make_whiteout(str(upper / "never"))
    (upper / "new").mkdir()
    fs.make_whiteout(str(upper / "new/never"))
    assert left(upper, lower) == ["d", "d/file", "new"]
    assert fs.is_whiteout(os.lstat(upper / "d/file"))


def test_an_opaque_directory_becomes_whiteouts(upper: Path, lower: Path) -> None:
    for path in ("d/file", "d/link"):
        os.unlink(upper / path)
    (upper / "d/sub").rmdir()
    try:
        os.setxattr(upper / "d", fs.OPAQUE, b"y")
    except OSError as error:
        pytest.skip(f"this file system has no user attributes: {error.strerror}")
    assert left(upper, lower) == ["d", "d/file", "d/link", "d/sub"]
    assert all(fs.is_whiteout(os.lstat(upper / "d" / name)) for name in ("file", "link", "sub"))
    assert not fs.is_opaque(str(upper / "d"))


def test_directories_keep_their_time(upper: Path, lower: Path) -> None:
    (upper / "d/new").touch()
    os.utime(upper / "d", ns=(5, 7))
    left(upper, lower)
    assert os.stat(upper / "d").st_mtime_ns == 7


def test_names_that_mean_whiteouts(upper: Path, lower: Path) -> None:
    (upper / "d/.wh.file").touch()
    with pytest.raises(LayerError, match="another one is deleted"):
        normalise(str(upper), Tree((str(lower),)))
    check_name("wh.x")


@pytest.mark.parametrize("difference", [0, 1, 500_000_000])
def test_whole_seconds_are_no_exception(tmp_path: Path, difference: int) -> None:
    """A time from a tar, in whole seconds, and one within that second are two times: as in BuildKit."""
    path = tmp_path / "f"
    path.touch()
    os.utime(path, ns=(WHEN, WHEN))
    below = Tree((str(tmp_path),)).lookup("f")
    assert below is not None
    entry = entry_of("f", below.found)._replace(mtime=WHEN + difference)
    assert same_metadata(entry, below) is (difference == 0)
    assert same_entry(entry, below, lambda: True) is (difference == 0)
    assert not same_entry(entry, below, lambda: False)
    assert not same_entry(entry._replace(size=1), below, lambda: True)


def test_same_files(tmp_path: Path) -> None:
    for name, data in (("a", b"x" * 100_000), ("b", b"x" * 100_000), ("c", b"x" * 99_999 + b"y"), ("d", b"")):
        (tmp_path / name).write_bytes(data)
    a, b, c, d = (str(tmp_path / name) for name in "abcd")
    assert same_files(a, b)
    assert not same_files(a, c)
    assert not same_files(a, d)
    assert same_files(d, d)
