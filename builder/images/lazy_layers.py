"""Layers that are not unpacked: known by diff ID, with blobs in the store or elsewhere.

In a stack such a layer is a diff ID until its files are needed. So the layer of a cached step whose files
no step reads is never fetched.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

from builder.errors import BuildError, LayerLost
from builder.events import Meter, Sink
from builder.oci.blobs import BlobSource
from builder.support.parallel import each
from cache.descriptor import Descriptor
from cache.digest import DiffId, Digest, Layer, SnapshotId, hex_of
from cache.errors import CacheError, CorruptError, MissingError, SpaceError
from cache.layer.blobs import add_blob, check_blob, layer_tar, stored
from cache.store import Store, write_error
from grammar.structs import field, struct

_AT_ONCE = 4


@struct(frozen=False)
class Layers:
    """The layers of one build that are not in the store, and where they are fetched from."""

    store: Store
    sink: Sink
    failed: set[Digest] = field(factory=set)
    """Digests of blobs that could not be fetched or verified.

    If there are any, an export of a shared cache uploads every blob again: a cache may list what it cannot
    deliver.
    """
    _of_bases: dict[DiffId, list[tuple[BlobSource, Descriptor]]] = field(factory=dict)
    _of_caches: dict[DiffId, list[tuple[BlobSource, Descriptor]]] = field(factory=dict)
    _images: list[tuple[str, Digest, tuple[DiffId, ...]]] = field(factory=list)

    def add(self, layer: DiffId, source: BlobSource, descriptor: Descriptor) -> None:
        """Record that *source*, a shared cache, has the layer as the blob *descriptor*."""
        self._of_caches.setdefault(layer, []).append((source, descriptor))

    def keep_remote(
        self, name: str, image: Digest, layers: Iterable[tuple[DiffId, Descriptor]], source: BlobSource
    ) -> None:
        """Record that the layers of the base image *name* are not fetched yet.

        It is tagged when all are stored.
        """
        found = list(layers)
        for layer, descriptor in found:
            self._of_bases.setdefault(layer, []).append((source, descriptor))
        self._images.append((name, image, tuple(layer for layer, _ in found)))

    def find(self, layer: DiffId) -> Layer | None:
        """Return the layer as a stack holds it: its snapshot, or its diff ID; None if no source has it."""
        snapshot = self.store.index.unpacked(layer)
        if snapshot is not None:
            return snapshot
        return layer if self._elsewhere(layer) or stored(self.store, layer) else None

    def required(self, layer: DiffId) -> Layer:
        """Return what ``find`` does. Raises LayerLost if no source has the layer."""
        found = self.find(layer)
        if found is None:
            raise LayerLost(f"layer {layer} is gone from the store", "build, load or pull the image again")
        return found

    def diff_id(self, layer: Layer) -> DiffId:
        """Return the diff ID of a layer of a stack, packing it if it never was."""
        return layer if isinstance(layer, DiffId) else layer_tar(self.store, layer).diff_id

    def forget(self) -> None:
        """Stop taking layers from shared caches."""
        self._of_caches.clear()

    def tag_complete(self) -> None:
        """Tag the base images whose layers are all stored now."""
        for name, image, layers in self._images:
            if all(self.store.index.unpacked(layer) or stored(self.store, layer) for layer in layers):
                self.store.tag(name, image)

    def in_cache(self, layer: DiffId, place: str) -> Descriptor | None:
        """Return the layer's blob in the shared cache called *place*, None where it has none."""
        found = self._of_caches.get(layer, ())
        return next((descriptor for source, descriptor in found if source.name == place), None)

    def unpacked(self, stack: Sequence[Layer]) -> tuple[SnapshotId, ...]:
        """Return the snapshots of *stack*, unpacking where necessary. Raises BuildError or CacheError."""
        self._each(stack, self._unpack)
        return tuple(layer if isinstance(layer, SnapshotId) else self._snapshot(layer) for layer in stack)

    def _snapshot(self, layer: DiffId) -> SnapshotId:
        snapshot = self.store.index.unpacked(layer)
        if snapshot is None:
            raise MissingError("a layer is gone from the store", "build, load or pull the image again")
        return snapshot

    def fetched(self, stack: Iterable[Layer]) -> None:
        """Fetch the layers of *stack* that the store lacks, as blobs. Raises BuildError or CacheError."""
        self._each(stack, self._fetch)

    def _each(self, stack: Iterable[Layer], work: Callable[[DiffId], object]) -> None:
        missing = [layer for layer in dict.fromkeys(stack) if isinstance(layer, DiffId)]
        if len(missing) == 1:
            work(missing[0])
        elif missing:
            each(work, missing, _AT_ONCE)

    def _unpack(self, layer: DiffId) -> None:
        with self.store.making(f"layer-{hex_of(layer)}"):
            if self.store.index.unpacked(layer):
                return
            if (here := stored(self.store, layer)) is not None:
                try:
                    add_blob(self.store, here, layer)
                    return
                except CorruptError:
                    if not self._elsewhere(layer):
                        raise
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self.store.blob_path(here.digest))
            self._download(layer, lambda found: add_blob(self.store, found, layer))

    def _fetch(self, layer: DiffId) -> None:
        with self.store.making(f"layer-{hex_of(layer)}"):
            if not self.store.index.unpacked(layer) and stored(self.store, layer) is None:
                self._download(layer, lambda found: check_blob(self.store, found, layer))

    def _elsewhere(self, layer: DiffId) -> list[tuple[BlobSource, Descriptor]]:
        return [*self._of_caches.get(layer, ()), *self._of_bases.get(layer, ())]

    def _download(self, layer: DiffId, take: Callable[[Descriptor], object]) -> None:
        """Store the layer's blob from the first source that works, and verify it by *take*.

        Raises LayerLost if none works.
        """
        failure: BuildError | CacheError | None = None
        for source, descriptor in self._elsewhere(layer):
            try:
                if not self.store.has_blob(descriptor.digest):
                    with fetched(self.store, source, descriptor, self.sink) as path:
                        self.store.publish(path, self.store.blob_path(descriptor.digest))
                take(descriptor)
                return
            except SpaceError:
                raise
            except (BuildError, CacheError) as error:
                self.failed.add(descriptor.digest)
                failure = error
        if failure is None:
            failure = BuildError(f"layer {layer} is gone from the store {self.store.root}")
        raise LayerLost(failure.message, failure.hint or "build, load or pull the image again")


@contextlib.contextmanager
def fetched(store: Store, source: BlobSource, descriptor: Descriptor, sink: Sink) -> Iterator[str]:
    """Fetch a blob of *source* into a temporary file, with progress; see ``downloaded``."""
    meter = Meter(f"fetching from {source.name}", descriptor.size, sink)
    with downloaded(store, descriptor, lambda file: source.blob(descriptor, file, meter.add)) as path:
        meter.finish()
        yield path


@contextlib.contextmanager
def downloaded(store: Store, descriptor: Descriptor, write: Callable[[BinaryIO], None]) -> Iterator[str]:
    """Yield the path of a temporary file that *write* has filled with a blob, durably.

    Raises BuildError or CacheError.
    """
    temporary = store.temporary()
    try:
        with open(temporary, "x+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    except OSError as error:
        raise write_error(error, f"blob {descriptor.digest}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
