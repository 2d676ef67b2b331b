"""Where files come from: standard input, URLs, repositories, named contexts (T69)."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from archives import DIR, FILE, tar
from harness import PYBUILD, Pybuild, Tree, make_tree
from oci import Image, read_image
from repositories import git, publish, served
from servers import Misbehaving

pytestmark = pytest.mark.e2e

TEXT = "FROM scratch\nCOPY . /c/\n"
ARCHIVE = tar(("Dockerfile", FILE, TEXT), ("d", DIR, ""), ("d/f", FILE, "1"), (".dockerignore", FILE, "d"))


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    with served(tmp_path) as made:
        yield made


def export(pybuild: Pybuild, *args: str | Path, stdin: bytes = b"") -> Image:
    archive = pybuild.work / "out.tar"
    pybuild(*args, "-o", f"type=oci,dest={archive}", "--network=none", stdin=stdin).ok()
    return read_image(archive)


# -- standard input ------------------------------------------------------------------------


def test_dockerfile_on_standard_input(pybuild: Pybuild) -> None:
    context = pybuild.context(None, {"a": "1", ".dockerignore": "b", "b": "2"})
    image = export(pybuild, "-f", "-", context, stdin=b"FROM busybox\nCOPY . /c/\nRUN cp /c/a /d\n")
    assert image.read("d") == b"1" and "c/b" not in image.tree()


def test_no_context(pybuild: Pybuild) -> None:
    """Text on standard input is a Dockerfile; there are no files."""
    assert export(pybuild, "-", stdin=b"FROM scratch\nCOPY . /c/\n").tree() == {"c": "DIR"}
    done = pybuild("-", stdin=b"FROM scratch\nCOPY a /\n").failed()
    assert '"/a": not found' in done.err and "(standard input):2" in done.err


@pytest.mark.parametrize("how", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_archive_on_standard_input(pybuild: Pybuild, how: type[bytes]) -> None:
    """Owners stay, the ignore file is a file like others."""
    image = export(pybuild, "-", stdin=how(ARCHIVE))
    assert sorted(image.tree()) == ["c", "c/.dockerignore", "c/Dockerfile", "c/d", "c/d/f"]
    assert image.root()["c/d/f"][0].uid == 7


def test_archive_with_another_dockerfile(pybuild: Pybuild) -> None:
    data = tar(("x/Other", FILE, "FROM scratch\nCOPY x /x\n"))
    assert "x/Other" in export(pybuild, "-f", "x/Other", "-", stdin=data).tree()
    assert "there is no Dockerfile in the context" in pybuild("-", stdin=data).failed().err


def test_standard_input_twice(pybuild: Pybuild) -> None:
    pybuild("-f", "-", "-", stdin=b"FROM scratch\n").failed(2)
    assert "ambiguous Dockerfile source" in pybuild("-f", "x", "-", stdin=b"FROM scratch\n").failed(2).err


def test_archive_that_breaks_off(pybuild: Pybuild) -> None:
    """SRC-11"""
    big = tar(("Dockerfile", FILE, TEXT), ("f", FILE, "x" * 5000))
    pybuild("-", stdin=big[:4000]).failed()


def test_cached(pybuild: Pybuild) -> None:
    args = ("-t", "a", "-", "--network=none")
    pybuild(*args, stdin=ARCHIVE).ok()
    assert pybuild(*args, stdin=ARCHIVE).ok().executed == 0


# -- URLs and repositories -----------------------------------------------------------------


def test_archive_behind_a_url(pybuild: Pybuild, web: Misbehaving) -> None:
    web.serve("/c.tgz", gzip.compress(ARCHIVE))
    assert "c/d/f" in export(pybuild, f"http://{web.host}/c.tgz").tree()


def test_dockerfile_behind_a_url(pybuild: Pybuild, web: Misbehaving) -> None:
    web.serve("/Some", b"FROM scratch\nLABEL a=b\n")
    assert export(pybuild, f"http://{web.host}/Some").settings["Labels"] == {"a": "b"}
    assert "answered 404" in pybuild(f"http://{web.host}/none").failed().err


def test_repository(pybuild: Pybuild, repository: tuple[Path, str]) -> None:
    work, url = repository
    (work / "sub/Dockerfile").write_text(TEXT)
    publish(work, work.parent / "served", "build")
    git(work, "tag", "v1")
    for place in (f"{url}#main:sub", f"{url}?subdir=sub"):
        assert export(pybuild, place).tree() == {
            "c": "DIR", "c/Dockerfile": TEXT, "c/dir": "DIR", "c/dir/b": "2",
        }  # fmt: skip
    whole = export(pybuild, url, "-f", "sub/Dockerfile")
    assert "c/a" in whole.tree() and "c/.git" not in whole.tree()
    kept = export(pybuild, url, "-f", "sub/Dockerfile", "--build-arg", "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1")
    assert "c/.git" in kept.tree()


def test_context_that_is_nothing(pybuild: Pybuild) -> None:
    said = pybuild("nowhere").failed(2).err
    assert "no such command or directory: nowhere" in said and "standard input" in said


# -- named contexts ------------------------------------------------------------------------

OTHER: Tree = {"f": "other", "d": {"g": "2"}, ".dockerignore": "hidden", "hidden": "3"}


@pytest.fixture
def other(pybuild: Pybuild) -> Path:
    return make_tree(pybuild.work / "other", OTHER)


LOCAL = {
    "copy": ("FROM scratch\nCOPY --from=ctx /f /x\n", {"x": "other"}),
    "case": ("FROM scratch\nCOPY --from=CTX f /x\n", {"x": "other"}),
    "folder": (
        "FROM scratch\nCOPY --from=ctx . /x\n",
        {"x": "DIR", "x/f": "other", "x/d": "DIR", "x/d/g": "2", "x/.dockerignore": "hidden"},
    ),
    "from": ("FROM ctx\nWORKDIR /w\n", {"f": "other", "d/g": "2", "w": "DIR"}),
    "mount": ("FROM busybox\nRUN --mount=from=ctx,source=d,target=/m cp /m/g /x\n", {"x": "2"}),
    "cache": ("FROM busybox\nRUN --mount=type=cache,from=ctx,source=d,target=/m cp /m/g /x\n", {"x": "2"}),
    "stage": ("FROM busybox AS ctx\nRUN false\nFROM scratch\nCOPY --from=ctx f /x\n", {"x": "other"}),
    "stage-by-number": ("FROM busybox AS ctx\nRUN false\nFROM scratch\nCOPY --from=0 f /x\n", {"x": "other"}),
    "stage-as-base": ("FROM busybox AS ctx\nRUN false\nFROM ctx\n", {"f": "other"}),
    "main-too": ("FROM scratch\nCOPY f /m\nCOPY --from=ctx f /x\n", {"m": "main", "x": "other"}),
}


@pytest.mark.parametrize(("text", "expected"), LOCAL.values(), ids=LOCAL.keys())
def test_folder(pybuild: Pybuild, other: Path, text: str, expected: dict[str, str]) -> None:
    context = pybuild.context(text, {"f": "main"})
    if "CTX" in text:  # a name of an image, as BuildKit has it: no capitals
        pybuild("--build-context", f"ctx={other}", context).failed()
        return
    tree = export(pybuild, "--build-context", f"ctx={other}", context).tree()
    assert expected.items() <= tree.items() and "hidden" not in tree and "x/hidden" not in tree


def test_folder_is_an_input(pybuild: Pybuild, other: Path) -> None:
    context = pybuild.context("FROM scratch\nCOPY --from=ctx f /x\n")
    assert export(pybuild, "--build-context", f"ctx={other}", context).read("x") == b"other"
    (other / "f").write_text("changed")
    assert export(pybuild, "--build-context", f"ctx={other}", context).read("x") == b"changed"


def test_image(pybuild: Pybuild) -> None:
    """For a base whatever its tag, for a stage, and for COPY --from."""
    pybuild(
        "-t", "real", pybuild.context("FROM scratch\nCOPY f /f\nENV a=1\nONBUILD RUN false\n", {"f": "r"})
    ).ok()
    args = ("--build-context", "debian=docker-image://real")
    for text in ("FROM debian:latest AS x\nFROM debian\nCOPY --from=debian /f /g\n",):
        image = export(pybuild, *args, pybuild.context(text.replace("FROM debian\n", "FROM scratch\n")))
        assert image.read("g") == b"r"
    text = "FROM busybox AS debian\nRUN false\nFROM debian\nLABEL a=$a\n"
    image = export(pybuild, *args, pybuild.context(text))
    assert image.settings["Labels"] == {"a": "1"} and image.read("f") == b"r"


def test_layout(pybuild: Pybuild) -> None:
    archive = pybuild.work / "l.tar"
    context = pybuild.context("FROM scratch\nCOPY f /f\nENV a=1\n", {"f": "l"})
    pybuild("-t", "localhost/l:v1", "-o", f"type=oci,dest={archive}", context).ok()
    layout = pybuild.work / "layout"
    layout.mkdir()
    with tarfile.open(fileobj=io.BytesIO(archive.read_bytes())) as packed:
        packed.extractall(layout, filter="data")
    digest = read_image(archive).index["manifests"][0]["digest"]
    text = pybuild.context("FROM base\nLABEL a=$a\n")
    image = export(pybuild, "--build-context", f"base=oci-layout://{layout}@{digest}", text)
    assert image.read("f") == b"l" and image.settings["Labels"] == {"a": "1"}
    assert (
        export(pybuild, "--build-context", f"base=oci-layout://{layout}", text).read("f") == b"l"
    )  # the only one
    missing = pybuild("--build-context", f"base=oci-layout://{layout}:nope", text).failed().err
    assert "has no image nope" in missing and "Dockerfile:1" in missing
    assert "no OCI layout" in pybuild("--build-context", "base=oci-layout:///nowhere", text).failed().err


def test_layout_that_lies(pybuild: Pybuild) -> None:
    archive = pybuild.work / "l.tar"
    pybuild("-o", f"type=oci,dest={archive}", pybuild.context("FROM scratch\nCOPY f /f\n", {"f": "l"})).ok()
    layout = pybuild.work / "layout"
    layout.mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", layout], check=True)
    for blob in (layout / "blobs/sha256").iterdir():
        blob.write_bytes(blob.read_bytes() + b" ")
    name = read_image(archive).index["manifests"][0]["digest"]
    text = pybuild.context("FROM base\n")
    assert "digest" in pybuild("--build-context", f"base=oci-layout://{layout}@{name}", text).failed().err


def test_url_and_repository(pybuild: Pybuild, web: Misbehaving, repository: tuple[Path, str]) -> None:
    web.serve("/c.tgz", gzip.compress(ARCHIVE))
    text = "FROM scratch\nCOPY --from=web d/f /x\nCOPY --from=git a /y\nCOPY --from=git sub /s\n"
    args = ("--build-context", f"web=http://{web.host}/c.tgz", "--build-context", f"git={repository[1]}")
    assert export(pybuild, *args, pybuild.context(text)).tree() == {
        "x": "1", "y": "1", "s": "DIR", "s/dir": "DIR", "s/dir/b": "2",
    }  # fmt: skip


def test_target(pybuild: Pybuild) -> None:
    """A stage of this file under another name."""
    text = "FROM scratch AS a\nCOPY f /f\nFROM scratch\nCOPY --from=b /f /x\n"
    context = pybuild.context(text, {"f": "1"})
    assert export(pybuild, "--build-context", "b=target:a", context).tree() == {"x": "1"}
    assert "there is no stage" in pybuild("--build-context", "b=target:c", context).failed().err
    circle = pybuild.context("FROM scratch AS a\nFROM b AS c\nFROM d\n")
    contexts = ("--build-context", "b=target:c", "--build-context", "d=target:c")
    said = pybuild(*contexts, circle).failed().err
    assert "circular dependency detected on context: b" in said and "Dockerfile:2" in said


@pytest.mark.parametrize("name", ["index.json", "blob"])
def test_layout_of_pipes(pybuild: Pybuild, name: str) -> None:
    """Nobody waits for a writer that never comes."""
    layout = pybuild.work / "layout"
    (layout / "blobs/sha256").mkdir(parents=True)
    digest = "0" * 64
    os.mkfifo(layout / (name if name != "blob" else f"blobs/sha256/{digest}"))
    if name == "blob":
        item = {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": f"sha256:{digest}",
            "size": 1,
        }
        (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [item]}))
    context = pybuild.context("FROM base\n")
    said = pybuild("--build-context", f"base=oci-layout://{layout}", context, timeout=20).failed().err
    assert f"reading {name!r}" in said or digest in said


def test_no_standard_input(pybuild: Pybuild) -> None:
    """A closed one is an empty one."""
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" - <&-', PYBUILD],
        env=pybuild.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr and "no instructions" in done.stderr


@pytest.mark.parametrize("item", ["x", "=/tmp", "x=", "x=nowhere", "X Y=/tmp", "x=ftp://h/f"])
def test_no_context_source(pybuild: Pybuild, item: str) -> None:
    done = pybuild("--build-context", item, pybuild.context("FROM scratch\n"))
    assert done.code in (1, 2) and "Traceback" not in done.err


def test_reserved_names_stay(pybuild: Pybuild, other: Path) -> None:
    image = export(pybuild, "--build-context", f"scratch={other}", pybuild.context("FROM scratch\n"))
    assert image.layers == []


def test_named_image_is_a_base_like_any(pybuild: Pybuild) -> None:
    """T61: one without a PATH gets the usual one, and steps find their programs."""
    with tarfile.open(pybuild.work / "root.tar", "w") as root:
        root.add("/bin/busybox", "bin/sh")
    pybuild("import", pybuild.work / "root.tar", "bare").ok()
    text = "FROM q\nRUN busybox true || sh -c true\nENV P=$PATH\n"
    image = export(pybuild, "--build-context=q=docker-image://bare", pybuild.context(text))
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert image.config["config"]["Env"] == [f"PATH={path}", f"P={path}"]


def test_links_to_folders(pybuild: Pybuild) -> None:
    """The context, and a named one, may be given by a link, and is looked at anew by each build."""
    one = pybuild.context("FROM scratch\nCOPY a /\nCOPY --from=other . /o/\n", {"a": "1"}, "one")
    other = pybuild.context(None, {"b": "2"}, "other")
    (pybuild.work / "link").symlink_to(one)
    (pybuild.work / "second").symlink_to(other)
    args = ("--build-context=other=second", "link")
    assert export(pybuild, *args).tree() == {"a": "1", "o": "DIR", "o/b": "2"}
    (one / "a").write_text("new")
    assert export(pybuild, *args).tree()["a"] == "new"


def test_scratch_in_an_images_place(pybuild: Pybuild) -> None:
    """docker-image://scratch is no image of that name, for FROM and for sources."""
    text = "FROM busybox AS base\nCOPY a /\nFROM scratch\nCOPY --from=base / /b/\nCOPY --from=other / /o/\n"
    args = [f"--build-context={name}=docker-image://scratch" for name in ("busybox", "other")]
    image = export(pybuild, *args, pybuild.context(text, {"a": "1"}))
    assert image.tree() == {"b": "DIR", "b/a": "1", "o": "DIR"}
    alone = export(pybuild, *args, "--target=base", pybuild.work / "context")
    assert [line["created_by"] for line in alone.history] == ["COPY a / # buildkit"]
