"""What a step changed is what its layer holds, and nothing else (T76 to T87)."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
from archives import DIR, FILE, HARD, LINK, tar
from harness import PYBUILD, Pybuild
from oci import Image, Layer

pytestmark = pytest.mark.e2e

NONE = ("--network=none",)


def last(pybuild: Pybuild, *lines: str) -> Layer:
    """The layer of the last line."""
    return pybuild.build("\n".join(["FROM busybox", *lines, ""]), None, *NONE).layers[-1]


CHANGES: dict[str, tuple[list[str], list[str]]] = {
    "nothing": (["RUN true"], []),
    "T80-parents": (["RUN mkdir -p /a/b && echo 1 > /a/b/c", "RUN echo 2 > /a/b/d"], ["a", "a/b", "a/b/d"]),
    "T76-removed": (["RUN echo 1 > /f", "RUN rm /f"], [".wh.f"]),
    "T76-removed-deep": (["RUN mkdir -p /a/b && echo 1 > /a/b/c", "RUN rm /a/b/c"], ["a", "a/b", "a/b/.wh.c"]),
    "removed-tree": (["RUN mkdir -p /a/b && echo 1 > /a/b/c", "RUN rm -r /a"], [".wh.a"]),
    "T77-recreated": (
        ["RUN mkdir /a && echo 1 > /a/x && echo 2 > /a/y", "RUN rm -r /a && mkdir /a && echo 3 > /a/y"],
        ["a", "a/.wh.x", "a/y"],
    ),
    "T77-recreated-deep": (
        ["RUN mkdir -p /a/b && echo 1 > /a/b/x", "RUN rm -r /a && mkdir -p /a/b"],
        ["a", "a/b", "a/b/.wh.x"],
    ),
    "T79-made-and-removed": (["RUN echo 1 > /f && rm /f && mkdir /d && rmdir /d"], []),
    "T78-renamed-directory": (
        ["RUN mkdir -p /a/b && echo 1 > /a/b/x", "RUN mv /a /c"],
        [".wh.a", "c", "c/b", "c/b/x"],
    ),
    "T80-touched-not-changed": (["RUN mkdir /a && echo 1 > /a/x", "RUN cat /a/x && ls /a"], []),
    "T80-time-of-a-folder": (["RUN mkdir /a", "RUN touch -d @100 /a && chmod 700 /a && chmod 755 /a"], []),
    "T80-made-and-removed-in-a-folder": (["RUN mkdir /a", "RUN echo 1 > /a/x && rm /a/x"], []),
    "equal-again": (["RUN echo 1 > /f && touch -d @100 /f", "RUN echo 1 > /f && chown 0:0 /f && touch -d @100 /f"], []),
    "equal-by-looks": (["RUN echo 1 > /f && touch -d @100 /f", "RUN echo 2 > /f && touch -d @100 /f"], ["f"]),
    "link-to-what-was-there": (["RUN echo 1 > /f", "RUN ln /f /a && ln /f /z"], ["a", "z"]),
    "T80-mode-of-a-folder": (["RUN mkdir /a", "RUN chmod 700 /a"], ["a"]),
    "chmod-and-back": (["RUN mkdir /a", "RUN chmod 700 /a && chmod 755 /a"], []),
    "mode-only": (["RUN echo 1 > /f", "RUN chmod 600 /f"], ["f"]),
    "directory-to-file": (["RUN mkdir /a && echo 1 > /a/x", "RUN rm -r /a && echo 2 > /a"], ["a"]),
    "file-to-directory": (["RUN echo 1 > /a", "RUN rm /a && mkdir /a && echo 2 > /a/x"], ["a", "a/x"]),
    "file-to-link": (["RUN echo 1 > /a", "RUN ln -sf b /a"], ["a"]),
    "link-replaced": (["RUN ln -s b /a", "RUN ln -sfn c /a"], ["a"]),
    "T85-stubs": (["RUN rm -rf /tmp/x; ls /dev /proc /sys > /dev/null; echo > /dev/shm/x"], []),
    "T84-order": (["RUN mkdir /o && cd /o && touch b a.b a a-b && mkdir a0"],
                  ["o", "o/a", "o/a-b", "o/a.b", "o/a0", "o/b"]),
    "workdir-new": (["WORKDIR /w/x"], ["w", "w/x"]),
    "T59-workdir-there": (["RUN mkdir /w", "WORKDIR /w"], []),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "names"), CHANGES.values(), ids=CHANGES.keys())
def test_entries(pybuild: Pybuild, lines: list[str], names: list[str]) -> None:
    assert last(pybuild, *lines).names == names


SAME = "COPY d /d"
COPIES: dict[str, tuple[list[str], list[str]]] = {
    "all-again": ([SAME, SAME], []),
    "folder-inside-again": ([SAME, "COPY d/e /d/e"], []),
    "one-before": (["COPY d/f /d/", SAME], ["d", "d/e", "d/e/x", "d/l", "d/n", "d/p"]),
    "one-gone": ([SAME, "RUN rm /d/e/x", SAME], ["d", "d/e", "d/e/x"]),
    "second-name-gone": ([SAME, "RUN rm /d/n", SAME], ["d", "d/n"]),
    "owner": ([SAME, "COPY --chown=1 d /d"], ["d", "d/e", "d/e/x", "d/f", "d/l", "d/n", "d/p"]),
    "mode": ([SAME, "COPY --chmod=600 d /d"], ["d", "d/e", "d/e/x", "d/f", "d/n", "d/p"]),
    "linked": ([SAME, "COPY --link d /d"], ["d", "d/e", "d/e/x", "d/f", "d/l", "d/n", "d/p"]),
    "equal-by-looks": (
        ["RUN mkdir -p /d/e && echo 2 > /d/e/x && touch -d @1000000000 /d/e/x", "COPY d/e /d/e"], ["d", "d/e", "d/e/x"]
    ),
    "made-by-a-step": (["RUN mkdir -p /d/e && echo 1 > /d/e/x && touch -d @1000000000 /d/e/x", "COPY d/e /d/e"], []),
    "archive": (["ADD a.tar /d", "ADD a.tar /d"], []),
    "archive-over-changed": (["ADD a.tar /d", "RUN echo >> /d/f", "ADD a.tar /d"], ["d", "d/f", "d/g"]),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "names"), COPIES.values(), ids=COPIES.keys())
def test_copied_again(pybuild: Pybuild, lines: list[str], names: list[str]) -> None:
    """What is below as it was to be copied is not in the layer, by content; folders count without times."""
    context = pybuild.context(
        "\n".join(["FROM busybox", *lines, ""]),
        {
            "d": {"f": "0", "l": "-> f", "e": {"x": "1\n"}},
            "a.tar": tar(("f", FILE, "1"), ("g", HARD, "f"), ("e", DIR, ""), ("l", LINK, "f")),
        },
    )
    os.link(context / "d/f", context / "d/n")
    os.mkfifo(context / "d/p")
    for path in (context / "d").rglob("*"):  # they are not in keys: a cached COPY may have others
        os.utime(path, (10**9, 10**9), follow_symlinks=False)
    layer = pybuild.export(context, *NONE).layers[-1]
    assert layer.names == names
    if "d/n" in names and "d/f" not in names:
        assert not layer.entries["d/n"].islnk()


def test_kinds_and_modes(pybuild: Pybuild) -> None:
    """T83, T20: every kind of file as it is, hard links as links."""
    layer = last(
        pybuild,
        "RUN mkdir /d && cd /d && echo 1 > f && chmod 6755 f && ln f g && ln -s f l && mkfifo p && "
        "mkdir t && chmod 1777 t && chown 12:34 p && chown -h 5:6 l",
    )
    entries = layer.entries
    assert entries["d/f"].mode == 0o6755
    assert entries["d/g"].islnk() and entries["d/g"].linkname == "d/f"
    assert entries["d/l"].issym() and (entries["d/l"].uid, entries["d/l"].gid) == (5, 6)
    assert entries["d/p"].isfifo() and (entries["d/p"].uid, entries["d/p"].gid) == (12, 34)
    assert entries["d/t"].isdir() and entries["d/t"].mode == 0o1777


def test_hard_link_to_a_file_of_below(pybuild: Pybuild) -> None:
    """A new name for an old file: both names hold the content."""
    image = pybuild.build("FROM busybox\nRUN echo 1 > /f\nRUN ln /f /g\n", None, *NONE)
    assert image.read("g") == image.read("f") == b"1\n"


def test_whiteout_form(pybuild: Pybuild) -> None:
    """T76: an empty regular file of 1970."""
    entry = last(pybuild, "RUN echo 1 > /f", "RUN rm /f").entries[".wh.f"]
    assert (entry.isreg(), entry.size, entry.mtime) == (True, 0, 0)


def test_header_form(pybuild: Pybuild) -> None:
    """T81: whole seconds, numbers only, no access times."""
    layer = last(pybuild, "RUN touch -d '2001-02-03 04:05:06' /f && mkdir /d")
    for entry in layer.entries.values():
        assert (entry.uname, entry.gname) == ("", "")
        assert not {"atime", "ctime", "mtime"} & set(entry.pax_headers)
    assert layer.entries["f"].mtime == 981173106


def test_long_and_odd_names(pybuild: Pybuild) -> None:
    """Names of 255 bytes, deep paths, bytes that are no text."""
    layer = last(
        pybuild,
        "RUN cd / && n=$(printf 'n%.0s' $(seq 255)) && echo 1 > $n && ln -s $n$n l && "
        "d=$(printf 'd%.0s' $(seq 100)) && mkdir -p $d/$d/$d && echo 2 > $d/$d/$d/x && echo 3 > \"$(printf 'a\\nb')\"",
    )
    long, deep = "n" * 255, "/".join(["d" * 100] * 3) + "/x"
    assert layer.contents[long] == b"1\n"
    assert layer.entries["l"].linkname == long * 2
    assert layer.contents[deep] == b"2\n"
    assert layer.contents["a\nb"] == b"3\n"


def test_extended_attributes(pybuild: Pybuild) -> None:
    """T82: user.* of the context stay and capabilities of images; overlay's own never show.

    A capability of the context is gone, as chown(2) takes it away.
    """
    text = "FROM busybox AS made\nADD b.tar /m/\nFROM busybox\nCOPY f c /\nCOPY --from=made /m/b /b\n"
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    member = tarfile.TarInfo("b")
    member.pax_headers = {"SCHILY.xattr.security.capability": capability.decode("utf-8", "surrogateescape")}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member)
    context = pybuild.context(text, {"f": "1", "c": "2", "b.tar": archive.getvalue()})
    os.setxattr(context / "f", "user.note", b"kept")
    os.setxattr(context / "c", "security.capability", capability)
    image = pybuild.export(context)
    by_name = {name: entry for layer in image.layers[1:] for name, entry in layer.entries.items()}
    assert by_name["f"].pax_headers == {"SCHILY.xattr.user.note": "kept"} and not by_name["c"].pax_headers
    raw = by_name["b"].pax_headers["SCHILY.xattr.security.capability"]
    assert raw.encode("utf-8", "surrogateescape") == capability
    for layer in image.layers:
        for entry in layer.entries.values():
            assert not [key for key in entry.pax_headers if "overlay" in key]


def test_forged_overlay_marks(pybuild: Pybuild) -> None:
    """A step that writes overlay's own attributes or whiteout devices fools nobody."""
    layer = last(
        pybuild,
        "RUN mkdir /a && echo 1 > /a/x && echo 2 > /victim",
        "RUN (setfattr -n user.overlay.opaque -v y /a || true) 2>/dev/null; (mknod /victim2 c 0 0 || true) 2>/dev/null",
    )
    assert not [name for name in layer.names if ".wh." in name]


def test_root_directory_changed(pybuild: Pybuild) -> None:
    """What a step does to / itself ends with it, as no layer holds it (BuildKit's too)."""
    image = pybuild.build("FROM busybox\nRUN chmod 700 /\nRUN stat -c %a / > /mode\n", None, *NONE)
    assert image.read("mode") == b"755\n"


def test_sparse_and_large(pybuild: Pybuild) -> None:
    """A sparse gigabyte neither fills the store nor changes."""
    before = _used(pybuild.store)
    context = pybuild.context(
        "FROM busybox\nRUN truncate -s 1G /big && echo end >> /big\nRUN tail -c 4 /big > /t\n"
    )
    pybuild(*NONE, "-t", "sparse", context).ok()
    assert _used(pybuild.store) - before < 50 << 20
    assert pybuild("run", "--network=none", "sparse", "cat", "/t").out == "end\n"


def _used(folder: Path) -> int:
    return sum(os.lstat(os.path.join(b, n)).st_blocks * 512 for b, _, names in os.walk(folder) for n in names)


# -- import and load -----------------------------------------------------------------------


def make_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    import io

    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for field, value in fields.items():
        setattr(made, field, value)
    return made


@pytest.mark.parametrize("how", ["plain", "gzip", "xz", "zstd"])
def test_import_compressed(pybuild: Pybuild, tmp_path: Path, how: str) -> None:
    plain = make_tar(
        tmp_path / "root.tar", (member("etc", tarfile.DIRTYPE, mode=0o755), b""), (member("etc/f"), b"hi")
    )
    data = plain.read_bytes()
    if how != "plain":
        data = subprocess.run([how, "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout
    (tmp_path / "root").write_bytes(data)
    pybuild("import", tmp_path / "root", "imported").ok()
    image = pybuild.build("FROM imported\n")
    assert image.read("etc/f") == b"hi"
    assert len(image.layers) == 1


def test_import_keeps_everything(pybuild: Pybuild, tmp_path: Path) -> None:
    """Devices, owners, modes, times, attributes: unpacked and packed again, the same layer."""
    members = [
        (member("dev", tarfile.DIRTYPE, mode=0o1755, uid=3, mtime=1000), b""),
        (member("dev/null", tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3, mtime=2000), b""),
        (
            member(
                "f",
                mode=0o4755,
                uid=70000,
                gid=80000,
                mtime=123456789,
                pax_headers={"SCHILY.xattr.user.a": "b"},
            ),
            b"x",
        ),
        (member("g", tarfile.LNKTYPE, linkname="f"), b""),
        (member("l", tarfile.SYMTYPE, linkname="/../../etc/passwd", mode=0o777), b""),
        (member("p", tarfile.FIFOTYPE, mode=0o600), b""),
    ]
    pybuild("import", make_tar(tmp_path / "r.tar", *members), "kept").ok()
    image: Image = pybuild.build("FROM kept AS k\nFROM scratch\nCOPY --from=k / /\n")
    for layer in (pybuild.build("FROM kept\n").layers[0], image.layers[0]):
        null = layer.entries["dev/null"]
        assert (null.ischr(), null.devmajor, null.devminor, null.mtime) == (True, 1, 3, 2000)
        file = layer.entries["f"]
        assert (file.mode, file.uid, file.gid, file.mtime) == (0o4755, 70000, 80000, 123456789)
        assert file.pax_headers["SCHILY.xattr.user.a"] == "b"
        assert layer.entries["g"].islnk() and layer.entries["l"].linkname == "/../../etc/passwd"
        assert stat.S_IMODE(layer.entries["dev"].mode) == 0o1755


HOSTILE: dict[str, list[tuple[tarfile.TarInfo, bytes]]] = {
    "dotdot": [(member("../escaped"), b"x")],
    "dotdot-inside": [(member("a/../../escaped"), b"x")],
    "link-then-through": [(member("l", tarfile.SYMTYPE, linkname="/tmp/OUT"), b""), (member("l/escaped"), b"x")],
    "relative-link-through": [(member("l", tarfile.SYMTYPE, linkname="../../../../../../tmp/OUT"), b""), (member("l/escaped"), b"x")],
    "hard-link-out": [(member("h", tarfile.LNKTYPE, linkname="/tmp/OUT/secret"), b"")],
    "hard-link-dotdot": [(member("h", tarfile.LNKTYPE, linkname="../../../../../../../tmp/OUT/secret"), b"")],
    "hard-link-through-link": [
        (member("l", tarfile.SYMTYPE, linkname="/tmp/OUT"), b""),
        (member("h", tarfile.LNKTYPE, linkname="l/secret"), b""),
    ],
    "whiteout-out": [(member("l", tarfile.SYMTYPE, linkname="/tmp/OUT"), b""), (member("l/.wh.secret"), b"")],
    "opaque-out": [(member("l", tarfile.SYMTYPE, linkname="/tmp/OUT"), b""), (member("l/.wh..wh..opq"), b"")],
    "name-with-nul": [(member("a", pax_headers={"path": "a\0b"}), b"x")],
    "negative-size": [(member("a", pax_headers={"size": "-1"}), b"x")],
    "huge-size": [(member("a", pax_headers={"size": str(1 << 70)}), b"x")],
    "overlay-mark": [(member("a", tarfile.DIRTYPE, pax_headers={"SCHILY.xattr.user.overlay.opaque": "y"}), b"")],
    "endless-name": [(member("a", pax_headers={"path": "x/" * 60000}), b"x")],
}  # fmt: skip


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_archive(fresh: Pybuild, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    """Refused, or kept inside the root: nothing outside is made, changed, removed or read (UNP)."""
    outside = fresh.work / "outside"
    outside.mkdir()
    (outside / "secret").write_text("SECRET")
    for entry, _ in members:
        entry.linkname = entry.linkname.replace("/tmp/OUT", str(outside))
    done = fresh("import", make_tar(fresh.work / "evil.tar", *members), "evil")
    assert "Traceback" not in done.err
    assert {p.name: p.read_text() for p in outside.iterdir()} == {"secret": "SECRET"}
    assert os.stat(outside / "secret").st_nlink == 1
    if done.code == 0:
        image = fresh.build("FROM evil\nFROM evil\n")
        assert b"SECRET" not in b"".join(layer.data for layer in image.layers)
    else:
        assert done.code == 1 and done.err.count("error: ") == 1
        assert "evil" not in fresh("images").out
        assert not list((fresh.store / "tmp").iterdir())


@pytest.mark.parametrize("cut", [1, 511, 700, 1023, 1024, 1536, 1800, 2048, 2500])
@pytest.mark.parametrize("how", ["cat", "gzip", "zstd"])
def test_truncated_archive(fresh: Pybuild, cut: int, how: str) -> None:
    """Cut anywhere, between two members too: nothing is imported."""
    path = make_tar(fresh.work / "t.tar", (member("f"), b"x" * 600), (member("g"), b"y"))
    data = path.read_bytes()[:cut]
    path.write_bytes(subprocess.run([how], input=data, stdout=subprocess.PIPE, check=True).stdout)
    fresh("import", path, "cut").failed()
    assert not list((fresh.store / "tmp").iterdir())
    assert "cut" not in fresh("images").out


@pytest.mark.parametrize("how", ["cat", "gzip", "zstd"])
def test_nothing_imported(pybuild: Pybuild, how: str) -> None:
    """Nothing at all is the root of an image without files."""
    (pybuild.work / "nothing").write_bytes(subprocess.check_output([how], input=b""))
    pybuild("import", pybuild.work / "nothing", "nothing").ok()
    assert pybuild.build("FROM nothing\nCOPY Dockerfile /\n").layers[0].names == []


def test_whiteout_name_made_by_a_step(pybuild: Pybuild) -> None:
    """A file named like a whiteout would remove another in the image: it is refused."""
    said = pybuild.refuse("FROM busybox\nRUN echo 1 > /.wh.bin\n", None, *NONE)
    assert ".wh.bin" in said and "Dockerfile:2" in said and "^" in said


def test_equal_layers_are_one_tree(fresh: Pybuild) -> None:
    """What one step does to a root that it shares with another is not seen there."""
    victim = fresh.context("FROM busybox\nRUN echo 1 > /f\n", name="victim")
    evil = fresh.context("FROM busybox\nRUN echo 1 > /f; touch -d @0 /f; chmod 000 /\n", name="evil")
    for context in (victim, evil):
        fresh("--network=none", "-t", context.name, context).ok()
    for name in ("victim", "evil"):
        assert fresh("run", "--network=none", name, "stat", "-c", "%a", "/").out == "755\n"
    marked = member("d", tarfile.DIRTYPE, mode=0o755), member("d/.wh..wh..opq"), member("d/f")
    plain = member("d", tarfile.DIRTYPE, mode=0o755), member("d/f")
    for name, members in (("marked", marked), ("plain", plain)):
        fresh("import", make_tar(fresh.work / f"{name}.tar", *((m, b"") for m in members)), name).ok()
    for name in ("marked", "plain"):
        assert fresh.build(f"FROM {name}\n").layers[0].names == ["d", "d/f"]


def test_equal_layers_in_one_image(fresh: Pybuild) -> None:
    """A layer that comes twice in an image: the image is a base as any other."""
    lines = (
        "RUN echo 1 > /f; touch -d @0 /f\nRUN rm /f\nRUN echo 1 > /f; touch -d @0 /f\nRUN true\nRUN true\n"
    )
    fresh("--network=none", "-t", "twice", fresh.context(f"FROM busybox\n{lines}")).ok()
    image = fresh.export(fresh.context("FROM twice\nRUN cat /f > /g\n"), *NONE)
    assert image.read("g") == b"1\n"
    diff_ids = image.config["rootfs"]["diff_ids"]
    assert len(set(diff_ids)) < len(diff_ids)


def test_deep_and_wide_trees_are_removed(fresh: Pybuild) -> None:
    """With few descriptors, too: what a step leaves is removed in bounded space."""
    command = (
        "i=0; while [ $i -lt 300 ]; do mkdir d && cd d && i=$((i+1)); done; seq 2000 | xargs touch; false"
    )
    context = fresh.context(f"FROM busybox\nRUN {command}\n")
    done = subprocess.run(
        ["prlimit", "--nofile=200", PYBUILD, *NONE, context],
        env=fresh.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert not list((fresh.store / "tmp").iterdir())


@pytest.mark.parametrize("isolation", ["namespaces", "chroot"])
def test_change_far_down(pybuild: Pybuild, isolation: str) -> None:
    """A RUN changes what lies as deep as another could make it."""
    down = "cd /t && i=0; while [ $i -lt 450 ]; do {} cd d || exit 1; i=$((i+1)); done;"
    text = (
        f"FROM busybox\nRUN mkdir /t; {down.format('mkdir d &&')} echo one > f; echo > g\n"
        f"RUN {down.format('')} echo two > f; rm g\n"
    )
    image = pybuild.build(text, None, "--network=none", f"--isolation={isolation}")
    deep = "t/" + "d/" * 450
    changed = [name for name in image.layers[-1].names if image.layers[-1].entries[name].isfile()]
    assert image.read(deep + "f") == b"two\n" and set(changed) == {f"{deep}f", f"{deep}.wh.g"}
