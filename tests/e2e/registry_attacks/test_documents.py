"""Odd manifests, indexes and names (REG-12, REG-16, REG-18)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from faults import Answer
from harness import Pybuild
from stages import INDEX, MANIFEST, Stage, config_of

from builder.errors import BuildError
from builder.oci.model import host as machine
from builder.registry.errors import Untrusted
from cache.errors import CacheError

pytestmark = pytest.mark.e2e


def item(server: Stage, **changes: Any) -> dict[str, Any]:
    """The entry of an index for a sound image."""
    name = server.manifest(server.image())
    size = len(json.dumps(server.image()))
    platform = {"os": machine().os, "architecture": machine().architecture}
    return {"mediaType": MANIFEST, "digest": name, "size": size, "platform": platform, **changes}


def index(server: Stage, *items: Any) -> str:
    return server.manifest({"schemaVersion": 2, "mediaType": INDEX, "manifests": list(items)}, INDEX)


def test_REG_12_benign(server: Stage) -> None:
    """An entry among strangers; a wrong ``data`` is not looked at."""
    odd: list[Any] = [{"os": 1}, {}, None, [], "x", {"os": "linux"}]
    strange = [{**item(server), "platform": platform} for platform in odd]
    index(server, *strange, item(server, data="bm8="))
    config_of(server)


@pytest.mark.parametrize("size", [-1, -(10**18), 1.5, "12", None, True, [], 10**30])
def test_REG_12_size(server: Stage, size: object) -> None:
    image = server.image()
    image["config"]["size"] = size
    server.manifest(image)
    with pytest.raises((BuildError, CacheError)):
        config_of(server)


def test_REG_12_size_zero(server: Stage) -> None:
    image = server.image()
    image["config"]["size"] = 0
    server.manifest(image)
    with pytest.raises(Untrusted):
        config_of(server)


@pytest.mark.parametrize("kind", ["itself", "deep", "many", "no-list", "list-of-lists", "no-digest"])
def test_REG_12_index(server: Stage, kind: str) -> None:
    """Bounded in depth and number."""
    entry = item(server)
    if kind == "itself":
        server.answers[f"/v2/x/manifests/{'sha256:' + '0' * 64}"] = Answer(
            200, {"Content-Type": INDEX}, b"{}"
        )
        index(server, {**entry, "digest": "sha256:" + "0" * 64})
    elif kind == "deep":
        for _ in range(1000):
            entry = {**entry, "digest": index(server, entry), "mediaType": INDEX}
    elif kind == "many":
        index(server, *[entry] * 20_000)
    elif kind == "no-list":
        server.manifest({"schemaVersion": 2, "mediaType": INDEX, "manifests": {"a": 1}}, INDEX)
    elif kind == "list-of-lists":
        index(server, [entry])
    else:
        index(server, {**entry, "digest": None})
    start = time.monotonic()
    with pytest.raises((BuildError, CacheError)):
        config_of(server)
    assert time.monotonic() - start < 5 and len(server.asked) < 8


@pytest.mark.parametrize(
    "digest",
    ["sha256:../../../../etc/passwd", "sha256:" + "A" * 64, "sha512:" + "0" * 128, "sha256:" + "0" * 63, "md5:x",
     "sha256:" + "0" * 64 + "/../../x", "sha256:%2e%2e", "", None, 5],
)  # fmt: skip
def test_REG_16_digest_as_path(server: Stage, digest: object) -> None:
    """What is no digest is not asked for, with or without credentials."""
    image = server.image()
    image["config"]["digest"] = digest
    server.manifest(image)
    with pytest.raises((BuildError, CacheError)):
        config_of(server)
    assert [asked.route for asked in server.asked] == ["/v2/x/manifests/latest"]


def test_REG_18_names_of_strangers(server: Stage, tmp_path: Path) -> None:
    """An image is called what the command line says, whatever it says of itself."""
    image = server.image()
    names = {"org.opencontainers.image.ref.name": "docker.io/library/alpine:3",
             "io.containerd.image.name": "docker.io/library/debian:12"}  # fmt: skip
    server.manifest({**image, "annotations": names})
    pybuild = Pybuild(tmp_path / "store", tmp_path)
    env = {"CONTAINERS_REGISTRIES_CONF": str(tmp_path / "registries.conf")}
    pybuild("pull", f"{server.host}/x", env=env).ok()
    listed = pybuild("images").ok().out
    assert f"{server.host}/x" in listed and "alpine" not in listed and "debian" not in listed
