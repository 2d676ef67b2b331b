"""The files of an image without the image: as a tar, or in a folder (``type=tar``, ``type=local``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from builder.errors import BuildError
from builder.events import Meter, Sink
from builder.execute.files import copy_tree
from builder.export.archive import destination
from builder.image.local import snapshots
from builder.image.model import ImageConfig
from cache.confine import confined
from cache.pack import pack, walk
from cache.snapshots import draft, tree_of
from cache.store import Store
from cache.unpack import unpack_layer

_CHUNK = 1 << 20


def write_root(
    store: Store, roots: Mapping[str, ImageConfig], dest: str, sink: Sink, epoch: int | None
) -> None:
    """Write a tar of images' roots to *dest*, each in a folder of that name ("" for none of its own).

    No time in it is later than *epoch*, if that is given.
    """
    with destination(dest) as write:
        _pack_roots(store, roots, write, sink, epoch)


def write_folder(store: Store, config: ImageConfig, dest: str, sink: Sink, epoch: int | None) -> None:
    """Write an image's files into the folder *dest*, over what is there; they belong to who builds.

    No name or link leads out of it, whatever lies there already (security.md SRC-22).
    """
    try:
        os.makedirs(dest, exist_ok=True)
        root = os.open(dest, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BuildError(f"writing to the folder {dest}: {error.strerror}") from None
    temporary = store.temporary()
    try:
        with open(temporary, "xb") as file:
            _pack_roots(store, {"": config}, file.write, sink, epoch)
        with open(temporary, "rb") as file:
            confined([dest], lambda: unpack_layer(file.read, root, base=True, owners=False))
    finally:
        os.close(root)


def _pack_roots(
    store: Store,
    roots: Mapping[str, ImageConfig],
    write: Callable[[bytes], object],
    sink: Sink,
    epoch: int | None,
) -> None:
    """The tar of merged trees: a copy of them that is walked."""
    meter = Meter("exporting files", 0, sink)

    def count(data: bytes) -> None:
        write(data)
        meter.add(len(data))

    with draft(store, ()) as made:
        for name, config in roots.items():
            top = os.path.join(made.upper, name)
            os.makedirs(top, 0o755, exist_ok=True)
            if layers := snapshots(store, config):
                copy_tree(tree_of(store, layers), top)
            if name:
                os.utime(top, (0, 0))  # as docker has them
        root = os.open(made.upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            entries = walk(root)
            if epoch is not None:
                limit = epoch * 10**9
                entries = (entry._replace(mtime=min(entry.mtime, limit)) for entry in entries)
            pack(root, entries, count)
        finally:
            os.close(root)
    meter.finish()
