"""Contents of a shared-cache test: its Dockerfiles, and the paths in a cache's folder."""

from __future__ import annotations

import json
from pathlib import Path

from harness import Pybuild, Tree

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


def manifest_of(cache: Path) -> dict[str, object]:
    index = json.loads((cache / "index.json").read_text())
    value: dict[str, object] = json.loads(blob_path(cache, index["manifests"][0]["digest"]).read_bytes())
    return value


def blob_path(cache: Path, digest: str) -> Path:
    return cache / "blobs/sha256" / digest.removeprefix("sha256:")


def layer_paths(cache: Path) -> list[Path]:
    manifest = json.loads(json.dumps(manifest_of(cache)))
    return [blob_path(cache, layer["digest"]) for layer in manifest["layers"]]


def saved_busybox(made: Pybuild) -> Path:
    path = made.work / "saved.tar"
    made("save", "busybox", "-o", path).ok()
    return path


STAGES = """\
FROM busybox AS b
RUN echo hello > /x && mkdir /d && cat /proc/sys/kernel/random/uuid > /d/r
FROM busybox
COPY --from=b /d/r /r
RUN echo 1 > /one
COPY f /f
"""
