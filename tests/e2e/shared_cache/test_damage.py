"""Shared caches that are damaged, forged or too large (SEC-09)."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
import zstandard
from harness import Pybuild
from shared_caches import NONE, blob_path, layer_paths, manifest_of, saved_busybox

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped", "longer", "fifo"])
def test_damaged_layers(fresh: Pybuild, empty: Pybuild, tmp_path: Path, damage: str) -> None:
    """The build goes on without the cache, and says so."""
    context, cache = fresh.context("FROM busybox\nRUN echo 1 > /a\nRUN echo 2 > /b\n"), tmp_path / "cache"
    fresh(NONE, f"--cache-to=type=local,dest={cache}", context).ok()
    for path in layer_paths(cache):
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
    manifest = json.loads(json.dumps(manifest_of(cache)))
    records = json.loads(blob_path(cache, manifest["config"]["digest"]).read_bytes())
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


def test_damaged_cache_heals(fresh: Pybuild, tmp_path: Path) -> None:
    """Blobs that are not what they are named for are written again, although they have the right size."""
    context, cache = (
        fresh.context("FROM busybox\nRUN touch -d @1 /a /\nRUN touch -d @2 /b /\n"),
        tmp_path / "cache",
    )
    where = f"type=local,dest={cache},mode=max"
    fresh(NONE, f"--cache-to={where}", context).ok()
    for path in layer_paths(cache):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    for number, executed in enumerate((2, 0)):
        made = Pybuild(tmp_path / f"job{number}", tmp_path)
        made("load", saved_busybox(fresh)).ok()
        done = made(NONE, f"--cache-from=type=local,src={cache}", f"--cache-to={where}", context).ok()
        assert ("building without the caches" in done.err) == bool(executed)
        assert done.executed == executed


def test_bomb_in_a_cache(fresh: Pybuild, empty: Pybuild, tmp_path: Path) -> None:
    """A blob that grows without end is given up soon."""
    context, cache = fresh.context("FROM busybox\nRUN echo 1 > /a\n"), tmp_path / "cache"
    fresh(NONE, f"--cache-to=type=local,dest={cache}", context).ok()
    bomb = zstandard.ZstdCompressor().compress(bytes(100 << 20)) * 400
    manifest = json.loads(json.dumps(manifest_of(cache)))
    records = json.loads(blob_path(cache, manifest["config"]["digest"]).read_bytes())
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
