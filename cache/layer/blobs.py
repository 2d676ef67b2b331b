"""Layers: snapshots with a diff ID, and the blobs that carry them.

A snapshot is packed and hashed when an image first needs its diff ID, and compressed when
an output first needs a blob; both are remembered.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from cache.descriptor import Descriptor
from cache.digest import Digest, digest, hex_of
from cache.entry import Entry
from cache.errors import CorruptError, MissingError
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

# What a blob may unpack to before it is taken for a bomb: any size up to this, then so many times its own.
_ANY_SIZE = 1 << 30
_MOST_GROWTH = 2000
_EAGER = 8 << 20  # bytes of a blob after which the disk is set to work


def diff_id(store: Store, snapshot: str) -> tuple[Digest, int]:
    """The diff ID of a snapshot and the size of its tar in bytes, packed now if it never was."""
    known, size = store.index.diff_id(snapshot)
    if known:
        return digest(known), size
    value, size = _pack(store, snapshot, lambda data: None)
    record_packed(store, snapshot, value, size)
    return value, size


def record_packed(store: Store, snapshot: str, value: str, size: int) -> None:
    """Remember that the tar of *snapshot* has the diff ID *value* and *size* bytes."""
    store.index.set_diff_id(snapshot, value, size)
    if not store.index.unpacked(value):  # the first tree to be this layer stays it
        store.index.set_unpacked(value, snapshot)


def _pack(
    store: Store, snapshot: str, write: Callable[[bytes], object], latest: int | None = None
) -> tuple[Digest, int]:
    """Pack a snapshot; no member gets a later time than *latest*, in seconds."""
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


def blob(
    store: Store,
    value: Digest,
    compression: str = comp.GZIP,
    progress: Progress | None = None,
    exact: bool = False,
    level: int = 0,
) -> Descriptor:
    """The layer *value* as a stored blob: any form it is stored in, else packed in *compression*.

    With *exact* no other compression will do. *progress* hears the number of uncompressed bytes
    handled.
    """
    found = stored(store, value, compression)
    if found is not None and (not exact or comp.compression_of(found.media_type) == compression):
        return found
    return _compress(store, snapshot_of(store, value), value, compression, progress, level=level)[1]


def stored(store: Store, value: Digest, compression: str = "") -> Descriptor | None:
    """A stored blob that is the layer *value*, in *compression* if there is such a one."""
    forms = store.index.blobs(value)
    forms.sort(key=lambda form: comp.compression_of(form[0]) != compression)
    for media, name, size in forms:
        if store.has_blob(digest(name)):
            return Descriptor(media, digest(name), size)
    return None


def clamped(store: Store, value: Digest, epoch: int, progress: Progress | None = None) -> Digest:
    """The layer *value* without times later than *epoch*, in seconds, stored as a blob; its diff ID."""
    memo = f"clamped:{epoch} {value}"
    known = (store.index.memo(memo) or b"").decode()
    if known and stored(store, digest(known)) is not None:
        return digest(known)
    made, _blob = _compress(store, snapshot_of(store, value), None, comp.GZIP, progress, epoch)
    store.index.set_memo(memo, made.encode())
    return made


def snapshot_of(store: Store, value: Digest) -> str:
    """The layer *value* as a snapshot, unpacked now where only a blob of it is here. Raises MissingError."""
    if snapshot := store.index.unpacked(value):
        return snapshot
    if (found := stored(store, value)) is not None:
        return add_blob(store, found, value)
    raise MissingError(
        f"layer {value} is gone from the store {store.root}", "build, load or pull the image again"
    )


def _compress(
    store: Store,
    snapshot: str,
    value: Digest | None,
    compression: str,
    progress: Progress | None,
    latest: int | None = None,
    level: int = 0,
) -> tuple[Digest, Descriptor]:
    """Store a snapshot's tar as a blob; it has to have the diff ID *value*, if that is given."""
    temporary = store.temporary()
    try:
        with open(temporary, "xb") as file:
            sha = hashlib.sha256()
            begun = 0

            def write(data: bytes) -> None:
                nonlocal begun
                sha.update(data)
                file.write(data)
                if file.tell() - begun >= _EAGER:  # or the disk would do nothing until the end
                    start_writing(file.fileno(), begun, _EAGER)
                    begun += _EAGER

            engine = comp.compressor(write, compression, level)

            def feed(data: bytes) -> None:
                engine.write(data)
                if progress is not None:
                    progress(len(data))

            packed, _size = _pack(store, snapshot, feed, latest)
            engine.close()
            file.flush()
            os.fsync(file.fileno())
            length = file.tell()
    except OSError as error:
        raise write_error(error, "a layer blob") from None
    if value is not None and packed != value:
        raise CorruptError(
            f"layer {value} has changed on disk: packing it again gives {packed}",
            f"build again with --no-cache; the damaged directory is snapshots/{snapshot}",
        )
    name = Digest("sha256:" + sha.hexdigest())
    store.publish(temporary, store.blob_path(name))
    media = comp.media_type(compression)
    store.index.add_blob(packed, media, name, length)
    return packed, Descriptor(media, name, length)


def add_tar(store: Store, read: Read) -> Digest:
    """Unpack a tar (any compression, found by its first bytes) as a layer of our own packing.

    Returns its diff ID, which is that of our tar, not of the one read.
    """
    stream = comp.detecting(read)
    with draft(store, ()) as made:
        _unpack(made.upper, stream, base=True)
        snapshot = commit(made)
    return diff_id(store, snapshot)[0]


def add_blob(store: Store, descriptor: Descriptor, expected: Digest, progress: Progress | None = None) -> str:
    """Unpack a stored layer blob and return its snapshot; unpacked before is free.

    The blob's digest and the diff ID *expected* by the image's config are both verified
    over every byte, before anything is published.
    """
    known = store.index.unpacked(expected)
    if known:
        return known
    with draft(store, ()) as made:
        implied: list[str] = []

        def take(stream: Read) -> Digest:
            return _unpack(made.upper, stream, implied=implied)

        size = _verify(store, descriptor, expected, progress, take)
        snapshot = commit(made, implied=implied)
    store.index.set_diff_id(snapshot, expected, size)
    store.index.set_unpacked(expected, snapshot)
    store.index.add_blob(expected, descriptor.media_type, descriptor.digest, descriptor.size)
    return snapshot


def check_blob(
    store: Store, descriptor: Descriptor, expected: Digest, progress: Progress | None = None
) -> None:
    """Verify a stored layer blob as ``add_blob`` does, and remember what it is, without unpacking it."""

    def read(stream: Read) -> Digest:
        sha, left = hashlib.sha256(), max(_ANY_SIZE, descriptor.size * _MOST_GROWTH)
        while data := stream(1 << 20):
            sha.update(data)
            left -= len(data)
            if left < 0:
                raise CorruptError(f"blob {descriptor.digest} grows without end when it is decompressed")
        return Digest("sha256:" + sha.hexdigest())

    _verify(store, descriptor, expected, progress, read)
    store.index.add_blob(expected, descriptor.media_type, descriptor.digest, descriptor.size)


def _verify(
    store: Store,
    descriptor: Descriptor,
    expected: Digest,
    progress: Progress | None,
    take: Callable[[Read], Digest],
) -> int:
    """Have *take* read the tar in a stored blob and say its diff ID; it and the digest have to be right.

    Returns the size of the tar in bytes.
    """
    size = 0
    with open(store.blob_path(descriptor.digest), "rb") as file:
        sha = hashlib.sha256()
        raw = _hashing(file, sha.update, progress)
        comp.compression_of(
            descriptor.media_type
        )  # has to be a layer; what it is, its bytes say, as for others
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
    """Unpack a tar of files, rather than a layer, into the empty *folder*. Raises CacheError."""
    _unpack(folder, comp.decompressing(read, compression), base=True)


def pack_folder(folder: str, compression: str, file: BinaryIO) -> Descriptor:
    """Write the tar of all in *folder* to *file*; what it is as a blob, its media type left to others."""
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
    return Descriptor("", Digest("sha256:" + sha.hexdigest()), file.tell())


def _named_plainly(entries: Iterable[Entry]) -> Iterator[Entry]:
    """*entries*, as far as no name means something else when it is unpacked. Raises LayerError."""
    for entry in entries:
        check_name(entry.path.rpartition("/")[2])
        yield entry


def _unpack(folder: str, read: Read, base: bool = False, implied: list[str] | None = None) -> Digest:
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
