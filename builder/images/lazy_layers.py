"""Layers that are not unpacked: known by their diff IDs, their blobs in the store or elsewhere.

Where a stack of layers is given, such a layer stands there by its diff ID until somebody needs its
files: a cached step whose files nobody reads is never fetched.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from builder.errors import BuildError, LayerLost
from builder.events import Meter, Sink
from builder.oci.blobs import BlobSource
from builder.support.parallel import each
from cache.descriptor import Descriptor
from cache.digest import DiffId, Digest, SnapshotId, digest, hex_of
from cache.errors import CacheError, CorruptError, SpaceError
from cache.layer.blobs import add_blob, check_blob, layer_tar, stored
from cache.store import Store, write_error
from grammar.structs import field, struct

_AT_ONCE = 4
_MARK = "sha256:"  # no snapshot's name begins like that


def is_packed(layer: str) -> bool:
    """Whether *layer*, of a stack, is a diff ID and not a snapshot."""
    return layer.startswith(_MARK)


@struct(frozen=False)
class Layers:
    """The layers of one build that are elsewhere, and how they get here."""

    store: Store
    sink: Sink
    damaged: set[Digest] = field(factory=set)
    """Blobs that some place has, and that are not what they are named for."""
    _of_bases: dict[DiffId, list[tuple[BlobSource, Descriptor]]] = field(factory=dict)
    _of_caches: dict[DiffId, list[tuple[BlobSource, Descriptor]]] = field(factory=dict)
    _images: list[tuple[str, Digest, tuple[DiffId, ...]]] = field(factory=list)

    def add(self, layer: DiffId, source: BlobSource, descriptor: Descriptor) -> None:
        """Say that *source*, a shared cache, has the layer as the blob *descriptor*."""
        self._of_caches.setdefault(layer, []).append((source, descriptor))

    def leave(
        self, name: str, image: Digest, layers: Iterable[tuple[DiffId, Descriptor]], source: BlobSource
    ) -> None:
        """Say that the base image *name* is left in *source*; it gets its name once all of it is here."""
        found = list(layers)
        for layer, descriptor in found:
            self._of_bases.setdefault(layer, []).append((source, descriptor))
        self._images.append((name, image, tuple(layer for layer, _ in found)))

    def named(self, layer: DiffId) -> str:
        """The layer as a stack holds it: its snapshot, or else its diff ID; "" where nobody has it."""
        if snapshot := self.store.index.unpacked(layer):
            return snapshot
        return layer if self._elsewhere(layer) or stored(self.store, layer) else ""

    def diff_id(self, layer: str) -> DiffId:
        """Return the diff ID of a layer of a stack, packing it if it never was."""
        if is_packed(layer):
            return DiffId(digest(layer))
        return layer_tar(self.store, SnapshotId(layer)).diff_id

    def forget(self) -> None:
        """No longer take layers from shared caches."""
        self._of_caches.clear()

    def tag_complete(self) -> None:
        """Give the images that are here whole their names."""
        for name, image, layers in self._images:
            if all(self.store.index.unpacked(layer) or stored(self.store, layer) for layer in layers):
                self.store.tag(name, image)

    def in_cache(self, layer: DiffId, place: str) -> Descriptor | None:
        """What the layer is as a blob of the shared cache called *place*, as that says itself."""
        found = self._of_caches.get(layer, ())
        return next((descriptor for source, descriptor in found if source.name == place), None)

    def unpacked(self, stack: tuple[str, ...]) -> tuple[str, ...]:
        """*stack* with every layer unpacked. Raises BuildError or CacheError."""
        self._each(stack, self._unpack)
        return tuple(
            self.store.index.unpacked(DiffId(layer)) or "" if is_packed(layer) else layer for layer in stack
        )

    def fetched(self, stack: Iterable[str]) -> None:
        """See that every layer of *stack* is in the store, be it as a blob. Raises as ``unpacked``."""
        self._each(stack, self._fetch)

    def _each(self, stack: Iterable[str], work: Callable[[DiffId], object]) -> None:
        missing = [DiffId(digest(layer)) for layer in dict.fromkeys(stack) if is_packed(layer)]
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
        """Put the layer's blob into the store and have it verified by *take*, from the first place that can.

        Raises LayerLost where none can.
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
                self.damaged.add(descriptor.digest)
                failure = error
        if failure is None:
            failure = BuildError(f"layer {layer} is gone from the store {self.store.root}")
        raise LayerLost(failure.message, failure.hint or "build, load or pull the image again")


@contextlib.contextmanager
def fetched(store: Store, source: BlobSource, descriptor: Descriptor, sink: Sink) -> Iterator[str]:
    """``downloaded``, shown as a transfer from *source*."""
    meter = Meter(f"fetching from {source.name}", descriptor.size, sink)
    with downloaded(store, descriptor, lambda file: source.blob(descriptor, file, meter.add)) as path:
        meter.finish()
        yield path


@contextlib.contextmanager
def downloaded(store: Store, descriptor: Descriptor, write: Callable[[BinaryIO], None]) -> Iterator[str]:
    """The path of a file, there for the time being, that *write* has filled with a blob, durable.

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
