"""COPY as BuildKit does it: paths, trees, links, owners, modes, times (T1 to T29)."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest
from harness import PYBUILD, Pybuild, Tree

pytestmark = pytest.mark.e2e

SUB: Tree = {"sub": {"a.txt": "a", "dir1": {"dir2": {"foo": "foo"}}}, "x.txt": "x", ".hidden": "h"}

TREES: list[tuple[str, Tree, str, dict[str, str]]] = [
    ("T1-contents", SUB, "COPY sub /d", {"d/a.txt": "a", "d/dir1/dir2/foo": "foo"}),
    ("T1-slash", SUB, "COPY sub/ /d", {"d/a.txt": "a", "d/dir1/dir2/foo": "foo"}),
    ("T1-dot", SUB, "COPY sub/. /d/", {"d/a.txt": "a", "d/dir1/dir2/foo": "foo"}),
    ("T1-everything", {"a": "1", "d": {"b": "2"}, ".dockerignore": "Dockerfile"}, "COPY . /c/", {"c/a": "1", "c/d/b": "2", "c/.dockerignore": "Dockerfile"}),
    ("T2-wildcard-flattens", SUB, "COPY sub/* /d/", {"d/a.txt": "a", "d/dir2/foo": "foo"}),
    ("T3-rename", SUB, "COPY x.txt /d", {"d": "x"}),
    ("T3-into", SUB, "COPY x.txt /d/", {"d/x.txt": "x"}),
    ("T3-existing-dir", SUB, "COPY sub/dir1 /d\nCOPY x.txt /d", {"d/dir2/foo": "foo", "d/x.txt": "x"}),
    ("T3-parents", SUB, "COPY x.txt /p/q/r", {"p/q/r": "x"}),
    ("T4-several-no-slash", {"a": "1", "b": "2"}, "COPY a b /d", {"d": "2"}),
    ("T5-dot", SUB, "WORKDIR /w\nCOPY x.txt .", {"w/x.txt": "x"}),
    ("T5-empty", SUB, "WORKDIR /w\nCOPY x.txt $nothing", {"w/x.txt": "x"}),
    ("T5-quoted-empty", SUB, 'WORKDIR /w\nCOPY ["x.txt", ""]', {"w/x.txt": "x"}),
    ("T6-nothing-matches", SUB, "COPY *.none /d/", {}),
    ("T7-star-stops", SUB, "COPY */a.txt /d/", {"d/a.txt": "a"}),
    ("T7-star-no-slash", SUB, "COPY s*2 /d/", {}),
    ("T7-class", {"a1": "1", "a2": "2", "a3": "3"}, "COPY a[12] /d/", {"d/a1": "1", "d/a2": "2"}),
    ("T7-negated-class", {"a1": "1", "a2": "2"}, "COPY a[^1] /d/", {"d/a2": "2"}),
    ("T7-literal-bracket", {"a[0].txt": "1"}, "COPY a[[]0].txt /d/", {"d/a[0].txt": "1"}),
    ("T7-question", {"ab": "1", "abc": "2"}, "COPY a? /d/", {"d/ab": "1"}),
    ("T7-two-stars-are-one", {"a": {"b": {"c": "1"}, "c": "2"}}, "COPY a/**/c /d/", {"d/c": "1"}),
    ("T7-dotfiles-match", {"x": {".a": "1", "b": "2"}}, "COPY x/* /d/", {"d/.a": "1", "d/b": "2"}),
    ("T8-clamped", SUB, "COPY ../../x.txt /d/", {"d/x.txt": "x"}),
    ("T8-rooted", SUB, "COPY /sub/../x.txt /d/", {"d/x.txt": "x"}),
    ("T9-top-link", {"x": "1", "l": "-> x"}, "COPY l /d/", {"d/l": "1"}),
    ("T9-link-of-wildcard", {"x1": "1", "l1": "-> x1"}, "COPY l* /d/", {"d/l1": "1"}),
    ("T9-inner-link", {"s": {"l": "-> ../gone"}}, "COPY s /d", {"d/l": "-> ../gone"}),
    ("T9-link-to-dir", {"s": {"a": "1"}, "l": "-> s"}, "COPY l /d", {"d/a": "1"}),
    ("T10-component", {"s": {"a": "1"}, "l": "-> s"}, "COPY l/a /d/", {"d/a": "1"}),
    ("T10-absolute", {"s": {"a": "1"}, "l": "-> /s"}, "COPY l/a /d/", {"d/a": "1"}),
    ("T10-clamped", {"s": {"a": "1"}, "l": "-> ../../../s"}, "COPY l/a /d/", {"d/a": "1"}),
    ("T11-dest-link", {"s": {"l": "-> /real", "real": None}, "x": "1"},
     "COPY s /\nCOPY x /l/x", {"l": "-> /real", "real/x": "1"}),
    ("T11-dest-link-clamped", {"s": {"l": "-> ../../real", "real": None}, "x": "1"},
     "COPY s /\nCOPY x /l/x", {"l": "-> ../../real", "real/x": "1"}),
    ("T14-file-over-file", {"a": "1", "b": "2"}, "COPY a /f\nCOPY b /f", {"f": "2"}),
    ("T22-from-relative", {"a": "1"}, "WORKDIR /w\nCOPY a .\nFROM scratch\nWORKDIR /v\nCOPY --from=0 w/a .",
     {"v/a": "1"}),
    ("T23-literal-names", {"a%20b": "1", "ü": "2"}, "COPY a%20b ü /d/", {"d/a%20b": "1", "d/ü": "2"}),
    ("T23-backslash", {"a\\b": "1"}, 'COPY ["a\\\\\\\\b", "/d/"]', {"d/a\\b": "1"}),
    ("json-spaces", {"a b": "1"}, 'COPY ["a b", "/d e/"]', {"d e/a b": "1"}),
    ("variables", {"a": "1"}, "ENV X=a Y=/d\nCOPY $X ${Y}/z", {"d/z": "1"}),
    ("T3-dotdot-is-text", {"s": {"l": "-> r/s", "r": {"s": {"x": "1"}}}, "f": "2"},
     "COPY s /\nCOPY f /l/../y", {"l": "-> r/s", "r/s/x": "1", "y": "2"}),
    ("T3-dotdot-at-the-end", {"f": "1"}, "COPY f /x/y/..", {"x": "1"}),
    ("T3-dot-at-the-end", {"f": "1"}, "COPY f /x/.", {"x/f": "1"}),
    ("T23-no-break-space", {"a\xa0b": "1"}, 'COPY ["a\xa0b", "/c\xa0d"]', {"c\xa0d": "1"}),
    ("link-over-dir-merge", {"s": {"d": {"a": "1"}}, "t": {"d": {"b": "2"}}},
     "COPY s /\nCOPY t /", {"d/a": "1", "d/b": "2"}),
]  # fmt: skip


@pytest.mark.parametrize(("files", "lines", "expected"), [c[1:] for c in TREES], ids=[c[0] for c in TREES])
def test_tree(pybuild: Pybuild, files: Tree, lines: str, expected: dict[str, str]) -> None:
    image = pybuild.build(f"FROM scratch\n{lines}\n", files)
    assert {path: what for path, what in image.tree().items() if what != "DIR"} == expected


REFUSED: list[tuple[str, Tree, str, str]] = [
    ("T6-missing", {"a": "1"}, "COPY nope /d/", '"/nope": not found'),
    ("T9-outside", {"l": "-> /etc/hostname"}, "COPY l /d/", '"/l": not found'),
    ("T9-dangling-by-wildcard", {"s": {"l": "-> nope"}}, "COPY s/l* /d/", '"/s/nope": not found'),
    ("T7-malformed", {"a": "1"}, "COPY a[ /d/", "syntax error in pattern"),
    ("T14-dir-over-file", {"f": "1", "d": {"a": "2"}}, "COPY f /x\nCOPY d /x", "cannot copy to non-directory"),
    ("T14-file-over-dir", {"f": "1", "d": {"f": {"a": "2"}}}, "COPY d /x\nCOPY f /x/", "cannot replace"),
    ("T4-dir-among-several", {"f": "1", "d": {"a": "2"}}, "COPY f d /x", "cannot copy to non-directory"),
    ("T16-linked-name", {"f": "1"}, "COPY --link --chown=alice f /x", "users are not read"),
    ("wildcard-nowhere", {"f": "1"}, "COPY nowhere/*.c /x/", '"/nowhere": not found'),
    ("T19-chmod", {"f": "1"}, "COPY --chmod=64a f /x", "invalid chmod parameter: '64a'"),
    ("T19-chmod-large", {"f": "1"}, "COPY --chmod=10000 f /x", "invalid chmod parameter"),
    ("through-file", {"f": "1"}, "COPY f /x\nCOPY f /x/y", "/x"),
    ("ignored", {"f": "1", ".dockerignore": "f"}, "COPY f /x", '"/f": not found'),
    ("whiteout-name", {"s": {".wh.a": "1"}}, "COPY s /s", "begins with .wh."),
    ("endless-name", {"a": "1"}, f"COPY {'n' * 300} /x", "not found"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "lines", "says"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_refused(pybuild: Pybuild, files: Tree, lines: str, says: str) -> None:
    said = pybuild.refuse(f"FROM scratch\n{lines}\n", files)
    assert says in said
    assert "Dockerfile:" in said and "^" in said, "the line is shown"


def test_owner_and_mode_of_context_files(pybuild: Pybuild) -> None:
    """T15, T83: owners become 0:0; every mode bit stays."""
    context = pybuild.context("FROM scratch\nUSER 7:7\nCOPY s /s\n", {"s": {"f": "1", "d": {"g": "2"}}})
    os.chown(context / "s/f", 1000, 1001)
    os.chown(context / "s/d", 1000, 1001)
    (context / "s/f").chmod(0o6751)
    (context / "s/d").chmod(0o1777)
    root = pybuild.export(context).root()
    assert [(root[p][0].mode, root[p][0].uid, root[p][0].gid) for p in ("s/f", "s/d")] == [
        (0o6751, 0, 0),
        (0o1777, 0, 0),
    ]


def test_owner_of_stage_files_stays(pybuild: Pybuild) -> None:
    """T15: COPY --from keeps owners."""
    image = pybuild.build(
        "FROM scratch AS a\nCOPY --chown=5:6 s /s\nFROM scratch\nCOPY --from=a /s /t\nCOPY --from=a /s/f /u\n",
        {"s": {"f": "1", "d": {"g": "2"}}},
    )
    root = image.root()
    assert {p: (e.uid, e.gid) for p, (e, _) in root.items()} == {
        "t": (0, 0),
        "t/f": (5, 6),
        "t/d": (5, 6),
        "t/d/g": (5, 6),
        "u": (5, 6),
    }


def test_chown(pybuild: Pybuild) -> None:
    """T16, T17: names from the target's own passwd, variables, made parents too."""
    passwd = "root:x:0:0::/:/bin/sh\nbob:x:10:20::/:/bin/sh\n"
    image = pybuild.build(
        "FROM scratch\nCOPY etc /etc\nENV owner=bob group=staff\n"
        "COPY --chown=bob f /1\nCOPY --chown=${owner}:${group} f /2\nCOPY --chown=5 f /3\n"
        "COPY --chown=bob f /made/by/f\n",
        {"etc": {"passwd": passwd, "group": "root:x:0:\nstaff:x:50:\n"}, "f": "1"},
    )
    root = image.root()
    owners = {p: (root[p][0].uid, root[p][0].gid) for p in ("1", "2", "3", "made", "made/by", "made/by/f")}
    assert owners == {
        "1": (10, 20),
        "2": (10, 50),
        "3": (5, 5),
        "made": (10, 20),
        "made/by": (10, 20),
        "made/by/f": (10, 20),
    }


def test_existing_directory_keeps_its_owner(pybuild: Pybuild) -> None:
    """T13: the destination stays as it is, directories inside it are overwritten."""
    image = pybuild.build(
        "FROM scratch\nCOPY --chown=100:200 one /d\nCOPY --chown=7:8 deep /d2\nFROM scratch\n"
        "COPY --chown=500:600 one /there/\nCOPY --chown=1:2 --chmod=700 deep /there\nCOPY --from=0 /d /new\n",
        {"one": {"sub": {"a": "1"}}, "deep": {"sub": {"b": "2"}}},
    )
    root = image.root()
    got = {p: (root[p][0].uid, root[p][0].gid, oct(root[p][0].mode)) for p in ("there", "there/sub", "new")}
    assert got == {
        "there": (500, 600, "0o755"),
        "there/sub": (1, 2, "0o700"),
        "new": (0, 0, "0o755"),
    }


def test_chmod(pybuild: Pybuild) -> None:
    """T18: files, directories, and the parents made for them."""
    image = pybuild.build("FROM scratch\nCOPY --chmod=0751 s /p/q/\n", {"s": {"f": "1", "d": {"g": "2"}}})
    assert {oct(e.mode) for e, _ in image.root().values()} == {"0o751"}


def test_times(pybuild: Pybuild) -> None:
    """T28, T81: files and copied directories keep their times, in whole seconds."""
    context = pybuild.context("FROM scratch\nCOPY s /s/\n", {"s": {"d": {"f": "1"}}})
    for path, when in (("s/d/f", 1_000_000_000), ("s/d", 1_100_000_000)):
        os.utime(context / path, ns=(when * 10**9 + 999, when * 10**9 + 987_654_321))
    root = pybuild.export(context).root()
    assert (root["s/d/f"][0].mtime, root["s/d"][0].mtime) == (1_000_000_000, 1_100_000_000)


def test_hard_links(pybuild: Pybuild) -> None:
    """T20: kept within one copied tree, not across two."""
    context = pybuild.context("FROM scratch\nCOPY s /s\nCOPY t /t\n", {"s": {"a": "1"}, "t": {}})
    os.link(context / "s/a", context / "s/b")
    os.link(context / "s/a", context / "t/c")
    tree = pybuild.export(context).tree()
    assert (tree["s/a"], tree["s/b"], tree["t/c"]) == ("1", "= s/a", "1")


def test_socket_arrives_as_a_file(pybuild: Pybuild) -> None:
    """T21."""
    context = pybuild.context("FROM scratch\nCOPY s /s\n", {"s": {"a": "1"}})
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(context / "s/sock"))
    root = pybuild.export(context).root()
    assert root["s/sock"][0].isreg() and root["s/sock"][1] == b""


def test_fifo_and_device_in_the_context(pybuild: Pybuild) -> None:
    """A fifo is copied as one and never opened: the build does not hang."""
    context = pybuild.context("FROM scratch\nCOPY s /s\n", {"s": {}})
    os.mkfifo(context / "s/fifo")
    os.mknod(context / "s/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    root = pybuild.export(context).root()
    assert root["s/fifo"][0].isfifo()
    assert root["s/null"][0].ischr() and (root["s/null"][0].devmajor, root["s/null"][0].devminor) == (1, 3)


def test_directory_becomes_a_file(pybuild: Pybuild) -> None:
    """T24: and back, each build right."""
    for files, expected in (
        ({"s": {"x": {"y": "1"}}}, {"s/x/y": "1"}),
        ({"s": {"x": "2"}}, {"s/x": "2"}),
    ) * 2:
        tree = pybuild.build("FROM scratch\nCOPY s /s\n", files).tree()
        assert {p: w for p, w in tree.items() if w != "DIR"} == expected


def test_many_files(pybuild: Pybuild) -> None:
    """Layers packed while they are written are what packing them afterwards gives; also those
    that are not written in order, or in which a file is written twice.
    """
    many = {f"f{n:04}": str(n) for n in range(700)}
    other = {**{f"e{n:04}": str(n) for n in range(300)}, "f0007": "again"}
    files: Tree = {"a": many, "b": other}
    for lines, expected in (
        ("COPY a /x/", many),
        ("COPY a b /x/", {**many, **other}),
        ("COPY b a /x/", {**other, **many}),
        ("COPY a b /x/", {**many, **other}),
    ):
        tree = pybuild.build(f"FROM scratch\n{lines}\n", files).tree()  # the export packs it again
        assert tree == {"x": "DIR", **{f"x/{name}": text for name, text in expected.items()}}


def test_ignored_files_are_not_even_looked_at(pybuild: Pybuild) -> None:
    """T27, T110: what no COPY names and what is ignored may be unreadable."""
    files: Tree = {"s": {"f": "1", "secret": "2"}, "other": {"x": "3"}, ".dockerignore": "s/secret"}
    context = pybuild.context("FROM scratch\nCOPY s /s\n", files)
    (context / "s/secret").unlink()
    (context / "s/secret").symlink_to("secret")  # opening it fails, for root too
    (context / "other/x").chmod(0)
    assert pybuild.export(context).tree() == {"s": "DIR", "s/f": "1"}


def test_wildcard_that_matches_nothing_makes_nothing(pybuild: Pybuild) -> None:
    """T6: not even the destination."""
    assert pybuild.build("FROM scratch\nCOPY *.none /d/\n", {"a": "1"}).tree() == {}


def test_empty_stage(pybuild: Pybuild) -> None:
    """All of nothing is an empty folder."""
    assert pybuild.build("FROM scratch AS a\nFROM scratch\nCOPY --from=a / /y\n").tree() == {"y": "DIR"}


def test_root_needs_no_passwd(pybuild: Pybuild) -> None:
    """T16: root is 0 where there is no passwd; WORKDIR under a user nobody knows is 0's too."""
    text = "FROM scratch\nCOPY --chown=root:root f /f\nUSER nobody-knows\nWORKDIR /w\n"
    root = pybuild.build(text, {"f": "1"}).root()
    assert {(e.uid, e.gid) for e, _ in root.values()} == {(0, 0)}
    for user in ("nobody-knows", "5:nobody-knows"):  # nothing has been there to know them
        said = pybuild.refuse(f"FROM scratch\nUSER {user}\nWORKDIR /w\n")
        assert "'nobody-knows' in the image's /etc/" in said and "Dockerfile:3" in said


def test_deep_destination(pybuild: Pybuild) -> None:
    deep = "/".join(["d"] * 350)
    assert pybuild.build(f"FROM scratch\nCOPY f /{deep}/\n", {"f": "1"}).read(f"{deep}/f") == b"1"


def test_overlay_whiteout_in_the_context(pybuild: Pybuild) -> None:
    """A character device 0:0 is how an overlay spells "removed": it cannot be copied."""
    context = pybuild.context("FROM scratch\nCOPY s /s\n", {"s": {}})
    os.mknod(context / "s/w", 0o600 | stat.S_IFCHR, os.makedev(0, 0))
    assert "s/w" in pybuild(context).failed().err


IGNORES: list[tuple[str, str, set[str]]] = [
    ("name", "a", {"b", "d/a", "d/b", "d/e/a"}),
    ("any-depth", "**/a", {"b", "d/b"}),
    ("folder", "d", {"a", "b"}),
    ("slash-ends", "/d/", {"a", "b"}),
    ("exception", "d\n!d/e", {"a", "b", "d/e/a"}),
    ("exception-then-not", "d\n!d/e\nd/e/a", {"a", "b"}),
    ("all-but", "*\n!b", {"b"}),
    ("comment", "#a\n\n  b  ", {"a", "d/a", "d/b", "d/e/a"}),
    ("class", "[a]", {"b", "d/a", "d/b", "d/e/a"}),
    ("inner-star", "d/*", {"a", "b"}),
]


@pytest.mark.parametrize(("patterns", "left"), [c[1:] for c in IGNORES], ids=[c[0] for c in IGNORES])
def test_dockerignore(pybuild: Pybuild, patterns: str, left: set[str]) -> None:
    files: Tree = {"a": "1", "b": "2", "d": {"a": "3", "b": "4", "e": {"a": "5"}}}
    ignore = patterns + "\n.dockerignore\nDockerfile\n"
    tree = pybuild.build("FROM scratch\nCOPY . /\n", {**files, ".dockerignore": ignore}).tree()
    assert {p for p, w in tree.items() if w != "DIR"} == left


IGNORED: dict[str, tuple[str, str, str]] = {
    "link": ("l", "COPY l /x/", '"/l": not found'),
    "through-a-link": ("l", "COPY l/a /x/", '"/l/a": not found'),
    "target-of-a-link": ("t", "COPY l /x/", "not found"),
    "emptied": ("t\n!**/*.go", "COPY t /x", '"/t": not found'),
    "below-what-is-ignored": ("t", "COPY t/* /x/", '"/t": not found'),
}


@pytest.mark.parametrize(("patterns", "line", "says"), IGNORED.values(), ids=IGNORED.keys())
def test_ignored_means_not_there(pybuild: Pybuild, patterns: str, line: str, says: str) -> None:
    files: Tree = {".dockerignore": patterns, "t": {"a": "1"}, "l": "-> t"}
    assert says in pybuild.refuse(f"FROM scratch\n{line}\n", files)


def test_ignored_link_is_no_match(pybuild: Pybuild) -> None:
    files: Tree = {".dockerignore": "l", "t": {"a": "1"}, "l": "-> t", "lx": "2"}
    assert pybuild.build("FROM scratch\nCOPY l* /x/\n", files).tree() == {"x": "DIR", "x/lx": "2"}


@pytest.mark.parametrize("base", ["scratch", "busybox"])
@pytest.mark.parametrize("chown", ["nobody-knows", "nobody-knows:7", "0:nobody-knows"])
def test_unknown_owner(pybuild: Pybuild, base: str, chown: str) -> None:
    """T16: a name that the image does not know is not root."""
    said = pybuild.refuse(f"FROM {base}\nCOPY --chown={chown} f /x\n", {"f": "1"})
    assert "'nobody-knows' in the image's /etc/" in said


def test_ignore_file_beside_the_dockerfile_wins(pybuild: Pybuild) -> None:
    """And neither file needs to be visible to the build."""
    files: Tree = {
        "a": "1",
        "b": "2",
        ".dockerignore": "a",
        "other.Dockerfile": "FROM scratch\nCOPY . /\n",
        "other.Dockerfile.dockerignore": "*\n!a\n",
    }
    context = pybuild.context(None, files)
    tree = pybuild.export(context, "-f", str(context / "other.Dockerfile")).tree()
    assert tree == {"a": "1"}


def test_a_tree_changing_under_the_build_stays_inside(pybuild: Pybuild, tmp_path: Path) -> None:
    """SRC: a folder swapped for a link to the outside, again and again, leaks nothing."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/f").write_text("SECRET")
    context = pybuild.context("FROM scratch\nCOPY . /c/\n", {f"d{n}": {"f": "fine"} for n in range(50)})
    child = os.fork()
    if child == 0:
        try:
            (context / "link").symlink_to(tmp_path / "outside")
            while True:
                os.rename(context / "d25", context / "kept")
                os.rename(context / "link", context / "d25")
                os.rename(context / "d25", context / "link")
                os.rename(context / "kept", context / "d25")
        finally:
            os._exit(0)
    try:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            archive = tmp_path / "out.tar"
            done = pybuild("--no-cache", "-o", f"type=oci,dest={archive}", context)
            assert "Traceback" not in done.err
            if done.code == 0:
                from oci import read_image

                assert b"SECRET" not in b"".join(layer.data for layer in read_image(archive).layers)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_time_of_the_folder_copied_to(pybuild: Pybuild) -> None:
    """T28: a folder copied to has the copied one's time, new or not; those on the way to it have none."""
    context = pybuild.context(
        "FROM busybox\nRUN mkdir /old\nCOPY d /new\nCOPY d /way/new/\nCOPY d /old\n", {"d": {"f": "1"}}
    )
    os.utime(context / "d", (1_500_000_000, 1_500_000_000))
    times = {
        name: entry.mtime for name, (entry, _) in pybuild.export(context, "--network=none").root().items()
    }
    assert {times["new"], times["way/new"], times["old"]} == {1_500_000_000}
    assert times["way"] == 315_619_200


@pytest.mark.parametrize(
    ("mode", "made"), [("640", 0o640), ("1777", 0o777), ("go=", 0o755), ("a+rwx", 0o755)]
)
def test_mode_of_folders_made_on_the_way(pybuild: Pybuild, mode: str, made: int) -> None:
    """T18: the plain bits of an octal mode are also those of new folders, symbolic ones are not."""
    image = pybuild.build(f"FROM scratch\nCOPY --chmod={mode} f /new/f\n", {"f": "1"})
    assert image.root()["new"][0].mode == made


HINTS = {
    "COPY lnk /x": "hint: /d/secret is excluded by",
    "COPY folder /x": "hint: /d is excluded by",
    "COPY folder/secret /x": "excluded by",
    "COPY dangling /x": "hint: /dangling is a link to nowhere, which is not there",
    "COPY lnq /x": "hint: did you mean /lnk?",
}


@pytest.mark.parametrize(("line", "hint"), HINTS.items(), ids=HINTS.keys())
def test_hint_of_what_is_not_there(pybuild: Pybuild, line: str, hint: str) -> None:
    """Where a link leads to what is ignored or missing, that is said, and not the same name again."""
    files: Tree = {"d": {"secret": ""}, "lnk": "-> d/secret", "folder": "-> d", "dangling": "-> nowhere"}
    said = pybuild.refuse(f"FROM scratch\n{line}\n", {**files, ".dockerignore": "d\n"})
    assert hint in said and ("line 1" in said) == ("excluded" in hint)


def test_dockerfile_that_links_out(pybuild: Pybuild, tmp_path: Path) -> None:
    context = pybuild.context(None, {"a": ""})
    (tmp_path / "other").write_text("FROM scratch\nCOPY a /\n")
    (context / "Dockerfile").symlink_to(tmp_path / "other")
    said = pybuild(context).failed().err
    assert f"is a link to {tmp_path}/other, which is not in the context" in said and "-f" in said
    pybuild("-f", context / "Dockerfile", context).ok()


@pytest.mark.parametrize("gone", ["d/f", "d/sub", "d/link"])
def test_context_that_changes(pybuild: Pybuild, gone: str) -> None:
    """What is removed while the build reads it is named, not the store that it was to be written to."""
    text = f"FROM busybox\nCOPY d /1\nRUN echo ready-{os.urandom(4).hex()}; sleep 0.5\nCOPY d /2\n"
    context = pybuild.context(text, {"d": {"f": "1", "link": "-> f", "sub": {"g": "2"}}})
    command = [PYBUILD, "--network=none", "--progress=plain", str(context)]
    with subprocess.Popen(command, env=pybuild.environment(), stderr=subprocess.PIPE, text=True) as build:
        assert build.stderr is not None
        for line in build.stderr:
            if " ready-" in line and not line.startswith("#3 [") and "RUN" not in line:
                subprocess.run(["rm", "-r", context / gone], check=True)
                break
        said = build.stderr.read()
    assert build.returncode == 1
    name = "d/sub/g" if gone == "d/sub" else gone
    says = rf"error: {name} changed while the build was reading it \[E-[A-Z-]+\]\nhint: build again"
    assert re.search(says, said), said
