"""Tar to directory: what a well-formed, a malformed and a hostile archive gives."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.errors import ArchiveError, SpaceError, UnsupportedMember
from cache.fs import is_opaque
from cache.layer.tar_reader import TarReader
from cache.layer.unpack import unpack_layer


def member(
    name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **fields: object
) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.type, made.size, made.mode = kind, len(data), 0o644
    for key, value in fields.items():
        setattr(made, key, value)
    return made, data


def tar(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as made:
        for info, data in members:
            made.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "root").mkdir()
    fd = os.open(tmp_path / "root", os.O_RDONLY)
    yield fd
    os.close(fd)


def unpack(data: bytes, root: int, **given: object) -> str:
    return unpack_layer(io.BytesIO(data).read, root, owners=False, **given)  # type: ignore[arg-type]


def names(root: int) -> list[str]:
    return sorted(
        os.path.relpath(os.path.join(top, name), ".")
        for top, folders, files, _fd in os.fwalk(".", dir_fd=root)
        for name in (*folders, *files)
    )


def test_members(root: int) -> None:
    data = tar(
        member("d", tarfile.DIRTYPE, mode=0o750, mtime=5),
        member("d/f", data=b"content", mode=0o4755, mtime=7),
        member("d/hard", tarfile.LNKTYPE, linkname="d/f"),
        member("d/soft", tarfile.SYMTYPE, linkname="f"),
        member("d/pipe", tarfile.FIFOTYPE),
    )
    assert unpack(data, root) == "sha256:" + hashlib.sha256(data).hexdigest()
    assert names(root) == ["d", "d/f", "d/hard", "d/pipe", "d/soft"]
    found, folder = os.stat("d/f", dir_fd=root), os.stat("d", dir_fd=root)
    assert (found.st_mode & 0o7777, found.st_mtime, found.st_nlink) == (0o4755, 7, 2)
    assert (folder.st_mode & 0o7777, folder.st_mtime) == (0o750, 5)
    assert os.readlink("d/soft", dir_fd=root) == "f"


@pytest.mark.parametrize("name", ["../../up", "/abs/../../up", "d/../../../up"])
def test_nothing_leaves_the_root(root: int, name: str, tmp_path: Path) -> None:
    unpack(tar(member(name, data=b"x")), root)
    assert "up" in names(root)
    assert os.listdir(tmp_path) == ["root"]


def test_no_member_writes_through_a_link(root: int, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("kept")
    outside = str(tmp_path / "outside")
    unpack(tar(member("l", tarfile.SYMTYPE, linkname=outside), member("l", data=b"new")), root)
    assert (tmp_path / "outside").read_text() == "kept"
    assert not os.path.islink(f"/proc/self/fd/{root}/l")
    unpack(tar(member("m", tarfile.SYMTYPE, linkname="/"), member("m/inside", data=b"x")), root)
    assert "inside" in names(root)  # links resolve as after chroot


def test_implied_directories(root: int) -> None:
    implied: list[str] = []
    unpack(tar(member("a/b/c", data=b"x"), member("a", tarfile.DIRTYPE)), root, implied=implied)
    assert implied == ["a/b"]


def test_whiteouts_are_applied_last(root: int) -> None:
    data = tar(member(".wh.gone"), member("d/.wh..wh..opq"), member("d/kept", data=b"x"))
    try:
        unpack(data, root)
    except ArchiveError as error:
        pytest.skip(f"whiteouts or user attributes cannot be made here: {error}")
    assert names(root) == ["d", "d/kept", "gone"]
    assert is_opaque(f"/proc/self/fd/{root}/d")


def test_a_base_has_no_whiteouts(root: int) -> None:
    unpack(tar(member(".wh.x"), member("f")), root, base=True)
    assert names(root) == ["f"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"x" * 1024, "not a number|checksum is wrong"),
        (tar(member("f", data=b"x" * 600))[:700], "ends inside a file"),
        (tar(member("f"))[:300], "ends inside a header"),
        (tar(member(".", data=b"x")), "the root of a layer must be a directory"),
        (tar(member("h", tarfile.LNKTYPE, linkname="none")), "which this layer does not hold"),
        (tar(member("h", tarfile.LNKTYPE, linkname="..")), "a hard link to"),
        (tar(member(".wh.")), "is not a whiteout of anything"),
        (tar(member("f", uid=1 << 31)), ""),
    ],
)
def test_malformed(root: int, data: bytes, message: str) -> None:
    if not message:
        unpack(data, root)  # without owners, ids do not matter
        return
    with pytest.raises(ArchiveError, match=message):
        unpack(data, root)


def test_base_needs_its_end(root: int) -> None:
    with pytest.raises(ArchiveError, match="no end marker"):
        unpack(tar(member("f"))[:512], root, base=True)


def test_no_space(root: int) -> None:
    with pytest.raises(SpaceError):
        unpack(tar(member("f", data=b"x" * 100)), root, limit=99)


# -- the reader ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names(form: int) -> None:
    name = "a" * 90 + "/" + "b" * 90
    data = tar(member(name, data=b"x"), form=form)
    (found,) = TarReader(io.BytesIO(data).read)
    assert found.name == name.encode()


def test_content_in_pieces_of_any_size() -> None:
    data = tar(member("a", data=b"x" * 1500), member("b", data=b"y" * 3))
    stream = io.BytesIO(data)
    reader = TarReader(lambda count: stream.read(min(count, 7)))
    found = {member.name: b"".join(reader.chunks()) for member in reader}
    assert found == {b"a": b"x" * 1500, b"b": b"y" * 3}
    assert reader.ended


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (b"99 path=x\n", "length is wrong"),
        (b"x path=x\n", "has no length"),
        (b"11 uid=abc\n", "is not a number"),
        (b"12 mtime=x.\n", "mtime is not a number"),
    ],
)
def test_pax_records_that_lie(records: bytes, message: str) -> None:
    info, _ = member("PaxHeaders", tarfile.XHDTYPE, records)
    data = info.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0") + tar(member("f"))
    with pytest.raises(ArchiveError, match=message):
        list(TarReader(io.BytesIO(data).read))


def test_unknown_members() -> None:
    with pytest.raises(UnsupportedMember, match="type b'M'"):
        list(TarReader(io.BytesIO(tar(member("f", b"M"), form=tarfile.USTAR_FORMAT)).read))


def test_an_empty_stream() -> None:
    with pytest.raises(ArchiveError, match="the archive is empty"):
        list(TarReader(io.BytesIO().read))
    blank = TarReader(io.BytesIO().read, blank=True)
    assert list(blank) == []
    assert blank.ended


def test_a_large_header_is_refused() -> None:
    info, _ = member("PaxHeaders", tarfile.XHDTYPE)
    info.size = 2 << 20
    with pytest.raises(ArchiveError, match="the limit is"):
        list(TarReader(io.BytesIO(info.tobuf(tarfile.USTAR_FORMAT)).read))


def test_sparse_files_are_whole(tmp_path: Path) -> None:
    body = b"1\n5\n3\n".ljust(512, b"\0") + b"abc".ljust(512, b"\0")
    pax = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "s",
        "GNU.sparse.realsize": "10",
    }
    info, _ = member("GNUSparseFile.0/s")
    info.pax_headers, info.size = pax, 512 + 3
    data = tar((info, body[: 512 + 3]))
    reader = TarReader(io.BytesIO(data).read)
    (found,) = [(item.name, b"".join(reader.chunks())) for item in reader]
    assert found == (b"s", bytes(5) + b"abc" + bytes(2))
