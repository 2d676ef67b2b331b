"""What is typed: switches with a value, options before a command, words that blame what is wrong."""

from __future__ import annotations

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
