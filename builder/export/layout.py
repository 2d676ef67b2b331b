"""An image as an OCI image layout in a folder (image-spec image-layout.md), beside those that are there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

from builder.errors import BuildError
from builder.events import Meter, Sink
from builder.image.model import INDEX_TYPE, to_json
from builder.strict_json import loads
from cache.digest import Digest, hex_of
from cache.kernel import read_regular
from cache.store import Store

_SMALL = 4 << 20
_CHUNK = 1 << 20
_REF_NAME = "org.opencontainers.image.ref.name"


def write_layout(
    store: Store, blobs: Mapping[Digest, int], entries: list[dict[str, Any]], dest: str, sink: Sink
) -> None:
    """Write *blobs* into the folder *dest*, and *entries* into its index in place of those of their names.

    Blobs that are there are left alone; each file appears whole, index.json last. Raises BuildError.
    """
    exporting = Meter("exporting", sum(blobs.values()), sink)
    try:
        os.makedirs(os.path.join(dest, "blobs/sha256"), exist_ok=True)
        for name, size in blobs.items():
            path = os.path.join(dest, "blobs/sha256", hex_of(name))
            if not (os.path.isfile(path) and os.path.getsize(path) == size):
                _copy(store.blob_path(name), path)
            exporting.add(size)
        names = {_name(entry) for entry in entries}
        kept = [entry for entry in _there(dest) if _name(entry) not in names and entry not in entries]
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [*kept, *entries]}
        _write(os.path.join(dest, "oci-layout"), to_json({"imageLayoutVersion": "1.0.0"}))
        _write(os.path.join(dest, "index.json"), to_json(index))
    except OSError as error:
        raise BuildError(f"writing an image layout to {dest}: {error.strerror}") from None
    exporting.finish()


def _there(folder: str) -> list[dict[str, Any]]:
    """What the index of *folder* names by now."""
    path = os.path.join(folder, "index.json")
    if not os.path.exists(path):
        return []
    value = loads(read_regular(path, _SMALL), path, _SMALL)
    entries = value.get("manifests") if isinstance(value, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise BuildError(f"{path} is not the index of an image layout", "write to another folder")
    return entries


def _name(entry: dict[str, Any]) -> object:
    """The name of an entry; one without is known by its digest."""
    marks = entry.get("annotations")
    name = marks.get(_REF_NAME) if isinstance(marks, dict) else None
    return name or entry.get("digest")


def _copy(source: str, target: str) -> None:
    temporary = f"{target}.pybuild-{os.getpid()}"
    try:
        with open(source, "rb") as reading, open(temporary, "xb") as writing:
            while data := reading.read(_CHUNK):
                writing.write(data)
            writing.flush()
            os.fsync(writing.fileno())
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _write(path: str, data: bytes) -> None:
    temporary = f"{path}.pybuild-{os.getpid()}"
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
