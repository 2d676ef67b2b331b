"""``--cache-to``: write the results of steps to a shared cache."""

from __future__ import annotations

import fcntl
import os
import time

from builder.errors import LayerLost
from builder.events import Meter, Notice, Sink
from builder.images.lazy_layers import Layers
from builder.oci import media_types
from builder.oci.manifest import artifact_bytes
from builder.request import CachePlace, ClientOptions
from builder.shared_cache.backends import CacheBackend, open_backend
from builder.shared_cache.content_keys import ContentKey, packed, portable_chain
from builder.shared_cache.imports import Imports
from builder.shared_cache.records import Record, Records, encode, to_bytes
from builder.support.parallel import each
from cache.descriptor import Descriptor
from cache.digest import DiffId, Layer, digest_of
from cache.errors import CacheError
from cache.layer.blobs import Packing, blob, pack_folder, stored
from cache.layer.compression import ZSTD, compression_of, media_type
from cache.locks import try_lock
from cache.store import Store
from grammar.structs import replace, struct

_AT_ONCE = 4
_PATIENCE = 10.0  # seconds for another build to be done with a cache mount


@struct
class StepResult:
    """The result of a step of this build, with layers as the solver names them."""

    key: str
    run: tuple[Layer, ...]
    created: int
    layer: Layer


@struct
class Known:
    """The results of a build. ``last`` are the keys of the steps whose layers the image holds, ``mounts`` the
    cache mounts by their ids: their names, and their directories, "" for one that is not there.
    """

    steps: tuple[StepResult, ...]
    last: frozenset[str]
    contents: tuple[tuple[ContentKey, str], ...]
    mounts: dict[str, list[tuple[str, str]]]


def records_of(store: Store, known: Known, everything: bool) -> Records:
    """Return the records of all steps, or of those whose layers the image holds."""
    steps = []
    found: dict[Layer, DiffId] = {}
    for result in known.steps:
        if everything or result.key in known.last:
            run = portable_chain(store, result.run, found)
            steps.append(Record(result.key, run, result.created, packed(store, result.layer)))
    contents = {}
    if everything:
        contents = {alias.packed(store): content for alias, content in known.contents}
    steps.sort(key=lambda record: record.key)
    return Records(tuple(steps), contents)


def export(
    layers: Layers, known: Known, given: CachePlace, imports: Imports | None, options: ClientOptions
) -> None:
    """Write a cache to the place that *given* names. *imports* are the caches that this build has read.

    Raises BuildError or CacheError.
    """
    records = records_of(layers.store, known, given.mode == "max")
    place = open_backend(given, options)
    try:
        _export(layers, records, known, given, imports, place)
    finally:
        place.close()


def _export(
    layers: Layers,
    records: Records,
    known: Known,
    given: CachePlace,
    imports: Imports | None,
    place: CacheBackend,
) -> None:
    store, sink = layers.store, layers.sink
    found: dict[DiffId, Descriptor] = {}

    def send(layer: DiffId) -> None:
        try:
            descriptor = _at_its_place(layer, layers, place) or _blob_of(layer, store, layers, given)
        except LayerLost as error:
            sink(Notice(f"a step is left out of {place.name}: {error.message}", True))
            return
        meter = Meter(f"caching in {place.name}", descriptor.size, sink)
        if not layers.failed and place.has(descriptor):
            meter.add(descriptor.size)
        else:
            place.put(descriptor, store.blob_path(descriptor.digest), meter.add)
        meter.finish()
        found[layer] = descriptor

    each(send, list(dict.fromkeys(record.layer for record in records.steps)), _AT_ONCE)
    mounts: dict[str, Descriptor] = {}
    for name, folder in _wanted(known, given, sink):
        if folder:
            descriptor = _send_mount(store, folder, place, sink)
        else:
            descriptor = imports.carried(name, place) if imports is not None else None
        if descriptor is not None:
            mounts[name] = descriptor
    steps = tuple(record for record in records.steps if record.layer in found)
    body = to_bytes(encode(replace(records, steps=steps, mounts=mounts), found.items()))
    config = Descriptor(media_types.CACHE_CONFIG, digest_of(body), len(body))
    if not place.has(config):
        place.put(config, store.blob_path(store.put_blob(body)), lambda count: None)
    blobs = {item.digest: item for item in (*found.values(), *mounts.values())}
    place.publish(artifact_bytes(media_types.CACHE, config, [blobs[value] for value in sorted(blobs)]))
    sink(Notice(f"cached {len(steps)} steps in {place.name}"))


def _at_its_place(layer: DiffId, layers: Layers, place: CacheBackend) -> Descriptor | None:
    """Return the blob of a layer that this place has already, so that the layer is not fetched."""
    descriptor = layers.in_cache(layer, place.name)
    if descriptor is None or layers.failed or not place.has(descriptor):
        return None
    return _plain(descriptor)


def _blob_of(layer: DiffId, store: Store, layers: Layers, given: CachePlace) -> Descriptor:
    """Return a layer as a verified blob of the store, fetching or packing it if needed. Raises LayerLost."""
    if not store.index.unpacked(layer):
        layers.fetched([layer])
    return _plain(stored(store, layer) or blob(store, layer, Packing(given.compression)))


def _plain(found: Descriptor) -> Descriptor:
    return Descriptor(media_type(compression_of(found.media_type)), found.digest, found.size)


# -- cache mounts --------------------------------------------------------------------------


def _wanted(known: Known, given: CachePlace, sink: Sink) -> list[tuple[str, str]]:
    """Return the names and directories of the cache mounts to export; "" for an absent directory."""
    if given.all_mounts:
        return [item for items in known.mounts.values() for item in items]
    for name in given.mounts:
        if name not in known.mounts:
            sink(Notice(f"no step of this build has a cache mount {name!r}", True))
    return [item for name in given.mounts for item in known.mounts.get(name, ())]


def _send_mount(store: Store, folder: str, place: CacheBackend, sink: Sink) -> Descriptor | None:
    """Pack a cache mount and put it there, unless another build keeps it locked."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    temporary = store.temporary()
    try:
        end = time.monotonic() + _PATIENCE
        while not try_lock(fd, shared=True):
            if time.monotonic() > end:
                sink(Notice(f"a cache mount is in use and not in {place.name}", True))
                return None
            time.sleep(0.05)
        try:
            with open(temporary, "x+b") as file:
                found = pack_folder(folder, ZSTD, file)._replace(media_type=media_types.CACHE_MOUNT)
        except CacheError as error:  # others who share it have written meanwhile, or it has odd names
            sink(Notice(f"a cache mount is not in {place.name}: {error.message}", True))
            return None
        fcntl.flock(fd, fcntl.LOCK_UN)
        if not place.has(found):
            meter = Meter(f"caching in {place.name}", found.size, sink)
            place.put(found, temporary, meter.add)
            meter.finish()
        return found
    finally:
        os.close(fd)
        if os.path.exists(temporary):
            os.unlink(temporary)
