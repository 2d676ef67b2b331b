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
from typing import BinaryIO

from builder.errors import BuildError
from builder.events import Meter, Sink
from builder.export.destination import open_place
from builder.export.image import Picture
from builder.oci.layout import INDEX_FILE, VERSION, VERSION_FILE
from builder.oci.manifest import blob_path, index_bytes, named
from builder.oci.model import to_json
from builder.support.stdout import write_all
from cache.digest import Digest
from cache.entry import DIRECTORY, FILE, Entry
from cache.fs import atomic_file
from cache.layer.pack import header
from cache.store import Store
from grammar.reference import parse_reference

_CHUNK = 1 << 20
_NAME = 200  # bytes of a name that one of a temporary file begins with


def write_archive(
    store: Store,
    images: Sequence[tuple[Picture, tuple[str, ...]]],
    dest: str,
    sink: Sink,
    docker: bool = False,
) -> None:
    """Write images to the file *dest* ("-": standard output), each under its names (canonical references).

    With *docker* the archive also holds what ``docker load`` reads. Raises BuildError when *dest* cannot
    be written.
    """
    small = {
        VERSION_FILE: VERSION,
        INDEX_FILE: index_bytes([entry for shown, names in images for entry in entries_of(shown, names)]),
    }
    if docker:
        small["manifest.json"] = to_json([_docker_manifest(shown, names) for shown, names in images])
    blobs: dict[Digest, int] = {}
    for shown, _names in images:
        blobs |= blobs_of(shown)
    with destination(dest) as write:
        _write_tar(store, small, blobs, write, sink)


def blobs_of(shown: Picture) -> dict[Digest, int]:
    """Every blob that a layout holds, and how long it is."""
    blobs = shown.blobs() | {
        item.digest: item.size for item in (shown.top, *(part.top for part, _ in shown.parts))
    }
    for said in shown.attached:
        blobs |= {item.digest: item.size for item in (said.top, *(item for item, _ in said.blobs))}
    return blobs


def entries_of(shown: Picture, names: tuple[str, ...]) -> list[dict[str, object]]:
    """One descriptor per name (T91); one without a name for an unnamed image."""
    entries = []
    for name in names or ("",):
        item = shown.top.to_json()
        marks = dict(shown.top.annotations)
        if name:
            marks |= named(parse_reference(name).tag or "latest", name)
        if marks:
            item["annotations"] = marks
        if shown.top == shown.parts[0][0].top:
            item["platform"] = shown.parts[0][1].to_json()
        entries.append(item)
    return entries


def _docker_manifest(shown: Picture, names: tuple[str, ...]) -> dict[str, object]:
    """What manifest.json says of an image, which is for one platform."""
    ((formed, _platform),) = shown.parts
    return {
        "Config": blob_path(formed.config.digest),
        "RepoTags": [parse_reference(name).familiar for name in names],
        "Layers": [blob_path(layer.digest) for layer in formed.layers],
    }


@contextlib.contextmanager
def destination(dest: str) -> Iterator[Callable[[bytes], object]]:
    """A writer to *dest*; the file appears whole or not at all."""
    if dest == "-":
        if sys.stdout.isatty():
            raise BuildError(
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
        raise BuildError(f"writing {dest}: {error.strerror}") from None
    # Nobody can have made it before.
    temporary = f"{os.fsdecode(os.fsencode(name)[:_NAME])}.pybuild-{os.urandom(8).hex()}"
    try:
        with atomic_file(name, temporary, 0o666, dir_fd=folder) as file:
            yield _named(file.write, dest)
    except OSError as error:
        raise BuildError(f"writing {dest}: {error.strerror}") from None
    finally:
        os.close(folder)


def _open_special(dest: str) -> BinaryIO | None:
    """A pipe or a device: it takes the bytes as they come, and is never replaced. Raises OSError."""
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
    """*write*, whose errors say that it was *dest* that could not be written."""

    def put(data: bytes) -> None:
        try:
            write(data)
        except OSError as error:
            raise BuildError(f"writing {dest}: {error.strerror}") from None

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
