"""Pull an image: manifest for our platform, config, layers side by side, into the store."""

from __future__ import annotations

from typing import Any, BinaryIO

from builder.errors import BuildError
from builder.events import Meter, Sink
from builder.images.lazy_layers import downloaded
from builder.oci.model import (
    INDEX_TYPE,
    ImageConfig,
    Platform,
    by_rank,
    host,
    is_config,
    parse_config,
    parse_descriptor,
    rank,
)
from builder.registry.client import DOCKER_LIST, MANIFEST_LIMIT, Fetched, Registry
from builder.registry.errors import Untrusted
from builder.registry.mirrors import open_registry
from builder.registry.sources import remember_source
from builder.support.json_strict import loads
from builder.support.parallel import each
from cache.descriptor import Descriptor
from cache.digest import DiffId, Digest, digest_of
from cache.layer.blobs import add_blob
from cache.store import Store
from grammar.reference import Reference

_CONFIG_LIMIT = 8 << 20
_MAX_LAYERS = 1000
_AT_ONCE = 3
_MAX_MANIFESTS = 100  # that are asked for, to find an image
_MAX_DEPTH = 4  # of indexes in indexes


def pull(
    store: Store, reference: Reference, platform: Platform, sink: Sink, insecure: frozenset[str]
) -> Digest:
    """Pull *reference* for *platform* and, if that is this machine's, tag it with its own name.

    Returns the image ID. Of an image for one platform only, that one, whatever it is. Every byte
    is verified against the manifest's digests before anything is tagged. Raises BuildError or
    CacheError.
    """
    with open_registry(reference, insecure) as registry:
        layers, data, config, named = metadata(registry, reference, platform)
        total = sum(layer.size for layer in layers)
        pulling = Meter(f"pulling {reference.familiar}", total, sink)
        unpacking = Meter(f"unpacking {reference.familiar}", total, sink)
        pairs = zip(layers, config.diff_ids, strict=True)
        each(
            lambda pair: _layer(store, registry, reference, *pair, pulling, unpacking), list(pairs), _AT_ONCE
        )
        pulling.finish()
        unpacking.finish()
    store.sync()
    image = store.put_blob(data)
    remember_manifest(store, reference, image, named)
    if platform == host():
        store.tag(str(reference), image)
    return image


def pull_config(
    reference: Reference, platform: Platform, insecure: frozenset[str]
) -> tuple[Digest, ImageConfig]:
    """The image ID and the config of *reference*, without its layers. Raises BuildError."""
    with open_registry(reference, insecure) as registry:
        _layers, data, config, _named = metadata(registry, reference, platform)
    return digest_of(data), config


def remember_manifest(store: Store, reference: Reference, image: Digest, named: Digest) -> None:
    """Keep in mind what *reference* named when it was *image*, for builder.attest.provenance."""
    store.memos.set_pulled_digest(str(reference), image, named)


def metadata(
    registry: Registry, reference: Reference, platform: Platform
) -> tuple[list[Descriptor], bytes, ImageConfig, Digest]:
    """The layers' descriptors, the config's bytes, what they say, and the digest of what *reference* names,
    be it an image or an index of some. Raises BuildError.
    """
    fetched = registry.manifest(reference.repository, reference.digest or reference.tag)
    manifest = _image_manifest(registry, reference, fetched, platform)
    data = _config(registry, reference, parse_descriptor(manifest.get("config"), "the config"))
    config = parse_config(data, f"the config of {reference}")
    layers = [parse_descriptor(item, "a layer") for item in _items(manifest, "layers")]
    if len(config.diff_ids) != len(layers):
        raise Untrusted(f"{reference} has {len(layers)} layers, its config names {len(config.diff_ids)}")
    return layers, data, config, fetched.digest


def _image_manifest(
    registry: Registry, reference: Reference, fetched: Fetched, platform: Platform
) -> dict[str, Any]:
    """The image manifest behind *fetched*; what that names itself is meant, whatever its platform is."""
    body = _object(fetched)
    if "manifests" not in body:
        return body
    found = _of_index(registry, reference, body, platform, [_MAX_MANIFESTS], 1)
    if found is None:
        raise BuildError(f"{reference.familiar} has no image for {platform}")
    return found


def _of_index(
    registry: Registry,
    reference: Reference,
    index: dict[str, Any],
    platform: Platform,
    left: list[int],
    depth: int,
) -> dict[str, Any] | None:
    """The manifest of an index, or of one in it, that serves *platform* best; of equal ones the first.

    Where an entry does not say what it is for, the image's config does. *left* counts the manifests that
    may still be asked for.
    """
    for item in by_rank(_items(index, "manifests"), platform):
        left[0] -= 1
        if left[0] < 0 or depth > _MAX_DEPTH:
            raise Untrusted(f"{reference} is an index of too many indexes and images")
        body = _object(registry.manifest(reference.repository, parse_descriptor(item, "a manifest").digest))
        if "manifests" in body:
            body = _of_index(registry, reference, body, platform, left, depth + 1) or {}
        elif item.get("platform") is None and not _serves(registry, reference, body, platform):
            continue
        if body:
            return body
    return None


def _serves(registry: Registry, reference: Reference, body: dict[str, Any], platform: Platform) -> bool:
    stated = body.get("config")
    if not isinstance(stated, dict) or not is_config(str(stated.get("mediaType"))):
        return False
    at = parse_descriptor(stated, "the config")
    config = parse_config(_config(registry, reference, at), f"the config of {reference}")
    return rank(config.platform.to_json(), platform) > 0


def _object(fetched: Fetched) -> dict[str, Any]:
    """A manifest's JSON; one that could be read as two kinds is refused (REG-03)."""
    value = loads(fetched.data, "the manifest", MANIFEST_LIMIT)
    if not isinstance(value, dict):
        raise Untrusted("the manifest is not a JSON object")
    stated = value.get("mediaType")
    if stated is not None and fetched.media_type not in (stated, "", "application/json"):
        raise Untrusted(f"the manifest says it is {stated!r}, its header {fetched.media_type!r}")
    is_index = fetched.media_type in (INDEX_TYPE, DOCKER_LIST) or "manifests" in value
    if is_index and ("layers" in value or "manifests" not in value):
        raise Untrusted("the manifest is an index and an image at once")
    if value.get("schemaVersion") != 2:
        raise BuildError("the image's manifest is of an old schema", "push it again with a current tool")
    return value


def _items(value: dict[str, Any], key: str) -> list[dict[str, Any]]:
    items = value.get(key)
    if not isinstance(items, list) or len(items) > _MAX_LAYERS or not all(isinstance(i, dict) for i in items):
        raise Untrusted(f"the manifest's {key!r} is not a list of descriptors")
    return items


def _config(registry: Registry, reference: Reference, at: Descriptor) -> bytes:
    import io

    if at.size > _CONFIG_LIMIT:
        raise Untrusted(f"the config of {reference} has {at.size} bytes")
    buffer = io.BytesIO()
    registry.blob(reference.repository, at, buffer, lambda count: None)
    return buffer.getvalue()


def _layer(
    store: Store,
    registry: Registry,
    reference: Reference,
    layer: Descriptor,
    expected: DiffId,
    pulling: Meter,
    unpacking: Meter,
) -> None:
    """One layer: downloaded unless its blob is here, unpacked unless its tree is."""
    remember_source(store, reference, layer.digest)
    if store.index.unpacked(expected):
        pulling.add(layer.size)
        unpacking.add(layer.size)
        return
    if store.has_blob(layer.digest):
        pulling.add(layer.size)
    else:

        def write(file: BinaryIO) -> None:
            registry.blob(reference.repository, layer, file, pulling.add)

        with downloaded(store, layer, write) as path:
            store.publish(path, store.blob_path(layer.digest))
    add_blob(store, layer, expected, unpacking.add)
