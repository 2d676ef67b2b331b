"""--pull: when a registry is asked for a base image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Pybuild
from servers import registry

pytestmark = pytest.mark.e2e

NONE = "--network=none"


@pytest.fixture
def server(tools: dict[str, str], tmp_path: Path) -> Iterator[str]:
    with registry(tools["docker-registry"], tmp_path) as host:
        yield host


def publish(made: Pybuild, name: str, word: str) -> None:
    """Push an image that holds a word, leaving nothing of that name here."""
    made(NONE, "-q", "--push", "-t", name, made.context(f"FROM scratch\nCOPY {word} /\n", {word: word})).ok()
    made("rmi", name).ok()


@pytest.mark.parametrize(
    ("policy", "first", "second"),
    [
        ("", "old", "old"),
        ("--pull=missing", "old", "old"),
        ("--pull=newer", "old", "new"),
        ("--pull=always", "old", "new"),
        ("--pull", "old", "new"),
        ("--pull=true", "old", "new"),
        ("--pull=false", "old", "old"),
    ],
)
def test_policy(fresh: Pybuild, server: str, policy: str, first: str, second: str) -> None:
    name = f"{server}/base:1"
    options = [policy] if policy else []
    for word, wanted in (("old", first), ("new", second)):
        publish(Pybuild(fresh.work / "other", fresh.work), name, word)
        context = fresh.context(f"FROM {name}\nLABEL a=b\n")
        assert set(fresh.export(context, NONE, *options).tree()) == {wanted}


def test_never(fresh: Pybuild, server: str) -> None:
    name = f"{server}/base:1"
    publish(fresh, name, "old")
    context = fresh.context(f"FROM {name}\nLABEL a=b\n")
    said = fresh(NONE, "--pull=never", context).failed().err
    assert "is not in the store, and --pull=never asks no registry" in said and "Dockerfile:1" in said
    fresh("pull", name).ok()
    fresh(NONE, "--pull=never", context).ok()


def test_registry_that_is_gone(fresh: Pybuild, tools: dict[str, str], tmp_path: Path) -> None:
    """newer takes what is here and says so, always does not."""
    with registry(tools["docker-registry"], tmp_path) as host:
        publish(fresh, f"{host}/base:1", "old")
        fresh("pull", f"{host}/base:1").ok()
    context = fresh.context(f"FROM {host}/base:1\nLABEL a=b\n")
    assert "is used as it is here" in fresh(NONE, "--pull=newer", context).ok().err
    fresh(NONE, "--pull=always", context).failed()
    fresh(NONE, "--pull=missing", context).ok()


def test_policy_that_is_none(fresh: Pybuild) -> None:
    assert "--pull" in fresh("--pull=sometimes", fresh.context("FROM scratch\n")).failed(2).err


def test_mirrors(fresh: Pybuild, server: str, tmp_path: Path) -> None:
    """Of registries.conf: a pull and a FROM come from the mirror, a push does not go there, blocked is blocked."""
    publish(Pybuild(fresh.work / "other", fresh.work), f"{server}/mirror/base:1", "old")
    conf = tmp_path / "registries.conf"
    conf.write_text(
        f'[[registry]]\nprefix = "nowhere.invalid"\n[[registry.mirror]]\nlocation = "{server}/mirror"\n'
        'insecure = true\n[[registry]]\nlocation = "bad.invalid"\nblocked = true\n'
    )
    env = {"CONTAINERS_REGISTRIES_CONF": str(conf)}
    fresh("pull", "nowhere.invalid/base:1", env=env).ok()
    assert "nowhere.invalid/base:1" in fresh("images").ok().out
    context = fresh.context("FROM nowhere.invalid/base:1\nLABEL a=b\n")
    fresh(NONE, "--pull=always", context, env=env).ok()
    fresh("push", "nowhere.invalid/base:1", env=env).failed()
    said = fresh("pull", "bad.invalid/x", env=env).failed().err
    assert "blocks bad.invalid" in said and str(conf) in said
    conf.write_text("[[registry]\n")
    assert str(conf) in fresh("pull", "nowhere.invalid/base:1", env=env).failed().err
