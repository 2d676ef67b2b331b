"""Pull an image: find its manifest for a platform, read its config, and store its layers, several at once."""

from __future__ import annotations

from typing import BinaryIO

from builder.errors import BuildError
from builder.events import Meter, Sink
from builder.images.lazy_layers import downloaded
from builder.oci.blobs import read_blob
from builder.oci.errors import ImageError
from builder.oci.model import ImageConfig, Platform, host, parse_config
from builder.oci.walk import image_manifests
from builder.registry.repository import Repository, open_repository, parsed
from builder.registry.sources import remember_source
from builder.request import ClientOptions
from builder.support.parallel import each
from cache.descriptor import Descriptor
from cache.digest import DiffId, Digest, digest_of
from cache.layer.blobs import add_blob
from cache.store import Store
from grammar.reference import Reference
from grammar.structs import struct

_AT_ONCE = 3


@struct
class FoundImage:
    """The image for one platform as a registry describes it.

    ``named`` is the digest of what the reference names: the image's manifest, or an index.
    """

    named: Digest
    layers: tuple[Descriptor, ...]
    config_bytes: bytes
    config: ImageConfig

    @property
    def image(self) -> Digest:
        """The image ID."""
        return digest_of(self.config_bytes)


def pull(
    store: Store, reference: Reference, platform: Platform, sink: Sink, options: ClientOptions
) -> Digest:
    """Pull *reference* for *platform* and return the image ID.

    The image gets the name of the reference if it is for this machine's platform. A reference that names
    an image for one platform means that image, whatever its platform. Every byte is verified before the
    image gets a name. Raises BuildError or CacheError.
    """
    with open_repository(reference, options) as repository:
        found = find_remote(repository, platform)
        _store_layers(store, repository, found, sink)
    store.sync()
    image = store.put_blob(found.config_bytes)
    remember_manifest(store, reference, image, found.named)
    if platform == host():
        store.tag(str(reference), image)
    return image


def pull_config(
    reference: Reference, platform: Platform, options: ClientOptions
) -> tuple[Digest, ImageConfig]:
    """Return the image ID and the config of *reference* without its layers. Raises BuildError."""
    with open_repository(reference, options) as repository:
        found = find_remote(repository, platform)
    return found.image, found.config


def find_remote(repository: Repository, platform: Platform) -> FoundImage:
    """Find the image of a repository's reference for *platform* and read its config. Raises BuildError."""
    fetched = repository.fetch()
    top = parsed(fetched, f"the manifest of {repository.name}")
    manifest = next(image_manifests(top, repository, platform), None)
    if manifest is None:
        raise BuildError(f"{repository.name} has no image for {platform}", code="E-PLATFORM")
    what = f"the config of {repository.name}"
    data = read_blob(repository, manifest.config(), what)
    config, layers = parse_config(data, what), manifest.layers()
    if len(config.diff_ids) != len(layers):
        raise ImageError(
            f"the manifest of {repository.name} has {len(layers)} layers, its config {len(config.diff_ids)}"
        )
    return FoundImage(fetched.digest, tuple(layers), data, config)


def remember_manifest(store: Store, reference: Reference, image: Digest, named: Digest) -> None:
    """Remember what *reference* named when it was *image*, for the provenance of builds on it."""
    store.memos.set_pulled_digest(str(reference), image, named)


def _store_layers(store: Store, repository: Repository, found: FoundImage, sink: Sink) -> None:
    total = sum(layer.size for layer in found.layers)
    pulling = Meter(f"pulling {repository.name}", total, sink)
    unpacking = Meter(f"unpacking {repository.name}", total, sink)

    def take(pair: tuple[Descriptor, DiffId]) -> None:
        """Download one layer unless its blob is stored; unpack it unless its snapshot is."""
        layer, diff_id = pair
        remember_source(store, repository.reference, layer.digest)
        if store.index.unpacked(diff_id):
            pulling.add(layer.size)
            unpacking.add(layer.size)
            return
        if store.has_blob(layer.digest):
            pulling.add(layer.size)
        else:
            _download(store, repository, layer, pulling)
        add_blob(store, layer, diff_id, unpacking.add)

    each(take, zip(found.layers, found.config.diff_ids, strict=True), _AT_ONCE)
    pulling.finish()
    unpacking.finish()


def _download(store: Store, repository: Repository, layer: Descriptor, pulling: Meter) -> None:
    def write(file: BinaryIO) -> None:
        repository.blob(layer, file, pulling.add)

    with downloaded(store, layer, write) as path:
        store.publish(path, store.blob_path(layer.digest))
