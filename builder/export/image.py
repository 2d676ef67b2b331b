"""An image as an output has it: its layers as blobs in the wanted form, and its manifest."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from builder.events import Meter, Sink
from builder.oci import media_types
from builder.oci.manifest import index_bytes, manifest_bytes
from builder.oci.model import ImageConfig, Platform
from cache.descriptor import Descriptor
from cache.digest import Digest, digest_of
from cache.layer import compression as comp
from cache.layer.blobs import Packing, blob
from cache.store import Store
from grammar.structs import field, struct

if TYPE_CHECKING:
    from builder.attest.statement import Bundle

_NO_PLATFORM = {"architecture": "unknown", "os": "unknown"}  # of what is no image


@struct
class Form:
    """How layers and manifest are written.

    ``compression`` is of layers that this build made (``level`` 0: the usual one); those of the
    base stay as they are stored, unless ``force`` is on. With ``docker_types`` media types are those
    from before the OCI's. ``annotations`` are the manifest's, ``marks`` those of the descriptor
    that names it.
    """

    compression: str = comp.GZIP
    level: int = 0
    force: bool = False
    docker_types: bool = False
    annotations: Mapping[str, str] = field(factory=dict)
    marks: Mapping[str, str] = field(factory=dict)


@struct
class Formed:
    """The descriptors of an image whose blobs are all in the store; ``body`` is the manifest."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    body: bytes
    top: Descriptor


@struct
class Picture:
    """What an output names: an image, or an index of images for several platforms. ``body`` is its bytes.

    ``attached`` are the index's manifests of what is said of the images.
    """

    parts: tuple[tuple[Formed, Platform], ...]
    top: Descriptor
    body: bytes
    attached: tuple[Bundle, ...] = ()

    def blobs(self) -> dict[Digest, int]:
        """Every blob of the images but their manifests and the index, and how long it is."""
        return {item.digest: item.size for part, _ in self.parts for item in (part.config, *part.layers)}


def picture(
    store: Store,
    parts: Sequence[tuple[Formed, Platform]],
    docker_types: bool = False,
    annotations: Mapping[str, str] | None = None,
    marks: Mapping[str, str] | None = None,
    attached: Sequence[Bundle] = (),
) -> Picture:
    """One image, or an index of several and of what is *attached* to them; its bytes are then in the store.

    *annotations* are those of the index, *marks* those of the descriptor that names it.
    """
    if len(parts) == 1 and not attached:
        return Picture(tuple(parts), parts[0][0].top, parts[0][0].body)
    media = media_types.DOCKER_LIST if docker_types else media_types.INDEX
    items = [{**part.top.to_json(), "platform": platform.to_json()} for part, platform in parts]
    items += [{**item.top.to_json(), "platform": _NO_PLATFORM} for item in attached]
    body = index_bytes(items, media, annotations)
    store.put_blob(body)
    top = Descriptor(media, digest_of(body), len(body), marks or {})
    return Picture(tuple(parts), top, body, tuple(attached))


def form(
    store: Store,
    image: Digest,
    config: ImageConfig,
    wanted: Form,
    sink: Sink,
    base_layers: int = 1 << 30,
    marks: Mapping[Digest, dict[str, str]] | None = None,
) -> Formed:
    """Have the blobs of *image* in the form *wanted*; the first *base_layers* are its base's.

    *marks* are annotations of layers. Raises CacheError when a layer is missing or damaged.
    """
    layers = []
    for number, layer in enumerate(config.diff_ids):
        meter = Meter(f"packing layer {number + 1}/{len(config.diff_ids)}", 0, sink)
        exact = wanted.force or number >= base_layers
        found = blob(store, layer, Packing(wanted.compression, wanted.level), meter.add, exact)
        kind = comp.compression_of(found.media_type)
        media = comp.docker_media_type(kind) if wanted.docker_types else comp.media_type(kind)
        layers.append(found._replace(media_type=media, annotations=(marks or {}).get(layer, {})))
    docker = wanted.docker_types
    config_type = media_types.DOCKER_CONFIG if docker else media_types.CONFIG
    config_blob = Descriptor(config_type, image, os.path.getsize(store.blob_path(image)))
    media = media_types.DOCKER_MANIFEST if docker else media_types.MANIFEST
    body = manifest_bytes(config_blob, layers, media, wanted.annotations)
    store.put_blob(body)
    top = Descriptor(media, digest_of(body), len(body), wanted.marks)
    return Formed(config_blob, tuple(layers), body, top)
