"""What is typed: switches with a value, options before a command, words that blame what is wrong."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from harness import Pybuild

pytestmark = pytest.mark.e2e

TEXT = "FROM scratch\nCOPY f /f\n"
FILES = {"f": "1"}


@pytest.mark.parametrize("word", ["true", "1", "t", "T", "TRUE", "True"])
def test_switch_that_is_on(pybuild: Pybuild, word: str) -> None:
    context = pybuild.context(TEXT, FILES)
    pybuild(context).ok()
    assert pybuild(f"--no-cache={word}", context).ok().executed == 1


@pytest.mark.parametrize("word", ["false", "0", "f", "F", "FALSE", "False"])
def test_switch_that_is_off(pybuild: Pybuild, word: str) -> None:
    """The last one counts, as with docker; so it does where an option may have a value."""
    context = pybuild.context(TEXT, FILES)
    pybuild(context).ok()
    off = [f"{name}={word}" for name in ("--push", "--load", "--check", "--quiet", "--rm", "--force-rm")]
    more = [
        "--no-cache",
        f"--no-cache={word}",
        "-q",
        f"-q={word}",
        "--sbom",
        f"--sbom={word}",
        f"--pull={word}",
    ]
    done = pybuild(*off, *more, f"--provenance={word}", context).ok()
    assert done.cached == 1 and done.executed == 0 and not done.out and "warning" not in done.err


@pytest.mark.parametrize("name", ["--no-cache", "--push", "-q", "--rm"])
def test_switch_that_is_neither(pybuild: Pybuild, name: str) -> None:
    done = pybuild(f"{name}=maybe", pybuild.context(TEXT, FILES)).failed(2)
    assert f"{name} is true or false, not 'maybe'" in done.err


def test_switches_of_commands(pybuild: Pybuild) -> None:
    """Every command takes them so; what a container is to run stays as it is."""
    pybuild("-t", "switched:1", pybuild.context(TEXT, FILES)).ok()
    assert len(pybuild("images", "-q=1", "--no-trunc=true", "switched").ok().out) == len("sha256:\n") + 64
    pybuild("rmi", "--force=true", "nothing:1").ok()
    said = pybuild("run", "--rm=true", "--network=none", "busybox", "echo", "--rm=false", "-q=1").ok()
    assert said.out == "--rm=false -q=1\n"


def test_store_before_the_command(pybuild: Pybuild) -> None:
    """``--root`` may stand ahead of every command, also where a folder has its name."""
    pybuild("-t", "rooted:1", pybuild.context(TEXT, FILES)).ok()
    (pybuild.work / "images").mkdir()
    elsewhere = {"PYBUILD_ROOT": str(pybuild.work / "other")}
    for words in (("--root", pybuild.store), (f"--root={pybuild.store}",)):
        assert "rooted" in pybuild(*words, "images", env=elsewhere).ok().out
        assert (
            pybuild(*words, "run", "--network=none", "busybox", "echo", "1", env=elsewhere).ok().out == "1\n"
        )
        pybuild(*words, "build", pybuild.context(TEXT, FILES), env=elsewhere).ok()
        pybuild(*words, pybuild.context(TEXT, FILES), env=elsewhere).ok()
    (pybuild.work / "images/Dockerfile").write_text("FROM scratch\nLABEL a=folder\n")
    assert "image sha256:" in pybuild("./images").ok().err
    assert not (pybuild.work / "other").exists()


# -- words ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--nope", "x", "c"), "pybuild has no option --nope"),
        (("c", "--no-cach"), "did you mean --no-cache?"),
        (("-z", "x", "c"), "pybuild has no option -z"),
        (("images", "--nope", "x"), "pybuild images has no option --nope"),
        (("run", "--nope", "x", "c"), "pybuild run has no option --nope"),
        (("c", "d"), "more arguments than pybuild takes: d"),
        (("prune",), "no such command or directory: prune"),
        (("imagse",), "did you mean images?"),
        (("--progress", "plain", "images"), "a command must come first"),
        (("c/f",), "is a file, not a directory"),
        (("broken",), "broken is a link to gone, which is not there"),
        (("broken/below",), "broken is a link to gone, which is not there"),
        (("--secret", "id=a,src=broken", "c"), "broken is a link to gone"),
        (("--build-context", "a=broken", "c"), "broken is a link to gone"),
        (("-t", "http://h/x", "c"), "a name has no http:// before it"),
        (("pull", "docker://h/x"), "a name has no docker:// before it"),
        (("-t", "UPPER", "c"), "'UPPER' is not an image name"),
        (("tag", "x", "a:b:c"), "'a:b:c' is not an image name"),
        (("-t", "app@sha256:" + "0" * 64, "c"), "a name with a digest cannot be given"),
        (("-o", "type=image,name=app@sha256:" + "0" * 64, "c"), "a name with a digest cannot be given"),
    ],
)
def test_words_blame_what_is_wrong(pybuild: Pybuild, words: tuple[str, ...], says: str) -> None:
    pybuild.context(TEXT, FILES, "c")
    (pybuild.work / "broken").symlink_to("gone")
    assert says in pybuild(*words).failed(2).err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("-f", "broken", "c"), "broken is a link to gone, which is not there"),
        (("linked",), "linked/Dockerfile is a link to gone, which is not there"),
        (("other",), "use -f other/Containerfile"),
        (("dangling",), "hint: /lnk is a link to gone, which is not there"),
        (("load", "broken"), "broken is a link to gone, which is not there"),
    ],
)
def test_failures_blame_what_is_wrong(pybuild: Pybuild, words: tuple[str, ...], says: str) -> None:
    pybuild.context(TEXT, FILES, "c")
    pybuild.context(None, {"Dockerfile": "-> gone"}, "linked")
    pybuild.context(None, {"Containerfile": "FROM scratch\n"}, "other")
    pybuild.context("FROM scratch\nCOPY lnk/f /\n", {"lnk": "-> gone"}, "dangling")
    (pybuild.work / "broken").symlink_to("gone")
    assert says in pybuild(*words).failed().err


def test_pins_mean_their_digest(fresh: Pybuild) -> None:
    """No command gives a name with a digest to an image that has another."""
    pin = "pinned@sha256:" + "0" * 64
    context = fresh.context(TEXT, FILES)
    fresh("-t", "pinned:1", context).ok()
    fresh("-o", "x.tar", "-t", "pinned:1", context).ok()
    fresh("tag", "pinned:1", pin).failed(2)
    fresh("import", "x.tar", pin).failed(2)
    index = rewritten(fresh.work / "x.tar", pin)
    assert pin not in fresh("load", index).ok().out and pin not in fresh("images").ok().out
    assert "pinned" in fresh("--pull=never", fresh.context(f"FROM {pin}\n")).failed().err


def rewritten(archive: Path, name: str) -> Path:
    """The archive with another name for its image."""
    out = archive.with_name("renamed.tar")
    with tarfile.open(archive) as old, tarfile.open(out, "w") as new:
        for member in old:
            data = old.extractfile(member).read() if member.isreg() else b""  # type: ignore[union-attr]
            data = data.replace(b"docker.io/library/pinned:1", f"docker.io/library/{name}".encode())
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    return out
