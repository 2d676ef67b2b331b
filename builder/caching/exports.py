"""``--cache-to``: leave what the steps of a build gave where other builds find it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from builder.caching.alias import Alias, portable
from builder.caching.imports import open_place
from builder.caching.places import Place
from builder.caching.records import ARTIFACT_TYPE, CONFIG_TYPE, MOUNT_TYPE, Record, Records, encode, to_bytes
from builder.events import Meter, Notice, Sink
from builder.execute.layers import Layers
from builder.image.model import MANIFEST_TYPE, to_json
from builder.request import CachePlace
from cache.compression import ZSTD, compression_of, media_type
from cache.descriptor import Descriptor
from cache.digest import Digest, digest, digest_of
from cache.errors import CorruptError
from cache.layers import blob, pack_folder
from cache.locks import try_lock
from cache.store import Store

_AT_ONCE = 4
_PATIENCE = 10.0  # seconds for another build to be done with a cache mount


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step of this build gave, as the solver has it: layers go by snapshots or diff IDs."""

    key: str
    run: str
    created: int
    layer: str


@dataclass(frozen=True, slots=True)
class Known:
    """All that a build can say. ``last`` are the steps whose layers the image holds, ``mounts`` the
    cache mounts by their ids: their names, and their folders.
    """

    steps: tuple[StepResult, ...]
    last: frozenset[str]
    contents: tuple[tuple[Alias, str], ...]
    mounts: dict[str, list[tuple[str, str]]]


def records_of(store: Store, known: Known, everything: bool) -> Records:
    """The records of all steps, or of those that the image's layers come from."""
    steps = []
    for result in known.steps:
        if everything or result.key in known.last:
            run = portable(store, result.run, pack=True)
            layer = digest(portable(store, result.layer, pack=True))
            steps.append(Record(result.key, run, result.created, layer))
    contents = {}
    if everything:
        contents = {alias.portable(store, pack=True): content for alias, content in known.contents}
    steps.sort(key=lambda record: record.key)
    return Records(tuple(steps), contents)


def export(
    store: Store, layers: Layers, known: Known, given: CachePlace, insecure: frozenset[str], sink: Sink
) -> None:
    """Write a cache to the place that *given* names. Raises BuildError or CacheError."""
    records = records_of(store, known, given.mode == "max")
    place = open_place(given, insecure)
    try:
        _export(store, layers, records, known, given, place, sink)
    finally:
        place.close()


def _export(
    store: Store,
    layers: Layers,
    records: Records,
    known: Known,
    given: CachePlace,
    place: Place,
    sink: Sink,
) -> None:
    found: dict[Digest, Descriptor] = {}

    def send(layer: Digest) -> None:
        descriptor = _known_blob(store, layers, layer, given.compression)
        meter = Meter(f"caching in {place.name}", descriptor.size, sink)
        if place.has(descriptor):
            meter.add(descriptor.size)
        else:
            if not store.has_blob(descriptor.digest):
                layers.fetched([layer])
            place.put(descriptor, store.blob_path(descriptor.digest), meter.add)
        meter.finish()
        found[layer] = descriptor

    _in_parallel(send, dict.fromkeys(record.layer for record in records.steps))
    mounts: dict[str, Descriptor] = {}
    for name, folder in _wanted(known, given):
        if (descriptor := _send_mount(store, folder, place, sink)) is not None:
            mounts[name] = descriptor
    records = replace(records, mounts=mounts)
    body = to_bytes(encode(records, found.items()))
    config = Descriptor(CONFIG_TYPE, digest_of(body), len(body))
    if not place.has(config):
        place.put(config, store.blob_path(store.put_blob(body)), lambda count: None)
    blobs = {item.digest: item for item in (*found.values(), *mounts.values())}
    place.publish(
        to_json(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "artifactType": ARTIFACT_TYPE,
                "config": config.to_json(),
                "layers": [blobs[value].to_json() for value in sorted(blobs)],
            }
        )
    )
    sink(Notice(f"cached {len(records.steps)} steps in {place.name}"))


def _known_blob(store: Store, layers: Layers, layer: Digest, compression: str) -> Descriptor:
    """The layer as a blob: here already, somewhere else, or packed now."""
    found = layers.blob(layer) or blob(store, layer, compression)
    return replace(found, media_type=media_type(compression_of(found.media_type)), annotations={})


def _in_parallel(work: Callable[[Digest], object], items: Iterable[Digest]) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for job in [pool.submit(work, item) for item in items]:
            job.result()


# -- cache mounts --------------------------------------------------------------------------


def _wanted(known: Known, given: CachePlace) -> list[tuple[str, str]]:
    if given.all_mounts:
        return [item for items in known.mounts.values() for item in items]
    return [item for name in given.mounts for item in known.mounts.get(name, ())]


def _send_mount(store: Store, folder: str, place: Place, sink: Sink) -> Descriptor | None:
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
                found = replace(pack_folder(folder, ZSTD, file), media_type=MOUNT_TYPE)
        except CorruptError:  # others who share it have written meanwhile
            sink(Notice(f"a cache mount has changed while it was read and is not in {place.name}", True))
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
