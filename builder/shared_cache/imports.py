"""``--cache-from``: look up results of steps in shared caches, and fetch the layers when they are needed."""

from __future__ import annotations

from collections.abc import Sequence

from builder.errors import BuildError, SharedCacheError
from builder.events import Notice
from builder.images.lazy_layers import Layers, fetched
from builder.oci import media_types
from builder.oci.blobs import read_blob
from builder.oci.manifest import Manifest
from builder.oci.model import parse_config
from builder.oci.walk import image_manifests
from builder.request import CachePlace, ClientOptions
from builder.shared_cache.backends import CacheBackend, open_backend
from builder.shared_cache.content_keys import ContentKey, portable, portable_chain
from builder.shared_cache.records import INLINE, LIMIT, Record, Records, decode, parse
from builder.support.json_strict import loads
from cache.descriptor import Descriptor
from cache.digest import DiffId, Layer
from cache.errors import CacheError
from cache.layer.blobs import unpack_tar
from cache.layer.compression import ZSTD, is_layer
from cache.store import Store
from grammar.structs import field, struct


@struct(frozen=False)
class Imports:
    """The records of all shared caches of one build."""

    store: Store
    layers: Layers
    _records: dict[str, list[Record]] = field(factory=dict)
    _contents: dict[str, str] = field(factory=dict)
    _mounts: dict[str, list[tuple[CacheBackend, Descriptor]]] = field(factory=dict)
    _places: list[CacheBackend] = field(factory=list)
    _known: dict[Layer, DiffId] = field(factory=dict)  # layers' diff IDs

    def load(self, places: Sequence[CachePlace], options: ClientOptions) -> None:
        """Read the records of every cache; one that cannot be read is a warning."""
        for given in places:
            try:
                place = open_backend(given, options)
                self._places.append(place)
                self._add(place)
            except (BuildError, CacheError) as error:
                self.layers.sink(Notice(f"the cache {given.place} is not used: {error.message}", True))

    def forget(self) -> None:
        """Stop using the caches for steps."""
        self._records.clear()
        self._contents.clear()
        self.layers.forget()

    def close(self) -> None:
        for place in self._places:
            place.close()

    def _add(self, place: CacheBackend) -> None:
        """Read the caches of a place: of one manifest, or of the image for each platform.

        Of several, those that cannot be read are left out, unless none can be read.
        """
        errors: list[BuildError] = []
        top = place.top()
        if isinstance(top, Manifest):
            self._add_one(place, top)
            return
        for manifest in image_manifests(top, place, failed=errors.append):
            try:
                self._add_one(place, manifest)
            except BuildError as error:
                errors.append(error)
        if errors and not self._records:
            raise errors[-1]

    def _add_one(self, place: CacheBackend, manifest: Manifest) -> None:
        config, descriptors = manifest.config(), manifest.layers()
        data = read_blob(place, config, "the config of the cache", LIMIT)
        if config.media_type == media_types.CACHE_CONFIG:
            records, blobs = parse(data, "the config of the cache")
        else:
            records, blobs = _inline(data, descriptors)
        known = {item.digest for item in descriptors}
        for layer, descriptor in blobs.items():
            if descriptor.digest in known and is_layer(descriptor.media_type):
                self.layers.add(layer, place, descriptor)
        for record in records.steps:
            self._records.setdefault(record.key, []).append(record)
        self._contents |= records.contents
        for name, descriptor in records.mounts.items():
            if descriptor.digest in known:
                self._mounts.setdefault(name, []).append((place, descriptor))

    # -- steps -----------------------------------------------------------------------------

    def find(self, key: str, runs: Sequence[Layer], pack: bool = True) -> dict[Layer, int]:
        """Return what steps with *key* gave above the layers *runs*: each layer, and when it was made (ns).

        Without *pack*, layers below are not packed to know their diff IDs: then nothing may be found.
        """
        found: dict[Layer, int] = {}
        records = self._records.get(key, [])
        if records and (pack or all(portable(self.store, layer) is not None for layer in runs)):
            below = portable_chain(self.store, runs, self._known)
            for record in records:
                if record.run == below and (layer := self.layers.find(record.layer)) is not None:
                    found.setdefault(layer, record.created)
        return found

    def content(self, alias: ContentKey) -> str | None:
        """Return the digest that a cache has of files of stages, None if none has it."""
        key = alias.portable(self.store)
        return self._contents.get(key) if key is not None else None

    # -- cache mounts ----------------------------------------------------------------------

    def fill(self, name: str, folder: str) -> bool:
        """Fill the empty *folder* of a new cache mount. Return True if a cache had an entry for it."""
        for place, descriptor in self._mounts.get(name, ()):
            try:
                found = fetched(self.store, place, descriptor, self.layers.sink)
                with found as path, open(path, "rb") as file:
                    unpack_tar(file.read, ZSTD, folder)
                return True
            except (BuildError, CacheError) as error:
                self.layers.sink(Notice(f"a cache mount of {place.name} is not used: {error.message}", True))
        return False

    def carried(self, name: str, to: CacheBackend) -> Descriptor | None:
        """Return the blob of a cache mount that no step used, copied *to* another place if needed."""
        for place, descriptor in self._mounts.get(name, ()):
            try:
                if not to.has(descriptor):
                    with fetched(self.store, place, descriptor, self.layers.sink) as path:
                        to.put(descriptor, path, lambda count: None)
                return descriptor
            except (BuildError, CacheError) as error:
                note = f"a cache mount of {place.name} cannot be taken along: {error.message}"
                self.layers.sink(Notice(note, True))
        return None


def _inline(data: bytes, layers: list[Descriptor]) -> tuple[Records, dict[DiffId, Descriptor]]:
    """Return the records in an image's config; their layers are those of the image."""
    config = parse_config(data, "the config")
    value = loads(data, "the config", LIMIT)
    found = value.get(INLINE) if isinstance(value, dict) else None
    if not isinstance(found, dict):
        raise SharedCacheError("it is an image without a cache", "build it with --cache-to type=inline")
    if len(config.diff_ids) != len(layers):
        raise SharedCacheError("its config and its manifest disagree about its layers")
    records, _blobs = decode(found, "the cache in the config")
    return Records(records.steps), dict(zip(config.diff_ids, layers, strict=True))
