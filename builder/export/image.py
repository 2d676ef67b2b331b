"""An image as outputs hold it: its layers as blobs in the wanted format, its manifest, and an index."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from builder.events import Meter, Notice, Sink
from builder.images.local import put_config
from builder.oci import media_types
from builder.oci.manifest import index_bytes, manifest_bytes
from builder.oci.model import ImageConfig, Platform
from builder.request import Output
from cache.descriptor import Descriptor
from cache.digest import Digest, digest_of
from cache.layer import compression as comp
from cache.layer.blobs import Packing, blob, clamped
from cache.store import Store
from grammar.structs import field, replace, struct

if TYPE_CHECKING:
    from builder.attest.statement import Bundle
    from builder.export.exporters import Export

_NO_PLATFORM = {"architecture": "unknown", "os": "unknown"}  # of an attestation in an index


@struct
class StoredImage:
    """The image for one platform, in the store.

    ``base_layers`` is how many of its layers came with the base image; None means all of them.
    ``epoch`` is SOURCE_DATE_EPOCH in seconds, if it was given.
    ``layer_annotations`` are annotations of layers, by diff ID.
    """

    image: Digest
    config: ImageConfig
    base_layers: int | None = None
    epoch: int | None = None
    layer_annotations: Mapping[str, Mapping[str, str]] = field(factory=dict)


@struct
class ImageFormat:
    """How layers and manifests are written.

    ``compression`` and ``level`` (0: the default one) are for layers that the build made. Layers of the base
    stay as they are stored, unless ``force`` is set. With ``docker_types``, media types are Docker's older
    ones. ``annotations`` go into the manifest, ``descriptor_annotations`` into the descriptor that names it.
    """

    compression: str = comp.GZIP
    level: int = 0
    force: bool = False
    docker_types: bool = False
    annotations: Mapping[str, str] = field(factory=dict)
    descriptor_annotations: Mapping[str, str] = field(factory=dict)


@struct
class PackedImage:
    """The image for one platform with all its blobs in the store."""

    platform: Platform
    config: Descriptor
    layers: tuple[Descriptor, ...]
    manifest: bytes
    descriptor: Descriptor


@struct
class ExportedImage:
    """What an output names: an image, or an index of the images for several platforms.

    ``content`` is its manifest or index, which ``descriptor`` names; ``attached`` are the attestations in
    the index.
    """

    images: tuple[PackedImage, ...]
    descriptor: Descriptor
    content: bytes
    attached: tuple[Bundle, ...] = ()

    def layer_blobs(self) -> dict[Digest, int]:
        """Return the configs and layers of the images, with their sizes in bytes."""
        return {item.digest: item.size for image in self.images for item in (image.config, *image.layers)}

    def all_blobs(self) -> dict[Digest, int]:
        """Return every blob that an image layout holds, with its size in bytes."""
        blobs = self.layer_blobs() | {
            item.digest: item.size for item in (self.descriptor, *(image.descriptor for image in self.images))
        }
        for bundle in self.attached:
            blobs |= {item.digest: item.size for item in (bundle.top, *(item for item, _ in bundle.blobs))}
        return blobs


def pack_image(store: Store, stored: StoredImage, wanted: ImageFormat, sink: Sink) -> PackedImage:
    """Pack the layers of an image in the wanted format. Raises CacheError where one is lost or damaged."""
    config, layers = stored.config, []
    for number, layer in enumerate(config.diff_ids):
        meter = Meter(f"packing layer {number + 1}/{len(config.diff_ids)}", 0, sink)
        exact = wanted.force or (stored.base_layers is not None and number >= stored.base_layers)
        found = blob(store, layer, Packing(wanted.compression, wanted.level), meter.add, exact)
        kind = comp.compression_of(found.media_type)
        media = comp.docker_media_type(kind) if wanted.docker_types else comp.media_type(kind)
        layers.append(found._replace(media_type=media, annotations=stored.layer_annotations.get(layer, {})))
    docker = wanted.docker_types
    config_type = media_types.DOCKER_CONFIG if docker else media_types.CONFIG
    config_blob = Descriptor(config_type, stored.image, os.path.getsize(store.blob_path(stored.image)))
    media = media_types.DOCKER_MANIFEST if docker else media_types.MANIFEST
    manifest = manifest_bytes(config_blob, layers, media, wanted.annotations)
    store.put_blob(manifest)
    descriptor = Descriptor(media, digest_of(manifest), len(manifest), wanted.descriptor_annotations)
    return PackedImage(config.platform, config_blob, tuple(layers), manifest, descriptor)


def one_image(packed: PackedImage) -> ExportedImage:
    """Return an output's image that is for one platform."""
    return ExportedImage((packed,), packed.descriptor, packed.manifest)


def exported_image(
    store: Store, images: Sequence[PackedImage], output: Output, attached: Sequence[Bundle] = ()
) -> ExportedImage:
    """Return the one image, or store an index of several images and of what is attached to them."""
    if len(images) == 1 and not attached:
        return one_image(images[0])
    media = media_types.DOCKER_LIST if output.docker_types else media_types.INDEX
    items = [{**image.descriptor.to_json(), "platform": image.platform.to_json()} for image in images]
    items += [{**item.top.to_json(), "platform": _NO_PLATFORM} for item in attached]
    index = index_bytes(items, media, output.marks("index"))
    store.put_blob(index)
    descriptor = Descriptor(media, digest_of(index), len(index), output.marks("index-descriptor"))
    return ExportedImage(tuple(images), descriptor, index, tuple(attached))


def with_latest_time(store: Store, stored: StoredImage) -> StoredImage:
    """Return the image with no time in its own layers later than its epoch (T90); stored as well."""
    if stored.epoch is None or stored.base_layers is None:
        return stored
    base, own = stored.config.diff_ids[: stored.base_layers], stored.config.diff_ids[stored.base_layers :]
    layers = [clamped(store, layer, stored.epoch) for layer in own]
    config = replace(stored.config, diff_ids=(*base, *layers))
    note = {"buildkit/rewritten-timestamp": str(stored.epoch)}
    return StoredImage(
        put_config(store, config),
        config,
        stored.base_layers,
        stored.epoch,
        dict.fromkeys(layers, note),
    )


def pack_all(export: Export) -> list[PackedImage]:
    """Pack the images of an export as its output wants them. Raises CacheError."""
    output = export.output
    if output.docker_types and output.compression == comp.ZSTD:
        note = "nothing is known to read zstd layers of docker's media types (oci-mediatypes=false)"
        export.sink(Notice(note, warning=True))
    packed = []
    for image in export.images:
        stored = with_latest_time(export.store, image) if output.rewrite_timestamp else image
        platform = str(stored.config.platform)
        wanted = ImageFormat(
            compression=output.compression,
            level=output.level,
            force=output.force,
            docker_types=output.docker_types,
            annotations=output.marks("manifest", platform),
            descriptor_annotations=output.marks("manifest-descriptor", platform),
        )
        packed.append(pack_image(export.store, stored, wanted, export.sink))
    return packed
