"""Images of restored layers: how they are exported and pushed, and what a lost layer does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import zstandard
from harness import Pybuild
from oci import read_image
from shared_caches import FILES, NONE, STAGES, layer_paths

pytestmark = pytest.mark.e2e


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
    for path in layer_paths(cache):
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


def test_image_is_not_replaced_by_a_cache(fresh: Pybuild, server: str) -> None:
    name = f"{server}/app:9"
    context = fresh.context(STAGES, FILES)
    said = fresh(NONE, f"--cache-to=type=registry,ref={name}", "--push", "-t", name, context).failed().err
    assert "would take the place" in said
    fresh(NONE, "--push", "-t", name, context).ok()
    assert "is an image" in fresh(NONE, f"--cache-to=type=registry,ref={name}", context).failed().err


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
