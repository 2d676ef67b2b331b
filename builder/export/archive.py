"""Tar archives of images: the OCI layout, and with ``docker load``'s manifest.json beside it.

Entries have fixed owners, modes and times, so equal images give equal archives. A file is
written under a temporary name beside its destination and renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from builder.errors import OutputError
from builder.events import Meter, Notice, Sink
from builder.export.destination import open_place
from builder.export.exporters import Export
from builder.export.image import ExportedImage, exported_image, pack_all
from builder.export.layout import write_layout
from builder.oci.layout import INDEX_FILE, VERSION, VERSION_FILE
from builder.oci.manifest import blob_path, index_bytes, named
from builder.oci.model import to_json
from cache.descriptor import Descriptor
from cache.digest import Digest
from cache.entry import DIRECTORY, FILE, Entry
from cache.fs import atomic_file
from cache.kernel import write_all
from cache.layer.pack import header
from cache.store import Store
from grammar.reference import parse_reference
from grammar.structs import struct

if TYPE_CHECKING:
    from builder.attest.statement import Bundle

_CHUNK = 1 << 20
_NAME = 200  # bytes of a name that one of a temporary file begins with


def export_archive(export: Export) -> Descriptor:
    """Write an OCI archive, or a layout in a directory where the output says so.

    Raises BuildError or CacheError.
    """
    packed = pack_all(export)
    attached: list[Bundle] = []
    if artifacts := export.attest(packed):
        from builder.attest.statement import bundles  # imports a library that few builds need

        attached = bundles(artifacts)
        for item in attached:
            item.keep(export.store)
    image = exported_image(export.store, packed, export.output, attached)
    if export.output.folder:
        write_layout(
            export.store, image.all_blobs(), entries_of(image, export.names), export.output.dest, export.sink
        )
    else:
        write_archive(export.store, [NamedImage(image, export.names)], export.output.dest, export.sink)
    return image.descriptor


def export_docker_archive(export: Export) -> Descriptor:
    """Write what ``docker load`` reads; without a destination give it to docker or podman.

    Raises BuildError or CacheError.
    """
    if len(export.images) > 1:
        raise OutputError("an archive for docker load holds one platform", "use type=oci, or one --platform")
    image = exported_image(export.store, pack_all(export), export.output)
    images = [NamedImage(image, export.names)]
    if export.output.dest:
        write_archive(export.store, images, export.output.dest, export.sink, docker=True)
        return image.descriptor
    from builder.export.daemon import load

    temporary = export.store.temporary()
    try:
        write_archive(export.store, images, temporary, export.sink, docker=True)
        export.sink(Notice(load(temporary)))
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return image.descriptor


@struct
class NamedImage:
    """An image of an archive and the names (canonical references) that it has there."""

    image: ExportedImage
    names: tuple[str, ...]


def write_archive(
    store: Store, images: Sequence[NamedImage], dest: str, sink: Sink, docker: bool = False
) -> None:
    """Write images to the file *dest* ("-": standard output).

    With *docker*, add what ``docker load`` reads. Raises BuildError where *dest* cannot be written.
    """
    small = {
        VERSION_FILE: VERSION,
        INDEX_FILE: index_bytes([entry for item in images for entry in entries_of(item.image, item.names)]),
    }
    if docker:
        small["manifest.json"] = to_json(list(map(_docker_manifest, images)))
    blobs: dict[Digest, int] = {}
    for item in images:
        blobs |= item.image.all_blobs()
    with destination(dest) as write:
        _write_tar(store, small, blobs, write, sink)


def entries_of(image: ExportedImage, names: tuple[str, ...]) -> list[dict[str, object]]:
    """Return the entries of an image in an index: one for each name (T91), or one without a name."""
    entries = []
    for name in names or (None,):
        entry = image.descriptor.to_json()
        annotations = dict(image.descriptor.annotations)
        if name is not None:
            annotations |= named(parse_reference(name).tag or "latest", name)
        if annotations:
            entry["annotations"] = annotations
        first = image.images[0]
        if image.descriptor == first.descriptor:
            entry["platform"] = first.platform.to_json()
        entries.append(entry)
    return entries


def _docker_manifest(item: NamedImage) -> dict[str, object]:
    """Return the entry of manifest.json for an image, which is for one platform."""
    (packed,) = item.image.images
    return {
        "Config": blob_path(packed.config.digest),
        "RepoTags": [parse_reference(name).familiar for name in item.names],
        "Layers": [blob_path(layer.digest) for layer in packed.layers],
    }


@contextlib.contextmanager
def destination(dest: str) -> Iterator[Callable[[bytes], object]]:
    """Yield a function that writes to *dest*. The file appears whole or not at all."""
    if dest == "-":
        if sys.stdout.isatty():
            raise OutputError(
                "refusing to write an archive to a terminal", "redirect standard output, or name a file"
            )
        yield _named(lambda data: write_all(1, data), "to standard output")
        return
    try:
        if special := _open_special(dest):
            with special:
                yield _named(special.write, dest)
            return
        folder, name, _found = open_place(dest)
    except OSError as error:
        raise OutputError(f"writing {dest}: {error.strerror}") from None
    # Nobody can have made it before.
    temporary = f"{os.fsdecode(os.fsencode(name)[:_NAME])}.pybuild-{os.urandom(8).hex()}"
    try:
        with atomic_file(name, temporary, 0o666, dir_fd=folder) as file:
            yield _named(file.write, dest)
    except OSError as error:
        raise OutputError(f"writing {dest}: {error.strerror}") from None
    finally:
        os.close(folder)


def _open_special(dest: str) -> BinaryIO | None:
    """Open a pipe or a device, which is written to and never replaced; None for others. Raises OSError."""
    if not os.path.exists(dest) or os.path.isfile(dest):
        return None
    if not os.path.realpath(dest).startswith("/proc/"):  # /dev/stdout is a link of the kernel's
        os.close(open_place(dest)[0])
    fd = os.open(dest, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(fd).st_mode):  # somebody has just put it there
        os.close(fd)
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
    return open(fd, "wb", buffering=_CHUNK)


def _named(write: Callable[[bytes], object], dest: str) -> Callable[[bytes], object]:
    """Return *write* with errors that name *dest*."""

    def put(data: bytes) -> None:
        try:
            write(data)
        except OSError as error:
            raise OutputError(f"writing {dest}: {error.strerror}") from None

    return put


def _write_tar(
    store: Store,
    small: dict[str, bytes],
    blobs: dict[Digest, int],
    write: Callable[[bytes], object],
    sink: Sink,
) -> None:
    exporting = Meter("exporting", sum(blobs.values()), sink)
    for folder in ("blobs", "blobs/sha256"):
        write(header(Entry(folder, DIRECTORY, 0o755)))
    for name in sorted(blobs):
        write(header(Entry(blob_path(name), FILE, 0o644, size=blobs[name])))
        with open(store.blob_path(name), "rb") as file:
            while data := file.read(_CHUNK):
                write(data)
                exporting.add(len(data))
        write(bytes(-blobs[name] % 512))
    for path, data in sorted(small.items()):
        write(header(Entry(path, FILE, 0o644, size=len(data))))
        write(data + bytes(-len(data) % 512))
    write(bytes(1024))
    exporting.finish()
