"""ADD of archives: what is unpacked, where it goes, what is refused (T25, T30 to T32, T34 to T39)."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from archives import DIR, FILE, HARD, LINK, PLAIN, tar
from harness import Pybuild, Tree
from rootless import command

pytestmark = pytest.mark.e2e

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("how", COMPRESSIONS.values(), ids=COMPRESSIONS.keys())
def test_unpacked_by_content(pybuild: Pybuild, how: Callable[[bytes], bytes]) -> None:
    """T30: whatever its name says."""
    image = pybuild.build("FROM scratch\nADD notes.txt /x\n", {"notes.txt": how(PLAIN)})
    assert image.tree() == {"x": "DIR", "x/d": "DIR", "x/d/f": "1", "x/l": "-> d/f"}
    entry = image.root()["x/d/f"][0]
    assert (entry.uid, entry.gid, entry.mode, entry.mtime) == (7, 8, 0o640, 1_000_000_000)


NOT_UNPACKED: dict[str, tuple[str, Tree]] = {
    "T31-gzip-of-no-tar": ("ADD f.tar.gz /f", {"f.tar.gz": gzip.compress(b"hello", mtime=0)}),
    "T30-empty": ("ADD f.tar.gz /f", {"f.tar.gz": b""}),
    "only-zeros": ("ADD f.tar /f", {"f.tar": bytes(10240)}),
    "magic-only": ("ADD f /f", {"f": b"\xfd7zXZ\0 and then nothing"}),
    "T32-flag": ("ADD --unpack=false f /f", {"f": PLAIN}),
    "copy": ("COPY f /f", {"f": PLAIN}),
}


@pytest.mark.parametrize(("line", "files"), NOT_UNPACKED.values(), ids=NOT_UNPACKED.keys())
def test_copied_as_it_is(pybuild: Pybuild, line: str, files: Tree) -> None:
    (content,) = files.values()
    image = pybuild.build(f"FROM scratch\n{line}\n", files)
    assert image.layers[-1].contents == {"f": content}


UNPACKED: dict[str, tuple[str, Tree, dict[str, str]]] = {
    "T37-wildcard": ("ADD *.tar /", {"a.tar": tar(("a", FILE, "1")), "b.tar": tar(("b", FILE, "2"))}, {"a": "1", "b": "2"}),
    "T35-implied-parents": ("ADD a /", {"a": tar(("x/y/z", FILE, "1"))}, {"x/y/z": "1"}),
    "T34-through-a-link": (
        "COPY s /\nADD a /l/in", {"s": {"l": "-> /real", "real": None}, "a": tar(("f", FILE, "1"), ("g", HARD, "f"))},
        {"l": "-> /real", "real/in/f": "1", "real/in/g": "= real/in/f"},
    ),
    "member-through-a-link": (
        "COPY s /\nADD a /", {"s": {"lib": "-> usr/lib", "usr": {"lib": {"x": "0"}}}, "a": tar(("lib/f", FILE, "1"))},
        {"lib": "-> usr/lib", "usr/lib/x": "0", "usr/lib/f": "1"},
    ),
    "own-link": ("ADD a /", {"a": tar(("l", LINK, "/real"), ("real", DIR, ""), ("l/f", FILE, "1"))}, {"l": "-> /real", "real/f": "1"}),
    "file-over-folder": (
        "COPY s /\nADD a /", {"s": {"d": {"x": "0"}, "k": "0"}, "a": tar(("d", FILE, "1"))}, {"d": "1", "k": "0"},
    ),
    "folder-over-file": ("COPY s /\nADD a /", {"s": {"d": "0"}, "a": tar(("d", DIR, ""), ("d/f", FILE, "1"))}, {"d/f": "1"}),
    "twice-in-one": ("ADD a /", {"a": tar(("d", DIR, ""), ("d/f", FILE, "1"), ("d", FILE, "2"), ("e", FILE, "1"), ("e", DIR, ""))}, {"d": "2"}),
    "link-to-what-was-there": ("COPY s /\nADD a /", {"s": {"f": "0"}, "a": tar(("g", HARD, "f"))}, {"f": "0", "g": "= f"}),
    "link-to-a-link": (
        "ADD a /", {"a": tar(("f", FILE, "1"), ("l", LINK, "f"), ("m", HARD, "l"))}, {"f": "1", "l": "-> f", "m": "= l"},
    ),
    "link-to-a-link-that-was-there": (
        "COPY s /\nADD a /", {"s": {"f": "1", "l": "-> f"}, "a": tar(("m", HARD, "l"))}, {"f": "1", "l": "-> f", "m": "= l"},
    ),
    "cut-after-its-data": ("ADD a /", {"a": tar(("f", FILE, "1"))[:600]}, {"f": "1"}),
    "behind-a-skippable-frame": (
        "ADD a /", {"a": b"\x50\x2a\x4d\x18\4\0\0\0skip" + zstandard.compress(tar(("f", FILE, "1")))}, {"f": "1"},
    ),
    "global-header-alone": ("ADD a f /", {"a": tar(comment="c"), "f": "2"}, {"f": "2"}),
    "dot": ("ADD a /x", {"a": tar(("./", DIR, ""), ("./f", FILE, "1"))}, {"x/f": "1"}),
    "with-files": ("ADD a f /x/", {"a": tar(("g", FILE, "1")), "f": "2"}, {"x/g": "1", "x/f": "2"}),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "files", "expected"), UNPACKED.values(), ids=UNPACKED.keys())
def test_unpacked(pybuild: Pybuild, lines: str, files: Tree, expected: dict[str, str]) -> None:
    image = pybuild.build(f"FROM scratch\n{lines}\n", files)
    assert {path: what for path, what in image.tree().items() if what != "DIR"} == expected


SPARSE = bytes(499_712) + b"hi\n" + bytes(548_861)


def sparse(version: str, folder: Path) -> bytes:
    """What GNU tar makes of a file with holes; *version* is that of the PAX format, or "gnu"."""
    with (folder / "holes").open("wb") as file:
        file.truncate(len(SPARSE))
        file.seek(499_712)
        file.write(b"hi\n")
    how = ["--format=gnu"] if version == "gnu" else ["--format=pax", f"--sparse-version={version}"]
    return subprocess.check_output(["tar", *how, "--sparse", "-C", folder, "-c", "holes"])


@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0", "gnu"])
def test_sparse(pybuild: Pybuild, tmp_path: Path, version: str) -> None:
    """Holes of an archive are zeros again, also in one that is imported."""
    data = sparse(version, tmp_path)
    assert len(data) < 50_000
    (tmp_path / "a.tar").write_bytes(data)
    pybuild("import", tmp_path / "a.tar", f"holes{version}").ok()
    image = pybuild.build(f"FROM holes{version}\nADD a f /x/\n", {"a": data, "f": "2"})
    assert image.read("x/holes") == image.read("holes") == SPARSE and image.read("x/f") == b"2"


def test_sparse_of_many_parts(pybuild: Pybuild, tmp_path: Path) -> None:
    """GNU tar's own map of a file goes on in further blocks."""
    with (tmp_path / "holes").open("wb") as file:
        for place in range(0, 60 << 16, 1 << 16):
            file.seek(place)
            file.write(b"%d" % place)
    data = subprocess.check_output(["tar", "--format=gnu", "--sparse", "-C", tmp_path, "-c", "holes"])
    assert (
        pybuild.build("FROM scratch\nADD a /\n", {"a": data}).read("holes")
        == (tmp_path / "holes").read_bytes()
    )


def edited(archive: bytes, **records: str) -> bytes:
    """*archive*, whose first header is a PAX one, with other values for some of its records."""
    size = int(archive[124:135], 8)
    text = archive[512 : 512 + size]
    for name, value in records.items():
        key = b"GNU.sparse." + name.encode() + b"="
        start = text.index(key)
        end = text.index(b"\n", start)
        old = text[text.rindex(b"\n", 0, start) + 1 if b"\n" in text[:start] else 0 : end + 1]
        for length in range(len(key) + len(value), len(key) + len(value) + 9):
            new = b"%d " % length + key + value.encode() + b"\n"
            if len(new) == length:
                text = text.replace(old, new)
                break
    header = bytearray(archive[:512])
    header[124:136] = b"%011o\0" % len(text)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    padded = size + -size % 512
    return bytes(header) + text + bytes(-len(text) % 512) + archive[512 + padded :]


def test_links_to_what_is_below(pybuild: Pybuild) -> None:
    """Of a file that is left out, as it is below, the links of an archive are one file again."""
    old = tar(("f", FILE, "1" * 5000))
    new = tar(("f", FILE, "1" * 5000), *((f"h{n}", HARD, "f") for n in range(5)))
    layer = pybuild.build("FROM scratch\nADD old /\nADD new /\n", {"old": old, "new": new}).layers[-1]
    assert [entry.islnk() for entry in layer.entries.values()] == [False, True, True, True, True]
    inside = tar(("d", DIR, ""), ("d/f", FILE, "1"), ("d", HARD, "d/f"))
    assert "takes the place of what it names" in pybuild.refuse("FROM scratch\nADD a /\n", {"a": inside})


MAPS = {
    "odd": {"map": "1"},
    "behind-the-end": {"map": "1048575,3"},
    "falling": {"map": "500000,3,0,0"},
    "more-than-stored": {"map": "0,100000"},
    "no-number": {"map": "0,-3"},
    "size": {"size": "99999999999999999999"},
    "beyond-all-disks": {"size": str(1 << 49), "map": f"499712,4096,{1 << 49},0"},
}


@pytest.mark.parametrize("records", MAPS.values(), ids=MAPS.keys())
def test_sparse_that_lies(pybuild: Pybuild, tmp_path: Path, records: dict[str, str]) -> None:
    data = edited(sparse("0.1", tmp_path), **records)
    whole = tar(("f", FILE, "1"))[:1024] + data
    said = pybuild.refuse("FROM scratch\nADD a /\n", {"a": whole})
    assert "sparse file" in said or "more than there is space for" in said


def test_not_unpacked_but_an_archive(pybuild: Pybuild, tmp_path: Path) -> None:
    """A tar whose first member nothing can be made of is not silently copied."""
    (tmp_path / "f").write_text("1")
    label = subprocess.check_output(["tar", "-V", "name", "-C", tmp_path, "-c", "f"])
    assert "members of type" in pybuild.refuse("FROM scratch\nADD a /\n", {"a": label})


@pytest.mark.parametrize(("mtime", "seen"), [(-5, 0), (1 << 50, 0), (7, 7)])
def test_odd_times_of_an_archive(pybuild: Pybuild, mtime: int, seen: int) -> None:
    buffer = io.BytesIO()
    info = tarfile.TarInfo("f")
    info.mtime = mtime
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as made:
        made.addfile(info)
    assert pybuild.build("FROM scratch\nADD a /\n", {"a": buffer.getvalue()}).root()["f"][0].mtime == seen


def test_folders_on_the_way_below_a_setgid_one(pybuild: Pybuild) -> None:
    """T35: they take its group, as untar leaves them, but not its mark."""
    text = "FROM busybox\nRUN mkdir /s && chown 0:5 /s && chmod 2755 /s\nADD a /s/\n"
    root = pybuild.build(text, {"a": tar(("x/y/f", FILE, "1"))}, "--network=none").root()
    looks = {name: (root[name][0].mode, root[name][0].gid) for name in ("s/x", "s/x/y")}
    assert looks == {"s/x": (0o755, 5), "s/x/y": (0o755, 0)}


def test_owner_of_an_archive(pybuild: Pybuild) -> None:
    """T36: of every entry and of the destination; T35: parents that the archive lacks are root's."""
    files: Tree = {"a": tar(("x/f", FILE, "1"))}
    root = pybuild.build("FROM scratch\nADD --chown=5:6 a /d\nADD a /e\n", files).root()
    assert [(root[p][0].uid, root[p][0].gid) for p in ("d", "d/x", "d/x/f")] == [(5, 6), (0, 0), (5, 6)]
    assert [(root[p][0].uid, root[p][0].mode) for p in ("e", "e/x", "e/x/f")] == [
        (0, 0o755),
        (0, 0o755),
        (7, 0o640),
    ]


HOSTILE = {
    "dotdot": tar(("../f", FILE, "x")),
    "dotdot-inside": tar(("a/../../f", FILE, "x")),
    "hard-link-out": tar(("h", HARD, "../../etc/passwd")),
    "T38-whiteout": tar((".wh.f", FILE, "")),
    "missing-link": tar(("h", HARD, "nope")),
    "damaged-later": gzip.compress(tar(("f", FILE, "x" * 200_000)))[:-200] + b"garbage" * 20,
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_archive(pybuild: Pybuild, data: bytes) -> None:
    said = pybuild.refuse("FROM scratch\nCOPY f /f\nADD evil /d\n", {"evil": data, "f": "1"})
    assert "Dockerfile:3" in said


def test_links_of_an_archive_stay_inside(pybuild: Pybuild) -> None:
    """UNP, T34: an absolute link and then a file through it: inside the destination."""
    data = tar(("l", LINK, "/tmp"), ("l/BREAKOUT", FILE, "x"))
    tree = pybuild.build("FROM scratch\nADD evil /d\n", {"evil": data}).tree()
    assert tree["d/tmp/BREAKOUT"] == "x" and "tmp" not in tree


CLAMPED: dict[str, tuple[list[tuple[str, bytes, str]], str]] = {
    "to the parent": ([("d", LINK, ".."), ("d/etc/f", FILE, "x")], "x/etc/f"),
    "far above": ([("m", LINK, "../../../.."), ("m/f", FILE, "x")], "x/f"),
    "above, from a folder": ([("a", DIR, ""), ("a/m", LINK, "../../../etc"), ("a/m/f", FILE, "x")], "x/etc/f"),
    "through what is not there": ([("m", LINK, "no/../../../etc"), ("m/f", FILE, "x")], "x/etc/f"),
    "link to a link": ([("k", LINK, "/m"), ("m", LINK, "../b"), ("k/f", FILE, "x")], "x/b/f"),
    "hard link": ([("t/f", FILE, "x"), ("m", LINK, "../.."), ("h", HARD, "m/t/f")], "x/h"),
}  # fmt: skip


@pytest.mark.parametrize(("members", "path"), CLAMPED.values(), ids=CLAMPED.keys())
@pytest.mark.parametrize("made", ["", "COPY f /x/there\n"], ids=["new", "existing"])
def test_links_take_the_destination_for_the_root(
    pybuild: Pybuild, members: list[tuple[str, bytes, str]], path: str, made: str
) -> None:
    """T34: ``..`` of a link stops there, as for a process whose root it is."""
    files: Tree = {"evil": tar(*members), "f": "1"}
    tree = pybuild.build(f"FROM scratch\n{made}ADD evil /x/\n", files).tree()
    assert tree[path] == "x" and all(name.split("/")[0] == "x" for name in tree)


def test_devices_of_an_archive_are_skipped(pybuild: Pybuild) -> None:
    """T39: what is there in their place stays; a pipe is as good as any file."""
    data = tar(("p", tarfile.FIFOTYPE, ""), ("c", tarfile.CHRTYPE, ""), ("f", FILE, "new"))
    files: Tree = {"evil": data, "c": "old"}
    root = pybuild.build("FROM scratch\nCOPY c /d/\nADD evil /d\n", files).root()
    assert sorted(root) == ["d", "d/c", "d/f", "d/p"] and root["d/c"][1] == b"old" and root["d/p"][0].isfifo()


def test_links_of_an_archive_bring_their_looks(pybuild: Pybuild) -> None:
    """The last of a file's names decides on its mode; a symbolic link has none of its own."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        for name, kind, mode in (("f", FILE, 0o644), ("h", HARD, 0o600), ("l", LINK, 0o644)):
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.linkname = kind, mode, "f" if kind != FILE else ""
            made.addfile(info)
    root = pybuild.build("FROM scratch\nADD a /\n", {"a": buffer.getvalue()}).root()
    assert (root["f"][0].mode, root["l"][0].mode) == (0o600, 0o777)


def test_parents_keep_their_owner(pybuild: Pybuild) -> None:
    """T25: a directory that exists only takes the mode of one that is copied for what is in it."""
    text = "FROM scratch\nCOPY --parents --chown=5:6 d/f /o/\nCOPY --parents d/g /o/\n"
    root = pybuild.build(text, {"d": {"f": "1", "g": "2"}}).root()
    assert (root["o/d"][0].uid, root["o/d/f"][0].uid, root["o/d/g"][0].uid) == (5, 5, 0)


def test_archive_that_replaces_a_folder_twice(pybuild: Pybuild) -> None:
    """A folder of below that an archive makes a file, or a link, and a folder again has what came since."""
    archive = tar(
        ("d", FILE, ""), ("d", DIR, ""), ("d/new", FILE, "1"), ("d/s", DIR, ""), ("d/s/f", FILE, "2"),
        ("l", LINK, "d"), ("l", DIR, ""),
    )  # fmt: skip
    text = "FROM scratch AS made\nCOPY in /\nADD a.tar /\nFROM scratch\nCOPY --from=made / /\n"
    below: Tree = {"d": {"old": "0", "s": {"old": "0", "f": "0"}}, "l": {"old": "0"}}
    image = pybuild.build(text, {"in": below, "a.tar": archive})
    assert image.tree() == {"d": "DIR", "d/new": "1", "d/s": "DIR", "d/s/f": "2", "l": "DIR"}
    layer = pybuild.build("FROM scratch\nCOPY in /\nADD a.tar /\n", {"in": below, "a.tar": archive}).layers[
        -1
    ]
    assert layer.names == ["d", "d/new", "d/.wh.old", "d/s", "d/s/f", "d/s/.wh.old", "l", "l/.wh.old"]


def test_hostile_shapes_are_linear(pybuild: Pybuild) -> None:
    """Folders one in the other, and hard links whose times alternate: as long as they are, and no longer."""
    deep = tar(*(("/".join(["d"] * depth), DIR, "") for depth in range(1, 500)))
    members = [("a", FILE, "1"), *((f"l{count}", HARD, "a") for count in range(3000))]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        for count, (name, kind, text) in enumerate(members):
            info = tarfile.TarInfo(name)
            info.type, info.mtime = kind, count % 2
            info.linkname, info.size = (text, 0) if kind == HARD else ("", len(text))
            made.addfile(info, io.BytesIO(text.encode()))
    context = pybuild.context("FROM scratch\nADD deep links /\n", {"deep": deep, "links": buffer.getvalue()})
    started = os.times()
    layer = pybuild.export(context).layers[-1]
    ended = os.times()
    assert ended.children_user - started.children_user < 5
    assert len(layer.names) == 499 + 3001
    assert {entry.mtime for name, entry in layer.entries.items() if not entry.isdir()} == {0}
    assert sum(entry.islnk() for entry in layer.entries.values()) == 3000


def test_cancelled_while_an_archive_is_unpacked(fresh: Pybuild) -> None:
    archive = tar(*((f"d{count % 50}/f{count}", FILE, "1") for count in range(8_000)))
    context = fresh.context("FROM scratch\nADD a /\n", {"a": archive})
    words, env = command(fresh, context)
    with subprocess.Popen(words, env=env, stderr=subprocess.PIPE) as build:
        end = time.monotonic() + 20
        while not list(fresh.store.glob("tmp/*/*/fs/d0")):
            assert time.monotonic() < end
            time.sleep(0.01)
        build.send_signal(signal.SIGINT)
        said = build.communicate(timeout=20)[1]
    assert build.returncode == 130 and b"Traceback" not in said and b"cancelled" in said
    assert not list(fresh.store.glob("tmp/*"))
