"""Atomic writes, exact reads, whiteouts, and removal of trees."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cache import fs


def test_atomic_file_appears_whole(tmp_path: Path) -> None:
    final, temporary = str(tmp_path / "final"), str(tmp_path / "temporary")
    with fs.atomic_file(final, temporary, 0o640) as file:
        file.write(b"x")
        assert not os.path.exists(final)
    assert os.listdir(tmp_path) == ["final"]
    assert Path(final).read_bytes() == b"x"
    assert not stat.S_IMODE(os.stat(final).st_mode) & ~0o640


def test_atomic_file_leaves_nothing_after_an_error(tmp_path: Path) -> None:
    final = tmp_path / "final"
    final.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), fs.atomic_file(str(final), str(tmp_path / "t")) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["final"]
    assert final.read_bytes() == b"old"


def test_atomic_file_takes_no_place_of_another(tmp_path: Path) -> None:
    (tmp_path / "t").symlink_to("elsewhere")
    with pytest.raises(FileExistsError), fs.atomic_file(str(tmp_path / "f"), str(tmp_path / "t")):
        pass
    assert os.listdir(tmp_path) == ["t"]


@pytest.mark.parametrize("durable", [True, False])
def test_fsync_is_a_choice(tmp_path: Path, durable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    fs.write_atomically(str(tmp_path / "f"), b"x", str(tmp_path / "t"), durable)
    assert bool(synced) is durable


def test_read_exactly() -> None:
    pieces = iter([b"ab", b"c", b"defg"])

    def read(count: int) -> bytes:
        return next(pieces, b"")[:count]

    assert fs.read_exactly(read, 4) == b"abcd"
    assert fs.read_exactly(lambda count: b"", 3) == b""
    short = iter([b"xy", b""])
    assert fs.read_exactly(lambda count: next(short), 3) == b"xy"


def test_remove_tree(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    top = tmp_path / "top"
    top.mkdir()
    (top / "link").symlink_to(outside)
    fs.remove_tree(str(top))
    assert os.listdir(tmp_path) == ["outside"]
    assert os.listdir(outside) == ["kept"]
    fs.remove_tree(str(top))  # a missing one is no error
    (tmp_path / "l").symlink_to(outside)
    fs.remove_tree(str(tmp_path / "l"))
    assert os.listdir(outside) == ["kept"]


def test_remove_deep_tree(tmp_path: Path) -> None:
    """Deeper than a path can be long, with few descriptors."""
    top = tmp_path / "top"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("abcd", dir_fd=here)
        below = os.open("abcd", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    fs.remove_tree(str(top))
    assert not top.exists()


def test_move_entries_replaces(tmp_path: Path) -> None:
    for name in ("a/both/x", "a/one/y", "b/both/z", "b/old/w"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "a/file").touch()
    (tmp_path / "b/file").mkdir()
    source, target = (os.open(tmp_path / name, os.O_RDONLY) for name in "ab")
    fs.move_entries(source, target)
    assert os.listdir(source) == []
    assert sorted(os.listdir(target)) == ["both", "file", "old", "one"]
    assert os.listdir(tmp_path / "b/both") == ["x"]
    os.close(source)
    os.close(target)


def test_real_folder_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "real/in").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    os.utime(tmp_path / "real/in", ns=(5, 7))
    with fs.real_folder(str(tmp_path), "real/in") as fd:
        os.close(os.open("new", os.O_CREAT, dir_fd=fd))
    assert os.stat(tmp_path / "real/in").st_mtime_ns == 7
    with pytest.raises(OSError), fs.real_folder(str(tmp_path), "link/in"):
        pass


def test_whiteout_of_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the device is refused, the mark is a socket with a fixed time."""
    mknod = os.mknod

    def refusing(path: str, mode: int, device: int = 0, *, dir_fd: int | None = None) -> None:
        if stat.S_ISCHR(mode):
            raise PermissionError
        mknod(path, mode, device, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mknod", refusing)
    fs.make_whiteout(str(tmp_path / "gone"))
    assert fs.is_whiteout(os.lstat(tmp_path / "gone"))
    os.utime(tmp_path / "gone")
    assert not fs.is_whiteout(os.lstat(tmp_path / "gone"))
    with pytest.raises(FileExistsError):
        fs.make_whiteout(str(tmp_path / "gone"))


@pytest.mark.parametrize(
    ("name", "belongs"),
    [
        ("user.x", True),
        ("security.capability", True),
        ("user.overlay.opaque", False),
        ("trusted.x", False),
        ("security.selinux", False),
    ],
)
def test_image_xattrs(name: str, belongs: bool) -> None:
    assert fs.is_image_xattr(name) is belongs
