"""--cache-to and --cache-from: what one store built, an empty one has without running a step."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from harness import Pybuild
from oci import read_image
from servers import registry
from shared_caches import FILES, NONE, TEXT, restored, saved_busybox, size

pytestmark = pytest.mark.e2e


def test_folder(fresh: Pybuild, empty: Pybuild, tmp_path: Path) -> None:
    """The same image, not a step run, and nothing fetched that nobody reads."""
    context, cache = fresh.context(TEXT, FILES), tmp_path / "cache"
    first = fresh(NONE, "-q", "--cache-to", f"type=local,dest={cache},mode=max", context).ok().out.strip()
    before = size(empty.store)
    done = empty(NONE, "--cache-from", f"type=local,src={cache}", "-t", "a", context).ok()
    assert done.executed == 0 and first in done.err
    assert size(empty.store) - before < 2 << 20, "the 3 MB of the first stage were not needed"
    assert empty("run", "a", "cat", "/sum2").ok().out.endswith("/big\n")
    assert read_image(_export(empty, context, cache)).read("v") == read_image(
        _export(fresh, context, cache)
    ).read("u")


def _export(made: Pybuild, context: Path, cache: Path) -> Path:
    archive = made.work / f"{made.store.name}.tar"
    made(NONE, "--cache-from", f"type=local,src={cache}", "-o", f"type=oci,dest={archive}", context).ok()
    return archive


def test_what_is_missing_is_executed(fresh: Pybuild, empty: Pybuild, tmp_path: Path) -> None:
    """A changed step runs on the layers of the cache, which are unpacked then."""
    cache = tmp_path / "cache"
    fresh(NONE, "--cache-to", f"type=local,dest={cache},mode=max", fresh.context(TEXT, FILES)).ok()
    context = fresh.context(TEXT.replace("cat /sum > /sum2", "cat /sum /sum > /sum2"), FILES)
    done = empty(NONE, "--cache-from", f"type=local,src={cache}", "-t", "a", context).ok()
    assert done.executed == 3, done.err  # that step, and what is on top of it
    assert empty("run", "a", "wc", "-l", "/sum2").ok().out == "2 /sum2\n"
    text = TEXT.replace("RUN cat /sum", "RUN --mount=type=bind,from=build,target=/b ls -l /b/big && cat /sum")
    done = empty(NONE, "--cache-from", f"type=local,src={cache}", fresh.context(text, FILES)).ok()
    assert done.executed == 3 and " 3145728 " in done.err


def test_registry(fresh: Pybuild, tmp_path: Path, server: str) -> None:
    """The base, too, is left where it is as far as nobody reads it."""
    fresh("tag", "busybox", f"{server}/base:1").ok()
    fresh("push", f"{server}/base:1").ok()
    text = TEXT.replace("FROM busybox\n", "FROM scratch\n", 1).replace("busybox", f"{server}/base:1")
    text = text.replace(
        "RUN --mount=type=bind,from=build,target=/b cat /b/u > /v\nRUN cat /sum > /sum2\n", ""
    )
    context, where = fresh.context(text, FILES), f"type=registry,ref={server}/cache:main"
    image = fresh(NONE, "-q", "--cache-to", f"{where},mode=max", context).ok().out.strip()
    empty = Pybuild(tmp_path / "empty", tmp_path)
    assert restored(empty, context, "--cache-from", where) == image
    assert size(empty.store) < 1 << 20, "neither the base nor the first stage was needed"
    log = (tmp_path / "registry.log").read_text()
    again = fresh(NONE, "--cache-to", f"{where},mode=max", "--cache-from", where, context).ok()
    assert again.executed == 0
    sent = (tmp_path / "registry.log").read_text()[len(log) :]
    assert sent.count('"PUT /v2/cache/manifests') == 1 and "blobs/uploads" not in sent, "all blobs are there"
    plain = empty(NONE, "--cache-from", f"{server}/cache:main", "-t", "x", context).ok()
    assert plain.executed == 0


@pytest.mark.parametrize(("value", "is_there"), [("1", True), ("true", True), ("0", False), ("yes", False)])
def test_inline_by_argument(pybuild: Pybuild, value: str, is_there: bool) -> None:
    """As docker's buildx has it."""
    text = "FROM busybox\nRUN echo 1 > /f\n"
    image = pybuild.build(text, None, NONE, f"--build-arg=BUILDKIT_INLINE_CACHE={value}")
    assert ("pybuild.cache" in image.config) == is_there


def test_inline(fresh: Pybuild, empty: Pybuild, server: str) -> None:
    """The image itself says how its layers were made."""
    name = f"{server}/app:1"
    text = "FROM busybox\nRUN cat /proc/sys/kernel/random/uuid > /u\nCOPY f /f\n"
    context = fresh.context(text, FILES)
    image = fresh(NONE, "-q", "--cache-to", "type=inline", "--push", "-t", name, context).ok().out.strip()
    again = empty(NONE, "-q", "--cache-to=type=inline", "--cache-from", name, context).ok()
    assert again.out.strip() == image
    assert restored(empty, context, "--cache-from", f"type=registry,ref={name}")
    fresh("tag", "busybox", f"{server}/base:1").ok()
    fresh("push", f"{server}/base:1").ok()
    said = empty(NONE, "--cache-from", f"{server}/base:1", context).ok().err
    assert "it is an image without a cache" in said


def test_min_and_max(fresh: Pybuild, empty: Pybuild, tmp_path: Path) -> None:
    """min has what the image's own layers came from, and no more."""
    context = fresh.context(TEXT, FILES)
    for mode, steps in (("min", 5), ("max", 6)):
        cache = tmp_path / mode
        done = fresh(NONE, "--cache-to", f"type=local,dest={cache},mode={mode}", context).ok()
        assert f"cached {steps} steps in {cache}" in done.err
    done = empty(NONE, "--cache-from", f"type=local,src={tmp_path}/min", context).ok()
    assert done.executed == 6  # the first stage is random, so nothing of it is the same


def test_several_caches(fresh: Pybuild, empty: Pybuild, tmp_path: Path) -> None:
    """The first that knows a step is taken; one that is not there is a warning."""
    contexts = []
    for number in (1, 2):
        text = f"FROM busybox\nRUN echo {number} > /n\n"
        contexts.append(fresh.context(text, name=f"context{number}"))
        fresh(NONE, "--cache-to", f"type=local,dest={tmp_path}/c{number}", contexts[-1]).ok()
    options = [f"--cache-from=type=local,src={tmp_path}/c{number}" for number in (0, 1, 2)]
    for context in contexts:
        done = empty(NONE, *options, context).ok()
        assert done.executed == 0 and f"the cache {tmp_path}/c0 is not used: there is no cache" in done.err


def test_tags_in_one_folder(fresh: Pybuild, empty: Pybuild, tmp_path: Path) -> None:
    contexts = {}
    for tag in ("a", "b", "a"):
        contexts[tag] = fresh.context(f"FROM busybox\nRUN echo {tag} > /n\n", name=tag)
        fresh(NONE, "--cache-to", f"type=local,dest={tmp_path}/c,tag={tag}", contexts[tag]).ok()
    index = json.loads((tmp_path / "c/index.json").read_text())
    assert len(index["manifests"]) == 2
    for tag, executed in (("a", 0), ("b", 1)):
        done = empty(NONE, f"--cache-from=type=local,src={tmp_path}/c,tag=a", contexts[tag]).ok()
        assert done.executed == executed


@pytest.mark.parametrize(
    "then",
    [
        "RUN echo {n} > /a; cat /u >> /a\nRUN cat /a /u > /b\nCOPY f /f\nRUN cat /b > /c\n",
        "RUN true\nCOPY f /f\nWORKDIR /w\nRUN echo {n} > /a\nRUN cat /u /a > /b\n",
        "FROM busybox\nCOPY --from=shared /u /\nRUN echo {n} > /a\nRUN --mount=type=bind,from=shared,target=/m cat /m/u /a > /b\n",
    ],
)
def test_caches_of_many_who_share_a_step(fresh: Pybuild, empty: Pybuild, tmp_path: Path, then: str) -> None:
    """Each has made its own of the step they share; whoever reads them all restores the one it goes on from."""
    shared = "FROM busybox AS shared\nRUN cat /proc/sys/kernel/random/uuid > /u\n"
    contexts = [fresh.context(shared + then.format(n=n), FILES, name=f"c{n}") for n in range(3)]
    caches = [tmp_path / f"cache{n}" for n in range(3)]
    made = []
    for context, cache in zip(contexts, caches, strict=True):
        to = f"type=local,dest={cache},mode=max"
        made.append(fresh(NONE, "-q", "--no-cache", "--cache-to", to, context).ok().out)
    every = [word for cache in caches for word in ("--cache-from", f"type=local,src={cache}")]
    subprocess.run(["cp", "-a", empty.store, tmp_path / "anew"], check=True)
    anew = Pybuild(tmp_path / "anew", tmp_path)
    for number in (2, 0, 1):  # one after the other in one store, and the last in a store of its own
        for store in (empty, anew) if number == 1 else (empty,):
            done = store(NONE, "--progress=plain", *every, contexts[number]).ok()
            assert not done.executed and made[number].strip() in done.err, done.err


def test_no_cache(fresh: Pybuild, tmp_path: Path) -> None:
    """--no-cache reads no cache. The new results replace those in the shared cache."""
    context, cache = fresh.context(TEXT, FILES), f"{tmp_path}/cache"
    fresh(NONE, f"--cache-to=type=local,dest={cache},mode=max", context).ok()
    options = (f"--cache-from=type=local,src={cache}", f"--cache-to=type=local,dest={cache},mode=max")
    done = fresh(NONE, "--no-cache", *options, context).ok()
    assert done.executed == 6


def test_names_of_secrets_and_arguments_stay_here(fresh: Pybuild, tmp_path: Path) -> None:
    """Of a step, the cache has a hash and its layer: no arguments, no environment, no secrets."""
    context, cache = (
        fresh.context("FROM busybox AS a\nARG token\nRUN echo x > /x\nFROM scratch\nCOPY --from=a /x /\n"),
        tmp_path / "c",
    )
    fresh(NONE, "--build-arg=token=hunter2", f"--cache-to=type=local,dest={cache},mode=max", context).ok()
    assert not [path for path in cache.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]


@pytest.mark.parametrize(
    "option",
    """
    --cache-from=type=local --cache-from=type=local,src= --cache-from=type=inline --cache-from=type=s3,bucket=x
    --cache-to=type=local,src=/x --cache-to=type=local,dest=/x,mode=most --cache-to=type=registry
    --cache-to=type=local,dest=/x,compression=lzma --cache-to=type=local,dest=/x,odd=1
    """.split(),
)
def test_options_that_make_no_sense(fresh: Pybuild, option: str) -> None:
    fresh(option, fresh.context("FROM scratch\n")).failed(2)


def test_where_nothing_can_be_written(fresh: Pybuild, tmp_path: Path) -> None:
    """The build fails and says what with; ignore-error makes a warning of it."""
    (tmp_path / "file").write_text("")
    context, to = fresh.context("FROM busybox\nRUN true\n"), f"--cache-to=type=local,dest={tmp_path}/file/x"
    assert "writing" in fresh(NONE, to, context).failed().err
    assert "was not written" in fresh(NONE, f"{to},ignore-error=true", context).ok().err


def test_two_stores_of_one_machine(fresh: Pybuild, tmp_path: Path) -> None:
    """A store that has other layers under the same keys takes none that were made on top of others."""
    context, cache = fresh.context(TEXT, FILES), tmp_path / "cache"
    fresh(NONE, f"--cache-to=type=local,dest={cache},mode=max", context).ok()
    other = replace(fresh, store=tmp_path / "other")
    other("load", saved_busybox(fresh)).ok()
    own = other(NONE, "-q", context).ok().out
    again = other(NONE, "-q", f"--cache-from=type=local,src={cache}", context).ok().out
    assert own == again


def test_second_place(fresh: Pybuild, tmp_path: Path) -> None:
    """What is here already, and in one cache as another blob, is written to a second cache."""
    text = "FROM busybox\nCOPY f /f\nRUN echo 1 > /a\n"
    context, one, two = fresh.context(text, FILES), tmp_path / "one", tmp_path / "two"
    fresh(NONE, f"--cache-to=type=local,dest={one}", context).ok()
    other = Pybuild(tmp_path / "other", tmp_path)
    other("load", saved_busybox(fresh)).ok()
    other(NONE, context).ok()
    options = (f"--cache-from=type=local,src={one}", f"--cache-to=type=local,dest={two},mode=max")
    other(NONE, *options, context).ok()
    last = Pybuild(tmp_path / "last", tmp_path)
    last("load", saved_busybox(fresh)).ok()
    assert last(NONE, f"--cache-from=type=local,src={two}", context).ok().executed == 0


def test_offline_again(fresh: Pybuild, tmp_path: Path, tools: dict[str, str]) -> None:
    """What was restored is built again when the registry is gone, its base having stayed there."""
    with registry(tools["docker-registry"], tmp_path) as host:
        fresh("tag", "busybox", f"{host}/base:1").ok()
        fresh("push", f"{host}/base:1").ok()
        text = f"FROM {host}/base:1 AS b\nRUN echo hi > /x\nFROM scratch\nCOPY --from=b /x /x\n"
        context, cache = fresh.context(text), tmp_path / "cache"
        fresh(NONE, f"--cache-to=type=local,dest={cache},mode=max", context).ok()
        empty = Pybuild(tmp_path / "empty", tmp_path)
        image = empty(NONE, "-q", f"--cache-from=type=local,src={cache}", context).ok().out
    assert empty(NONE, "-q", f"--cache-from=type=local,src={cache}", context).ok().out == image
