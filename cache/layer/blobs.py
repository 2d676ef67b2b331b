"""Layers: snapshots that have a diff ID, and the blobs that carry them.

A snapshot is packed and hashed when an image first needs its diff ID. It is compressed when an output
first needs a blob. The index records both.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple

from cache.descriptor import Descriptor
from cache.digest import BlobDigest, DiffId, SnapshotId, hex_of
from cache.entry import Entry
from cache.errors import CorruptError, MissingError
from cache.index import LayerBlob, LayerTar
from cache.kernel import start_writing
from cache.layer import compression as comp
from cache.layer.landlock import confined
from cache.layer.pack import pack, walk
from cache.layer.readahead import ahead
from cache.layer.reduce import check_name
from cache.layer.snapshots import commit, draft, manifest
from cache.layer.tar_reader import Read
from cache.layer.unpack import unpack_layer
from cache.store import Store, write_error

Progress = Callable[[int], None]

# A blob may decompress to _ANY_SIZE bytes, or to _MOST_GROWTH times its own size; beyond it is a bomb.
_ANY_SIZE = 1 << 30
_MOST_GROWTH = 2000
_EAGER = 8 << 20  # bytes of a blob between two requests to write it back


def layer_tar(store: Store, snapshot: SnapshotId) -> LayerTar:
    """Return the diff ID and size of a snapshot's tar, packing it now if it never was."""
    known = store.index.layer_tar(snapshot)
    if known is None:
        known = _pack(store, snapshot, lambda data: None)
        record_packed(store, snapshot, known)
    return known


def record_packed(store: Store, snapshot: SnapshotId, tar: LayerTar) -> None:
    """Record the tar of *snapshot*."""
    store.index.set_layer_tar(snapshot, tar)
    if store.index.unpacked(tar.diff_id) is None:  # of equal trees the first stays the layer's
        store.index.set_unpacked(tar.diff_id, snapshot)


def _pack(
    store: Store, snapshot: SnapshotId, write: Callable[[bytes], object], latest: int | None = None
) -> LayerTar:
    """Write the tar of a snapshot to *write*; no member gets a time later than *latest* (seconds)."""
    try:
        root = os.open(store.path("snapshots", snapshot), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise MissingError(f"layer directory {snapshot} is gone from {store.root}", "build again") from None
    try:
        entries: Iterable[Entry] | None = manifest(store, snapshot)
        if entries is None:
            entries = walk(root)
        if latest is not None:
            limit = latest * 10**9
            entries = (entry._replace(mtime=min(entry.mtime, limit)) for entry in entries)
        return pack(root, entries, write)
    finally:
        os.close(root)


class Packing(NamedTuple):
    """How a layer is packed into a blob: compression, its level (0: the usual one), latest time (seconds)."""

    compression: str = comp.GZIP
    level: int = 0
    latest: int | None = None


_USUAL = Packing()


def blob(
    store: Store,
    layer: DiffId,
    packing: Packing = _USUAL,
    progress: Progress | None = None,
    exact: bool = False,
) -> Descriptor:
    """Return *layer* as a stored blob, packing it if it is stored in no form.

    With *exact* the blob must have the compression of *packing*. *progress* is called with each number of
    uncompressed bytes handled.
    """
    found = stored(store, layer, packing.compression)
    if found is not None and (not exact or comp.compression_of(found.media_type) == packing.compression):
        return found
    return _compress(store, snapshot_of(store, layer), packing, progress, layer).blob


def stored(store: Store, layer: DiffId, compression: str | None = None) -> Descriptor | None:
    """Return a stored blob of *layer*, preferably one in *compression*; None if there is none."""
    forms = store.index.blobs(layer)
    forms.sort(key=lambda form: comp.compression_of(form.media_type) != compression)
    for form in forms:
        if store.has_blob(form.digest):
            return Descriptor(form.media_type, form.digest, form.size)
    return None


def clamped(store: Store, layer: DiffId, epoch: int, progress: Progress | None = None) -> DiffId:
    """Return the diff ID of *layer* without times later than *epoch* (seconds), stored as a blob."""
    known = store.memos.clamped_layer(layer, epoch)
    if known is not None and stored(store, known) is not None:
        return known
    made = _compress(store, snapshot_of(store, layer), Packing(latest=epoch), progress).diff_id
    store.memos.set_clamped_layer(layer, epoch, made)
    return made


def snapshot_of(store: Store, layer: DiffId) -> SnapshotId:
    """Return the snapshot of *layer*, unpacking a stored blob now if needed. Raises MissingError."""
    if snapshot := store.index.unpacked(layer):
        return snapshot
    if (found := stored(store, layer)) is not None:
        return add_blob(store, found, layer)
    raise MissingError(
        f"layer {layer} is gone from the store {store.root}", "build, load or pull the image again"
    )


class _Made(NamedTuple):
    """A blob that was made, and the layer that it holds."""

    diff_id: DiffId
    blob: Descriptor


def _compress(
    store: Store,
    snapshot: SnapshotId,
    packing: Packing,
    progress: Progress | None,
    expected: DiffId | None = None,
) -> _Made:
    """Store the tar of a snapshot as a blob. Raises CorruptError if its diff ID is not *expected*."""
    temporary = store.temporary()
    try:
        with open(temporary, "xb") as file:
            sha = hashlib.sha256()
            begun = 0

            def write(data: bytes) -> None:
                nonlocal begun
                sha.update(data)
                file.write(data)
                if file.tell() - begun >= _EAGER:  # else the disk would be idle until the end
                    start_writing(file.fileno(), begun, _EAGER)
                    begun += _EAGER

            engine = comp.compressor(write, packing.compression, packing.level)

            def feed(data: bytes) -> None:
                engine.write(data)
                if progress is not None:
                    progress(len(data))

            packed = _pack(store, snapshot, feed, packing.latest).diff_id
            engine.close()
            file.flush()
            os.fsync(file.fileno())
            length = file.tell()
    except OSError as error:
        raise write_error(error, "a layer blob") from None
    if expected is not None and packed != expected:
        raise CorruptError(
            f"layer {expected} has changed on disk: packing it again gives {packed}",
            f"build again with --no-cache; the damaged directory is snapshots/{snapshot}",
        )
    name = BlobDigest("sha256:" + sha.hexdigest())
    store.publish(temporary, store.blob_path(name))
    media = comp.media_type(packing.compression)
    store.index.add_blob(packed, LayerBlob(media, name, length))
    return _Made(packed, Descriptor(media, name, length))


def add_tar(store: Store, read: Read) -> DiffId:
    """Unpack a tar of files, in any compression, as a layer and pack it anew.

    Returns the diff ID of the new tar, not that of the one read.
    """
    stream = comp.detecting(read)
    with draft(store, ()) as made:
        _unpack(made.upper, stream, base=True)
        snapshot = commit(made)
    return layer_tar(store, snapshot).diff_id


def add_blob(
    store: Store, descriptor: Descriptor, expected: DiffId, progress: Progress | None = None
) -> SnapshotId:
    """Unpack a stored layer blob and return its snapshot; if it was unpacked before, just return that.

    Both the blob's digest and the diff ID *expected*, from the image's config, are verified over every
    byte before anything is published.
    """
    known = store.index.unpacked(expected)
    if known:
        return known
    with draft(store, ()) as made:
        implied: list[str] = []

        def take(stream: Read) -> DiffId:
            return _unpack(made.upper, stream, implied=implied)

        size = _verify(store, descriptor, expected, progress, take)
        snapshot = commit(made, implied=implied)
    store.index.set_layer_tar(snapshot, LayerTar(expected, size))
    store.index.set_unpacked(expected, snapshot)
    _record_blob(store, expected, descriptor)
    return snapshot


def _record_blob(store: Store, layer: DiffId, descriptor: Descriptor) -> None:
    form = LayerBlob(descriptor.media_type, BlobDigest(descriptor.digest), descriptor.size)
    store.index.add_blob(layer, form)


def check_blob(
    store: Store, descriptor: Descriptor, expected: DiffId, progress: Progress | None = None
) -> None:
    """Verify a stored layer blob as ``add_blob`` does and record it, without unpacking it."""

    def read(stream: Read) -> DiffId:
        sha, left = hashlib.sha256(), max(_ANY_SIZE, descriptor.size * _MOST_GROWTH)
        while data := stream(1 << 20):
            sha.update(data)
            left -= len(data)
            if left < 0:
                raise CorruptError(f"blob {descriptor.digest} grows without end when it is decompressed")
        return DiffId("sha256:" + sha.hexdigest())

    _verify(store, descriptor, expected, progress, read)
    _record_blob(store, expected, descriptor)


def _verify(
    store: Store,
    descriptor: Descriptor,
    expected: DiffId,
    progress: Progress | None,
    take: Callable[[Read], DiffId],
) -> int:
    """Pass the tar in a stored blob to *take*, which returns its diff ID, and verify both digests.

    Returns the size of the tar in bytes. Raises CorruptError.
    """
    size = 0
    with open(store.blob_path(descriptor.digest), "rb") as file:
        sha = hashlib.sha256()
        raw = _hashing(file, sha.update, progress)
        comp.compression_of(descriptor.media_type)  # raises for what is no layer; the bytes say the rest
        unpacked = comp.detecting(raw, layer=True)
        with ahead(unpacked) as stream:

            def counted(count: int) -> bytes:
                nonlocal size
                data = stream(count)
                size += len(data)
                return data

            found = take(counted)
        while raw(1 << 20):
            pass
    if sha.hexdigest() != hex_of(descriptor.digest):
        raise CorruptError(f"blob {descriptor.digest} in {store.root} is damaged", "remove it and pull again")
    if found != expected:
        raise CorruptError(f"layer {descriptor.digest} unpacks to {found}, but it should be {expected}")
    return size


def unpack_tar(read: Read, compression: str, folder: str) -> None:
    """Unpack a tar of files, not of a layer, into the empty directory *folder*. Raises CacheError."""
    _unpack(folder, comp.decompressing(read, compression), base=True)


def pack_folder(folder: str, compression: str, file: BinaryIO) -> Descriptor:
    """Write the tar of the directory *folder* to *file* and return its descriptor, without media type."""
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    sha = hashlib.sha256()

    def write(data: bytes) -> None:
        sha.update(data)
        file.write(data)

    try:
        engine = comp.compressor(write, compression)
        pack(root, _named_plainly(walk(root)), engine.write)
        engine.close()
    finally:
        os.close(root)
    return Descriptor("", BlobDigest("sha256:" + sha.hexdigest()), file.tell())


def _named_plainly(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield *entries*; raise LayerError for a name that unpacking takes for a whiteout."""
    for entry in entries:
        check_name(entry.path.rpartition("/")[2])
        yield entry


def _unpack(folder: str, read: Read, base: bool = False, implied: list[str] | None = None) -> DiffId:
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        space = os.statvfs(root)
        limit = space.f_bavail * space.f_frsize
        return confined([folder], lambda: unpack_layer(read, root, limit, base, implied=implied))
    finally:
        os.close(root)


def _hashing(file: BinaryIO, update: Callable[[bytes], object], progress: Progress | None) -> Read:
    def read(count: int) -> bytes:
        data = file.read(count)
        update(data)
        if progress is not None and data:
            progress(len(data))
        return data

    return read
