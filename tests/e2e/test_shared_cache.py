"""--cache-to and --cache-from: what one store built, an empty one has without running a step."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from harness import Pybuild, Tree
from oci import read_image
from servers import registry

pytestmark = pytest.mark.e2e

NONE = "--network=none"
# The first stage makes 3 MB that nobody but it needs.
TEXT = """\
FROM busybox AS build
RUN dd if=/dev/urandom of=/big bs=1M count=3 2>/dev/null; sha256sum /big > /sum; cat /proc/sys/kernel/random/uuid > /u
FROM busybox
COPY --from=build /sum /u /
RUN --mount=type=bind,from=build,target=/b cat /b/u > /v
RUN cat /sum > /sum2
WORKDIR /w
COPY f /f
"""
FILES: Tree = {"f": "1"}


@pytest.fixture
def server(tools: dict[str, str], tmp_path: Path) -> Iterator[str]:
    with registry(tools["docker-registry"], tmp_path) as host:
        yield host


@pytest.fixture
def empty(fresh: Pybuild, tmp_path: Path, busybox: Path) -> Pybuild:
    """Another store with busybox in it."""
    made = Pybuild(tmp_path / "empty", tmp_path)
    made("load", busybox).ok()
    return made


def size(store: Path) -> int:
    """The bytes in all files of a store."""
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file() and not path.is_symlink())


def restored(made: Pybuild, context: Path, *options: str) -> str:
    """The image that a build gives in which nothing is executed."""
    done = made(NONE, "-q", *options, context).ok()
    shown = made(NONE, "--progress=plain", *options, "--iidfile", made.work / "iid", context).ok()
    assert not shown.executed, shown.err
    assert (made.work / "iid").read_text() == done.out.strip()
    return done.out.strip()


# -- where caches are ----------------------------------------------------------------------


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
    """--no-cache asks no cache, and what comes out is what the shared one has then."""
    context, cache = fresh.context(TEXT, FILES), f"{tmp_path}/cache"
    fresh(NONE, f"--cache-to=type=local,dest={cache},mode=max", context).ok()
    options = (f"--cache-from=type=local,src={cache}", f"--cache-to=type=local,dest={cache},mode=max")
    done = fresh(NONE, "--no-cache", *options, context).ok()
    assert done.executed == 6


# -- cache mounts --------------------------------------------------------------------------


def test_cache_mounts(fresh: Pybuild, empty: Pybuild, tmp_path: Path) -> None:
    """They are there again on an empty machine, owners, links and times too; a machine's own come first."""
    text = """\
FROM busybox
ARG n
RUN --mount=type=cache,id=npm,target=/c --mount=type=cache,id=other,target=/o,uid=5,mode=0700 \
  ls -lnR /c /o | tee /listed; cat /c/d/x; mkdir -p /c/d; echo $n > /c/d/x; ln -f /c/d/x /c/y; ln -sf d /c/l; \
  chown 5:6 /c/d; touch -d @1000000000 /c/d/x; touch /o/z
"""
    context, cache = fresh.context(text), tmp_path / "cache"
    fresh(NONE, "--build-arg=n=one", f"--cache-to=type=local,dest={cache},mounts=true", context).ok()
    done = empty(NONE, "--build-arg=n=two", f"--cache-from=type=local,src={cache}", "-t", "a", context).ok()
    assert " one\n" in done.err
    listed = empty("run", "a", "cat", "/listed").ok().out
    assert "2001" in listed and "l -> d" in listed and "z" in listed
    owners = {
        line.split()[-1]: line.split()[1:4] for line in listed.splitlines() if line.startswith(("d", "-"))
    }
    assert owners["y"] == ["2", "0", "0"] and owners["d"] == ["2", "5", "6"]
    third = empty(NONE, "--build-arg=n=three", f"--cache-from=type=local,src={cache}", context).ok()
    assert " two\n" in third.err and " one\n" not in third.err


def test_cache_mounts_by_id(fresh: Pybuild, empty: Pybuild, tmp_path: Path) -> None:
    text = """\
FROM busybox
ARG n
RUN --mount=type=cache,id=a,target=/a --mount=type=cache,id=b,target=/b ls /a /b; touch /a/one /b/two
"""
    context, cache = fresh.context(text), tmp_path / "cache"
    fresh(NONE, f"--cache-to=type=local,dest={cache},mounts=b", context).ok()
    done = empty(NONE, "--build-arg=n=2", f"--cache-from=type=local,src={cache}", context).ok()
    assert " two\n" in done.err and " one\n" not in done.err
    nothing = tmp_path / "nothing"
    fresh(NONE, f"--cache-to=type=local,dest={nothing}", context).ok()
    assert "mount.v1" in json.dumps(_manifest(cache)) and "mount.v1" not in json.dumps(_manifest(nothing))


# -- bad caches (SEC-09) -------------------------------------------------------------------


def _manifest(cache: Path) -> dict[str, object]:
    index = json.loads((cache / "index.json").read_text())
    value: dict[str, object] = json.loads(_blob(cache, index["manifests"][0]["digest"]).read_bytes())
    return value


def _blob(cache: Path, digest: str) -> Path:
    return cache / "blobs/sha256" / digest.removeprefix("sha256:")


def _layers(cache: Path) -> list[Path]:
    manifest = json.loads(json.dumps(_manifest(cache)))
    return [_blob(cache, layer["digest"]) for layer in manifest["layers"]]


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped", "longer", "fifo"])
def test_damaged_layers(fresh: Pybuild, empty: Pybuild, tmp_path: Path, damage: str) -> None:
    """The build goes on without the cache, and says so."""
    context, cache = fresh.context("FROM busybox\nRUN echo 1 > /a\nRUN echo 2 > /b\n"), tmp_path / "cache"
    fresh(NONE, f"--cache-to=type=local,dest={cache}", context).ok()
    for path in _layers(cache):
        data = path.read_bytes()
        path.unlink()
        if damage == "cut":
            path.write_bytes(data[:-1])
        elif damage == "flipped":
            path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
        elif damage == "longer":
            path.write_bytes(data + b"x")
        elif damage == "fifo":
            os.mkfifo(path)
    done = empty(NONE, f"--cache-from=type=local,src={cache}", "-t", "a", context).ok()
    assert "building without the caches" in done.err and done.executed == 2
    assert empty("run", "a", "cat", "/a", "/b").ok().out == "1\n2\n"


def _forge(cache: Path, change: str) -> None:
    """Change what the records say and make everything around fit again."""
    manifest = json.loads(json.dumps(_manifest(cache)))
    records = json.loads(_blob(cache, manifest["config"]["digest"]).read_bytes())
    data = json.dumps(records).encode()
    first, second = (record["layer"] for record in records["steps"][:2])
    if change == "swapped":  # the blobs of the layers are exchanged
        records["layers"][first], records["layers"][second] = (
            records["layers"][second],
            records["layers"][first],
        )
    elif change == "unlisted":
        manifest["layers"] = []
    elif change == "key":
        records["steps"][0]["key"] = "../../etc"
    elif change == "digest":
        records["steps"][0]["layer"] = "sha256:../../../etc/passwd"
    elif change == "version":
        records["version"] = 2
    elif change == "list":
        records["steps"] = {}
    if change == "deep":
        data = b"[" * 100_000
    elif change == "twice":
        data = data.replace(b"{", b'{"version": 1, ', 1)
    else:
        data = json.dumps(records).encode()
    manifest["config"] |= {"digest": _put(cache, data), "size": len(data)}
    if change == "huge":
        manifest["config"]["size"] = 1 << 40
    if change == "index":
        manifest = {"manifests": [7, {"platform": []}]}
    elif change == "index-of-nothing":
        manifest = {"manifests": [{"platform": 7, "digest": "x"}]}
    body = json.dumps(manifest).encode()
    index = json.loads((cache / "index.json").read_text())
    index["manifests"][0] |= {"digest": _put(cache, body), "size": len(body)}
    (cache / "index.json").write_text(json.dumps(index))


def _put(cache: Path, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    (cache / "blobs/sha256" / digest).write_bytes(data)
    return f"sha256:{digest}"


CHANGES = [
    "swapped",
    "unlisted",
    "key",
    "digest",
    "version",
    "list",
    "deep",
    "twice",
    "huge",
    "index",
    "index-of-nothing",
]


@pytest.mark.parametrize("change", [*CHANGES, "nothing"])
def test_SEC_09_forged_records(fresh: Pybuild, empty: Pybuild, tmp_path: Path, change: str) -> None:
    """What records say is data: nothing is taken for what its digests do not say that it is."""
    context, cache = fresh.context("FROM busybox\nRUN echo 1 > /a\nRUN echo 2 > /b\n"), tmp_path / "cache"
    fresh(NONE, f"--cache-to=type=local,dest={cache}", context).ok()
    _forge(cache, change)
    done = empty(NONE, f"--cache-from=type=local,src={cache}", "-t", "a", context).ok()
    assert "Traceback" not in done.err
    assert done.executed == (0 if change == "nothing" else 2), done.err
    assert empty("run", "a", "cat", "/a", "/b").ok().out == "1\n2\n"


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
    other("load", _busybox(fresh)).ok()
    own = other(NONE, "-q", context).ok().out
    again = other(NONE, "-q", f"--cache-from=type=local,src={cache}", context).ok().out
    assert own == again


def _busybox(made: Pybuild) -> Path:
    path = made.work / "saved.tar"
    made("save", "busybox", "-o", path).ok()
    return path


# -- what a review found -------------------------------------------------------------------

STAGES = """\
FROM busybox AS b
RUN echo hello > /x && mkdir /d && cat /proc/sys/kernel/random/uuid > /d/r
FROM busybox
COPY --from=b /d/r /r
RUN echo 1 > /one
COPY f /f
"""


@pytest.mark.parametrize(
    "output",
    [
        "type=oci,dest={}", "type=docker,dest={}", "type=tar,dest={}", "type=oci,dest={},compression=zstd",
        "type=oci,dest={},rewrite-timestamp=true", "type=oci,dest={},compression=gzip,force-compression=true",
    ],
)  # fmt: skip
def test_restored_and_exported(fresh: Pybuild, empty: Pybuild, tmp_path: Path, output: str) -> None:
    """A restored image goes wherever a built one does, and is the same there."""
    context, cache = fresh.context(STAGES, FILES), tmp_path / "cache"
    options = ("--build-arg=SOURCE_DATE_EPOCH=1000000000", "-o")
    one, other = tmp_path / "one", tmp_path / "other"
    fresh(NONE, f"--cache-to=type=local,dest={cache},mode=max", *options, output.format(one), context).ok()
    done = empty(NONE, f"--cache-from=type=local,src={cache}", *options, output.format(other), context).ok()
    assert done.executed == 0
    if "zstd" not in output:  # where the blob of the cache is taken as it is
        assert one.read_bytes() == other.read_bytes()


def test_restored_and_pushed(fresh: Pybuild, empty: Pybuild, tmp_path: Path, server: str) -> None:
    """The recipe of docs/cache.md."""
    context, cache = fresh.context(STAGES, FILES), tmp_path / "cache"
    fresh(NONE, f"--cache-to=type=local,dest={cache},mode=max", context).ok()
    options = (f"--cache-from=type=local,src={cache}", f"--cache-to=type=local,dest={cache},mode=max")
    assert empty(NONE, *options, "--push", "-t", f"{server}/app:1", context).ok().executed == 0
    third = Pybuild(tmp_path / "third", tmp_path)
    third("pull", f"{server}/app:1").ok()
    assert third("run", NONE, f"{server}/app:1", "cat", "/one").ok().out == "1\n"


def _lose(cache: Path, text: bytes = b"") -> None:
    """Take away the layers that hold *text*, all without."""
    for path in _layers(cache):
        data = zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes())
        if text in data:
            path.unlink()


def test_layer_lost_while_steps_run(fresh: Pybuild, empty: Pybuild, tmp_path: Path) -> None:
    """Found when a COPY wants files of a cached stage: that is built then, and nothing is cancelled."""
    context, cache = fresh.context(STAGES, FILES), tmp_path / "cache"
    fresh(NONE, f"--cache-to=type=local,dest={cache},mode=max", context).ok()
    _lose(cache)
    context = fresh.context(
        STAGES.replace("RUN echo 1", "COPY --from=b /x /xx\nRUN sleep 0.2; echo 1"), FILES
    )
    done = empty(NONE, f"--cache-from=type=local,src={cache}", "-t", "a", context).ok()
    assert "building without the caches" in done.err
    assert empty("run", NONE, "a", "cat", "/xx").ok().out == "hello\n"


def test_hole_is_left_out(fresh: Pybuild, empty: Pybuild, tmp_path: Path) -> None:
    """A cache that has lost a layer nobody needs is written on, without that step."""
    context, cache = fresh.context(STAGES, FILES), tmp_path / "cache"
    where = f"type=local,dest={cache},mode=max"
    fresh(NONE, f"--cache-to={where}", context).ok()
    _lose(cache, b"hello")
    done = empty(NONE, f"--cache-from=type=local,src={cache}", f"--cache-to={where}", context).ok()
    assert "a step is left out" in done.err and "cached 3 steps" in done.err


def test_damaged_cache_heals(fresh: Pybuild, tmp_path: Path) -> None:
    """Blobs that are not what they are named for are written again, although they have the right size."""
    context, cache = (
        fresh.context("FROM busybox\nRUN touch -d @1 /a /\nRUN touch -d @2 /b /\n"),
        tmp_path / "cache",
    )
    where = f"type=local,dest={cache},mode=max"
    fresh(NONE, f"--cache-to={where}", context).ok()
    for path in _layers(cache):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    for number, executed in enumerate((2, 0)):
        made = Pybuild(tmp_path / f"job{number}", tmp_path)
        made("load", _busybox(fresh)).ok()
        done = made(NONE, f"--cache-from=type=local,src={cache}", f"--cache-to={where}", context).ok()
        assert ("building without the caches" in done.err) == bool(executed)
        assert done.executed == executed


def test_cache_mounts_survive_jobs_without_them(fresh: Pybuild, tmp_path: Path) -> None:
    """A job in which the step was cached hands its cache mount on."""
    text = "FROM busybox\nCOPY f /f\nRUN --mount=type=cache,id=m,target=/c echo run >> /c/log; wc -l /c/log\n"
    cache = tmp_path / "cache"
    said = ""
    for job, content in enumerate(("1", "1", "2")):
        made = Pybuild(tmp_path / f"job{job}", tmp_path)
        made("load", _busybox(fresh)).ok()
        context = made.context(text, {"f": content})
        options = (
            f"--cache-from=type=local,src={cache}",
            f"--cache-to=type=local,dest={cache},mode=max,mounts=true",
        )
        said = made(NONE, *options, context).ok().err
    assert " 2 /c/log" in said


def test_second_place(fresh: Pybuild, tmp_path: Path) -> None:
    """What is here already, and in one cache as another blob, is written to a second cache."""
    text = "FROM busybox\nCOPY f /f\nRUN echo 1 > /a\n"
    context, one, two = fresh.context(text, FILES), tmp_path / "one", tmp_path / "two"
    fresh(NONE, f"--cache-to=type=local,dest={one}", context).ok()
    other = Pybuild(tmp_path / "other", tmp_path)
    other("load", _busybox(fresh)).ok()
    other(NONE, context).ok()
    options = (f"--cache-from=type=local,src={one}", f"--cache-to=type=local,dest={two},mode=max")
    other(NONE, *options, context).ok()
    last = Pybuild(tmp_path / "last", tmp_path)
    last("load", _busybox(fresh)).ok()
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


def test_image_is_not_replaced_by_a_cache(fresh: Pybuild, server: str) -> None:
    name = f"{server}/app:9"
    context = fresh.context(STAGES, FILES)
    said = fresh(NONE, f"--cache-to=type=registry,ref={name}", "--push", "-t", name, context).failed().err
    assert "would take the place" in said
    fresh(NONE, "--push", "-t", name, context).ok()
    assert "is an image" in fresh(NONE, f"--cache-to=type=registry,ref={name}", context).failed().err


def test_bomb_in_a_cache(fresh: Pybuild, empty: Pybuild, tmp_path: Path) -> None:
    """A blob that grows without end is given up soon."""
    context, cache = fresh.context("FROM busybox\nRUN echo 1 > /a\n"), tmp_path / "cache"
    fresh(NONE, f"--cache-to=type=local,dest={cache}", context).ok()
    bomb = zstandard.ZstdCompressor().compress(bytes(100 << 20)) * 400
    manifest = json.loads(json.dumps(_manifest(cache)))
    records = json.loads(_blob(cache, manifest["config"]["digest"]).read_bytes())
    for item in (*manifest["layers"], *records["layers"].values()):
        item |= {"digest": _put(cache, bomb), "size": len(bomb)}
    data = json.dumps(records).encode()
    manifest["config"] |= {"digest": _put(cache, data), "size": len(data)}
    body = json.dumps(manifest).encode()
    index = json.loads((cache / "index.json").read_text())
    index["manifests"][0] |= {"digest": _put(cache, body), "size": len(body)}
    (cache / "index.json").write_text(json.dumps(index))
    started = time.monotonic()
    done = empty(NONE, f"--cache-from=type=local,src={cache}", context).ok()
    assert "grows without end" in done.err and time.monotonic() - started < 30


def test_layers_below_the_last_run_count(pybuild: Pybuild, fresh: Pybuild, tmp_path: Path) -> None:
    """A COPY that left out what a RUN had made is not put on what that RUN made elsewhere."""
    text = """\
FROM busybox AS a
RUN --mount=type=secret,id=s cat /run/secrets/s > /f; touch -d @1000 /f /
RUN true
FROM a AS b
COPY f /f
FROM b
RUN cat /f
"""
    context = pybuild.context(text, {"f": "A"})
    (context / "f").chmod(0o644)
    os.utime(context / "f", (1000, 1000))
    cache = f"{tmp_path}/cache"
    secret = "--secret=id=s,env=S"
    pybuild(
        NONE, "--no-cache", secret, f"--cache-to=type=local,dest={cache},mode=max", context, env={"S": "A"}
    ).ok()
    fresh(NONE, "--target=a", secret, context, env={"S": "B"}).ok()
    archive = tmp_path / "o.tar"
    given = (f"--cache-from=type=local,src={cache}", "-o", f"type=oci,dest={archive}")
    fresh(NONE, secret, *given, context, env={"S": "B"}).ok()
    assert read_image(archive).read("f") == b"A"
