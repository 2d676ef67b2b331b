"""COPY's --link, --parents, --exclude and --chmod, and what is linked in its source (T5, T12, T18, T25 to T27)."""

from __future__ import annotations

import io
import tarfile

import pytest
from archives import DIR, FILE, HARD, tar
from harness import Pybuild, Tree

pytestmark = pytest.mark.e2e

SOURCE: Tree = {"a": {"b": {"c": "1", "d": "2"}, "e": "3"}, "f": "4", "g.txt": "5"}
FLAGS: dict[str, tuple[str, dict[str, str]]] = {
    "T25-parents": ("COPY --parents a/b/c f /x/", {"x/a/b/c": "1", "x/f": "4"}),
    "T25-folder": ("COPY --parents a/b /x/", {"x/a/b/c": "1", "x/a/b/d": "2"}),
    "T25-pivot": ("COPY --parents ./a/./b/c /x/", {"x/b/c": "1"}),
    "T25-first-pivot": ("COPY --parents a/./b/./c /x/", {"x/b/c": "1"}),
    "T25-wildcard": ("COPY --parents a/*/c /x/", {"x/a/b/c": "1"}),
    "T25-two-stars": ("COPY --parents **/c /x/", {"x/a/b/c": "1"}),
    "T25-nothing": ("COPY --parents nope/* /x/", {}),
    "T25-from-stage": ("COPY . /s/\nFROM scratch\nCOPY --from=0 --parents /s/./a/b/d /x/", {"x/a/b/d": "2"}),
    "T26-exclude": ("COPY --exclude=b a /x", {"x/e": "3"}),
    "T26-all-but": ("COPY --exclude=* --exclude=!e a /x", {"x/e": "3"}),
    "T26-deep": ("COPY --exclude=**/c --exclude=e a /x", {"x/b/d": "2"}),
    "T26-everything": ("COPY --exclude=* a /x", {}),
    "T26-from-stage": ("COPY a /s\nFROM scratch\nCOPY --from=0 --exclude=b/c /s /x", {"x/b/d": "2", "x/e": "3"}),
    "parents-and-exclude": ("COPY --parents --exclude=**/d a /x/", {"x/a/b/c": "1", "x/a/e": "3"}),
    "T12-link": ("COPY a /real\nCOPY --link f /real/f", {"real/b/c": "1", "real/b/d": "2", "real/e": "3", "real/f": "4"}),
    "T5-link-dot": ("WORKDIR /w\nCOPY --link f .", {"w/f": "4"}),
    "T5-link-empty": ("WORKDIR /w\nCOPY --link f $nothing", {"w/f": "4"}),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "expected"), FLAGS.values(), ids=FLAGS.keys())
def test_flag(pybuild: Pybuild, lines: str, expected: dict[str, str]) -> None:
    files: Tree = {**SOURCE, ".dockerignore": "Dockerfile\n.dockerignore\n"}
    image = pybuild.build(f"FROM scratch\n{lines}\n", files)
    assert {path: what for path, what in image.tree().items() if what != "DIR"} == expected


def test_excluded_folder_stays(pybuild: Pybuild) -> None:
    """T26: without its children."""
    assert pybuild.build("FROM scratch\nCOPY --exclude=* a /x\n", SOURCE).tree() == {"x": "DIR"}


def test_excluded_is_no_input(pybuild: Pybuild) -> None:
    """T27, T110: what --exclude and --parents leave out is neither read nor part of the key."""
    for line in ("COPY --exclude=b a /x", "COPY --parents a/e /x/"):
        context = pybuild.context(f"FROM scratch\n{line}\n", SOURCE)
        pybuild(context).ok()
        (context / "a/b/c").write_text("changed")
        done = pybuild(context).ok()
        assert done.executed == 0, line
        (context / "a/e").write_text("changed")
        assert pybuild(context).ok().executed == 1


def test_parents_keep_their_metadata(pybuild: Pybuild) -> None:
    context = pybuild.context("FROM scratch\nCOPY --parents a/b/c /x/\n", SOURCE)
    (context / "a").chmod(0o700)
    root = pybuild.export(context).root()
    assert (root["x/a"][0].mode, root["x"][0].mode) == (0o700, 0o755)


def test_link_depends_on_nothing_below(pybuild: Pybuild) -> None:
    """T12: a link below is replaced by a real folder, and what changes below is no reason to copy again."""
    text = "FROM busybox\nARG v=1\nRUN mkdir /real && ln -s /real /l && echo $v > /v\nCOPY --link f /l/f\n"
    context = pybuild.context(text, SOURCE)
    image = pybuild.export(context, "--network=none")
    assert image.tree()["l"] == "DIR" and image.tree()["l/f"] == "4"
    done = pybuild("--network=none", "--build-arg", "v=2", context).ok()
    assert (done.executed, done.cached) == (1, 2)


MODES = [
    ("u=rwX,go=rX", 0o640, 0o644), ("a+x", 0o640, 0o751), ("go-rwx", 0o777, 0o700), ("+x", 0o644, 0o755),
    ("u=rw,go=rX", 0o744, 0o655), ("a-x,+X", 0o744, 0o755), ("u+x,g+X", 0o644, 0o744), ("a=rx", 0o1777, 0o1555),
    ("o=rx", 0o1777, 0o1775), ("o+t", 0o755, 0o755), ("u+t", 0o755, 0o1755), ("a-X", 0o755, 0o755),
    ("u+s,g+s", 0o755, 0o6755), ("g=u", 0o640, 0o660), ("o=", 0o777, 0o770), ("a=r,u+w", 0o777, 0o644), ("0600", 0o777, 0o600),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "before", "after"), MODES, ids=[m[0] for m in MODES])
def test_chmod(pybuild: Pybuild, mode: str, before: int, after: int) -> None:
    """T18."""
    context = pybuild.context(f"FROM scratch\nCOPY --chmod={mode} s /x/\n", {"s": {"f": "1", "d": {}}})
    (context / "s/f").chmod(before)
    root = pybuild.export(context).root()
    assert oct(root["x/f"][0].mode) == oct(after)


REFUSED = {
    "T25-missing": ("COPY --parents a/nope /x/", '"/a/nope": not found'),
    "T25-through-a-link": ("COPY --parents l/b/c /x/", "--parents follows no links: name /a/b/c"),
    "T25-through-a-link-of-a-folder": ("COPY --parents a/m/c /x/", "--parents follows no links: name /a/b/c"),
    "T25-only-a-pivot": ("COPY --parents a/./. /x/", '"/a": not found'),
    "T25-only-a-dot": ("COPY --parents . /x/", "--parents needs a path below the folder"),
    "T25-all-excluded": ("COPY --parents --exclude=* a/b /x/", "--exclude leaves out all of it"),
    "T25-one-of-two": ("COPY --parents f l/b/c /x/", '"/l/b/c": not found'),
    "T26-malformed": ("COPY --exclude=[ a /x", "[", ),
    "T19-symbolic": ("COPY --chmod=u~x f /x", "invalid chmod parameter: 'u~x'"),
    "T40-local": ("ADD --checksum=sha256:" + "0" * 64 + " f /x", "checksum requires HTTP(S) or Git sources"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(pybuild: Pybuild, line: str, says: str) -> None:
    said = pybuild.refuse(f"FROM scratch\n{line}\n", {**SOURCE, "l": "-> a", "a/m": "-> b"})
    assert says in said and "Dockerfile:2" in said


def test_parents_through_a_link_of_a_stage(pybuild: Pybuild) -> None:
    """T25: as in the context, nothing is copied without a word."""
    text = "FROM scratch AS s\nCOPY . /\nFROM scratch\nCOPY --from=s --parents l/b/c /x/\n"
    said = pybuild.refuse(text, {**SOURCE, "l": "-> a"})
    assert "--parents follows no links: name /a/b/c" in said and "Dockerfile:4" in said


LINKED = {
    "before": [("z", FILE, "1"), ("a", HARD, "z")],
    "chain": [("m", FILE, "1"), ("z", HARD, "m"), ("a", HARD, "z"), ("b", HARD, "m")],
    "folders": [
        ("z", DIR, ""),
        ("z/f", FILE, "1"),
        ("a", DIR, ""),
        ("a/f", HARD, "z/f"),
        ("z-", HARD, "a/f"),
    ],
    "replaced": [("m", FILE, "0"), ("a", HARD, "m"), ("m", FILE, "1")],
}


@pytest.mark.parametrize("members", LINKED.values(), ids=LINKED.keys())
def test_hard_links_in_any_order(
    pybuild: Pybuild, fresh: Pybuild, members: list[tuple[str, bytes, str]]
) -> None:
    """The first name of a file in the layer is the file, so that everybody can unpack it."""
    image = pybuild.build("FROM scratch\nADD x.tar /\n", {"x.tar": tar(*members)})
    with tarfile.open(fileobj=io.BytesIO(image.layers[0].data)) as layer:
        seen: set[str] = set()
        for member in layer:
            assert not member.islnk() or member.linkname in seen, f"{member.name} comes before its file"
            seen.add(member.name)
    assert {name for name, kind, _ in members if kind != DIR} <= set(image.tree())
    fresh("load", pybuild.work / "export.tar").ok()


@pytest.mark.parametrize(
    ("name", "value"), [("note", "x" * 65_537), ("n" * 60_000, "x")], ids=["value", "name"]
)
def test_attribute_that_is_too_long(pybuild: Pybuild, name: str, value: str) -> None:
    """The file and the attribute are named, in one line of a decent length."""
    buffer = io.BytesIO()
    info = tarfile.TarInfo("marked")
    info.pax_headers = {f"SCHILY.xattr.user.{name}": value}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as made:
        made.addfile(info)
    (pybuild.work / "a.tar").write_bytes(buffer.getvalue())
    said = pybuild.refuse("FROM scratch\nADD a /\n", {"a": buffer.getvalue()})
    for text in (said, pybuild("import", pybuild.work / "a.tar", "marked").failed().err):
        error = text.partition("error: ")[2]
        assert "marked" in error and f"user.{name}"[:20] in error and len(error) < 500
