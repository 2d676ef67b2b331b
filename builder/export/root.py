"""The files of an image without the image: as a tar, or in a folder (``type=tar``, ``type=local``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from builder.errors import BuildError
from builder.events import Meter, Notice, Sink
from builder.execute.files import copy_tree
from builder.export.archive import destination
from builder.image.local import snapshots
from builder.image.model import ImageConfig
from cache.confine import confined
from cache.entries import DIRECTORY, SYMLINK, Entry
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

    No name or link leads out of it, whatever lies there already (security.md SRC-22). Files lose their
    setuid and setgid bits: they would give whoever runs them the rights of who builds.
    """
    try:
        os.makedirs(dest, exist_ok=True)
        root = os.open(dest, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BuildError(f"writing to the folder {dest}: {error.strerror}") from None
    temporary = store.temporary()
    try:
        with open(temporary, "xb") as file:
            privileged = _pack_roots(store, {"": config}, file.write, sink, epoch, keep_ids=False)
        if privileged:
            note = f"{dest}: {privileged} files lose their setuid or setgid bits, as they belong to you"
            sink(Notice(note, warning=True))
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
    keep_ids: bool = True,
) -> int:
    """The tar of merged trees: a copy of them that is walked. Without *keep_ids* no file has a setuid or
    setgid bit; how many lost theirs.
    """
    privileged = 0

    def plain(entry: Entry) -> Entry:
        nonlocal privileged
        if entry.kind in (DIRECTORY, SYMLINK) or not entry.mode & 0o6000:
            return entry
        privileged += 1
        return entry._replace(mode=entry.mode & 0o1777)

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
            entries = walk(root) if keep_ids else map(plain, walk(root))
            if epoch is not None:
                limit = epoch * 10**9
                entries = (entry._replace(mtime=min(entry.mtime, limit)) for entry in entries)
            pack(root, entries, count)
        finally:
            os.close(root)
    meter.finish()
    return privileged
