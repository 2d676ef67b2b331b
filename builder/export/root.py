"""The files of an image as a tar (``type=tar``) or in a directory (``type=local``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from builder.copy.place import copy_tree
from builder.errors import OutputError
from builder.events import Meter, Notice, Sink
from builder.export.archive import destination
from builder.export.exporters import Export
from builder.images.local import snapshots
from builder.oci.model import ImageConfig
from cache.entry import DIRECTORY, SYMLINK, Entry
from cache.fs import remove_tree
from cache.layer.landlock import confined
from cache.layer.pack import pack, walk
from cache.layer.snapshots import draft, tree_of
from cache.layer.unpack import unpack_layer
from cache.store import Store
from grammar.structs import replace, struct

_CHUNK = 1 << 20


@struct
class Roots:
    """The files of images, by the directories that docker names after their platforms.

    With ``split`` each image is in its directory, else all are merged. No file gets a later time than
    ``epoch``, in seconds, if that is given.
    """

    images: tuple[tuple[str, ImageConfig], ...]
    split: bool
    epoch: int | None


def export_tar(export: Export) -> None:
    """Write a tar of the files of an export's images. Raises BuildError or CacheError."""
    with destination(export.output.dest) as write:
        _pack_roots(export.store, _roots(export, None), write, export.sink)


def export_directory(export: Export) -> None:
    """Write the files of an export's images into a directory. Raises BuildError or CacheError."""
    output = export.output
    write_folder(export.store, _roots(export, output.split), output.dest, export.sink, output.delete)


def _roots(export: Export, split: bool | None) -> Roots:
    """Return the files of an export's images. Where *split* is None, those of several images are split."""
    images = tuple((str(image.config.platform).replace("/", "_"), image.config) for image in export.images)
    epoch = export.images[0].epoch if export.output.rewrite_timestamp else None
    return Roots(images, len(images) > 1 if split is None else split, epoch)


def write_folder(store: Store, roots: Roots, dest: str, sink: Sink, delete: bool) -> None:
    """Write images' files into the directory *dest*, over what is there. They belong to the caller's user.

    With *delete*, nothing else is left in *dest*. No name or link leads out of it, whatever it holds already.
    Files lose their setuid and setgid bits, which would give whoever runs them the rights of the caller.

    Raises BuildError, also where *delete* would remove the store, or where two merged images have a file of
    the same name.
    """
    if delete and _holds(dest, store.root):
        raise OutputError(f"mode=delete would remove the store, which is in {dest}", "use another directory")
    try:
        os.makedirs(dest, exist_ok=True)
        root = os.open(dest, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise OutputError(f"writing to the directory {dest}: {error.strerror}") from None
    packed = []
    try:
        seen: dict[str, str] = {}
        privileged = 0
        parts = [roots] if roots.split else [replace(roots, images=(one,)) for one in roots.images]
        for part in parts:
            packed.append(store.temporary())
            with open(packed[-1], "xb") as file:
                privileged += _pack_roots(store, part, file.write, sink, seen, keep_ids=False)
        if privileged:
            note = f"{dest}: {privileged} files lose their setuid or setgid bits, as they belong to you"
            sink(Notice(note, warning=True))

        def write() -> None:
            if delete:
                _clear(root, dest)
            for path in packed:
                with open(path, "rb") as reading:
                    unpack_layer(reading.read, root, base=True, owners=False)

        confined([dest, *packed], write)
    finally:
        os.close(root)


def _holds(folder: str, path: str) -> bool:
    folder, path = os.path.realpath(folder), os.path.realpath(path)
    return os.path.commonpath([folder, path]) == folder


def _clear(root: int, dest: str) -> None:
    """Empty the directory *dest*, open as *root*. Raises BuildError."""
    try:
        for name in os.listdir(root):
            remove_tree(name, root)
    except OSError as error:
        raise OutputError(f"removing what is in {dest}: {error.strerror}") from None


def _pack_roots(
    store: Store,
    roots: Roots,
    write: Callable[[bytes], object],
    sink: Sink,
    seen: dict[str, str] | None = None,
    keep_ids: bool = True,
) -> int:
    """Write a tar of merged trees, by way of a copy of them.

    *seen* maps paths of files to the image that has them; no other image may have the same path. Without
    *keep_ids*, files lose their setuid and setgid bits. Return how many did. Raises BuildError.
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
        for name, config in roots.images:
            top = os.path.join(made.upper, name) if roots.split else made.upper
            os.makedirs(top, 0o755, exist_ok=True)
            if layers := snapshots(store, config):
                copy_tree(tree_of(store, layers), top)
            if roots.split:
                os.utime(top, (0, 0))  # as docker has them
        root = os.open(made.upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            entries = walk(root) if keep_ids else map(plain, walk(root))
            if not roots.split and seen is not None:
                entries = _apart(entries, roots.images[0][0], seen)
            if roots.epoch is not None:
                limit = roots.epoch * 10**9
                entries = (entry._replace(mtime=min(entry.mtime, limit)) for entry in entries)
            pack(root, entries, count)
        finally:
            os.close(root)
    meter.finish()
    return privileged


def _apart(entries: Iterator[Entry], whose: str, seen: dict[str, str]) -> Iterator[Entry]:
    """Yield the entries. Raise BuildError for a file whose path was *seen* in another image."""
    for entry in entries:
        if entry.kind != DIRECTORY and (other := seen.setdefault(entry.path, whose)) != whose:
            raise OutputError(
                f"platform-split=false: {other} and {whose} both have /{entry.path}",
                "leave that out: each platform then gets its own directory",
            )
        yield entry
