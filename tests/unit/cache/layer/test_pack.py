"""Any tree packs to a tar that others read as that tree, and unpacks to it again."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.layer.pack import pack, walk
from cache.layer.unpack import unpack_layer

NAMES = st.binary(min_size=1, max_size=40).map(lambda b: b.replace(b"/", b"_").replace(b"\0", b"_")).filter(
    lambda b: b not in (b".", b"..") and not b.startswith(b".wh.")
)  # fmt: skip
MODES = st.integers(0, 0o7777)
TIMES = st.integers(-(1 << 31), 1 << 33)
FILES = st.tuples(st.just("f"), st.binary(max_size=2000), MODES, TIMES)
LINKS = st.tuples(st.just("l"), NAMES, st.just(0o777), TIMES)
PIPES = st.tuples(st.just("p"), st.just(b""), MODES, TIMES)
TREES = st.recursive(
    st.dictionaries(NAMES, st.one_of(FILES, LINKS, PIPES), max_size=4),
    lambda inner: st.dictionaries(NAMES, st.one_of(FILES, LINKS, inner), max_size=4),
    max_leaves=12,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners are part of a layer")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("pack")


def write(folder: bytes, tree: dict[bytes, object]) -> None:
    for name, what in tree.items():
        path = folder + b"/" + name
        if isinstance(what, dict):
            os.mkdir(path)
            write(path, what)
            continue
        assert isinstance(what, tuple)
        kind, data, mode, when = what
        if kind == "l":
            os.symlink(data, path)
        elif kind == "p":
            os.mkfifo(path)
        else:
            with open(path, "wb") as file:
                file.write(data)
        if kind != "l":
            os.chmod(path, mode)
        os.utime(path, (when, when), follow_symlinks=False)


def look(folder: bytes) -> dict[bytes, tuple[object, ...]]:
    """What a tree holds, as far as layers keep it."""
    found: dict[bytes, tuple[object, ...]] = {}
    for base, folders, names in os.walk(folder):
        for name in folders + names:
            path = base + b"/" + name
            info = os.lstat(path)
            content: object = b""
            if stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(info.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            when = None if stat.S_ISDIR(info.st_mode) else int(info.st_mtime // 1)
            found[path[len(folder) + 1 :]] = (info.st_mode, info.st_uid, info.st_gid, when, content)
    return found


def packed(folder: bytes) -> bytes:
    out = io.BytesIO()
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        pack(root, walk(root), out.write)
    finally:
        os.close(root)
    return out.getvalue()


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(tree=TREES)
def test_round_trip(work: Path, tree: dict[bytes, object]) -> None:
    source = tempfile.mkdtemp(dir=os.fsencode(work))
    target = tempfile.mkdtemp(dir=os.fsencode(work))
    write(source, tree)
    data = packed(source)
    root = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    unpack_layer(io.BytesIO(data).read, root)
    os.close(root)
    assert look(target) == look(source)
    assert packed(target) == data, "packing what was unpacked gives the same bytes"
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as tar:
        assert {os.fsencode(member.name) for member in tar} == set(look(source))
    subprocess.run(["rm", "-rf", source, target], check=True)


def test_gnu_tar_agrees(work: Path, tmp_path: Path) -> None:
    """Names that need PAX, large ids, times before 1970, device nodes."""
    source = tmp_path / "s"
    source.mkdir()
    (source / ("n" * 200)).write_text("x")
    (source / "ü").write_text("y")
    os.chown(source / "ü", 3_000_000, 4_000_000)
    os.utime(source / "ü", (-100, -100))
    os.mknod(source / "null", 0o644 | stat.S_IFCHR, os.makedev(1, 3))
    os.setxattr(source / "ü", "user.k", b"v")
    data = packed(os.fsencode(source))
    target = tmp_path / "t"
    target.mkdir()
    subprocess.run(["tar", "-C", target, "--xattrs", "--numeric-owner", "-xpf", "-"], input=data, check=True)
    assert look(os.fsencode(target)) == look(os.fsencode(source))
    assert os.getxattr(target / "ü", "user.k") == b"v"
    assert (target / "null").stat().st_rdev == os.makedev(1, 3)
