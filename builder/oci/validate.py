"""Verify that an image matches its descriptors, including the contents of its layers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import BinaryIO, assert_never

from builder.errors import BuildError
from builder.oci import media_types
from builder.oci.errors import ImageError
from builder.oci.manifest import Entry, Index, Manifest, parse_manifest
from builder.oci.model import ImageConfig, parse_config
from cache.descriptor import Descriptor
from cache.digest import Digest
from cache.layer.compression import compression_of, decompressing, is_layer

_CHUNK = 1 << 20
_PLATFORMLESS = {"architecture": "unknown", "os": "unknown"}
_SUBJECT = "vnd.docker.reference.digest"

Open = Callable[[Digest], BinaryIO]


def validate(top: Descriptor, open_blob: Open) -> None:
    """Check the image, index or artifact *top* and everything that it leads to.

    Checked are: the size and digest of each blob, the diff ID of each layer, that media types agree between
    descriptors and documents and within an image, that config, history and manifest have the same number
    of layers, that an index states the platform of the config, and that attestations belong to an image
    of their index.

    *open_blob* opens a blob by its digest; it raises BuildError or OSError where there is none.
    Raises BuildError (mostly ImageError) or CacheError, which names the first fault found.
    """
    match _document(top, open_blob):
        case Index() as index:
            _validate_index(index, top, open_blob)
        case Manifest() as manifest:
            _validate_manifest(manifest, top, open_blob, None)
        case other:
            assert_never(other)


def _document(at: Descriptor, open_blob: Open) -> Index | Manifest:
    data = _read(at, open_blob)
    parsed = parse_manifest(data, at.digest, at.media_type)
    if parsed.value.get("mediaType", at.media_type) != at.media_type:
        raise ImageError(f"{at.digest} has the media type {parsed.value['mediaType']}, not {at.media_type}")
    if isinstance(parsed, Index) is not media_types.is_index(at.media_type):
        raise ImageError(f"{at.digest} is not what its media type {at.media_type} says")
    if parsed.value.get("schemaVersion") != 2:
        raise ImageError(f"{at.digest} has no schemaVersion 2")
    return parsed


def _validate_index(index: Index, at: Descriptor, open_blob: Open) -> None:
    digests = {entry.stated_digest for entry in index.entries}
    for entry in index.entries:
        descriptor = entry.descriptor
        match _document(descriptor, open_blob):
            case Index() as inner:
                _validate_index(inner, descriptor, open_blob)
            case Manifest() as manifest:
                _validate_attachment(entry, digests, at)
                _validate_manifest(manifest, descriptor, open_blob, entry)
            case other:
                assert_never(other)


def _validate_attachment(entry: Entry, digests: set[object], at: Descriptor) -> None:
    """Check that an attestation names an image of the same index."""
    annotations = entry.value.get("annotations") or {}
    if _SUBJECT in annotations and annotations[_SUBJECT] not in digests:
        raise ImageError(f"{entry.stated_digest} is attached to an image that the index {at.digest} lacks")


def _validate_manifest(manifest: Manifest, at: Descriptor, open_blob: Open, entry: Entry | None) -> None:
    config, layers = manifest.config(), manifest.layers()
    if not media_types.is_image_config(config.media_type):
        if entry is not None and entry.platform not in (None, _PLATFORMLESS):
            raise ImageError(f"{at.digest} is not an image but states a platform: {entry.platform}")
        for blob in (config, *layers):
            _read(blob, open_blob)
        return
    for blob in (config, *layers):
        if media_types.is_docker(blob.media_type) is not media_types.is_docker(at.media_type):
            raise ImageError(f"{at.digest} is {at.media_type}, but refers to {blob.media_type}")
    parsed = parse_config(_read(config, open_blob), f"the config {config.digest}")
    _validate_config(parsed, config, len(layers))
    if entry is not None and entry.platform is not None and entry.platform != parsed.platform.to_json():
        raise ImageError(f"{at.digest} is for {parsed.platform}, not {entry.platform}")
    for layer, diff_id in zip(layers, parsed.diff_ids, strict=True):
        _validate_layer(layer, diff_id, open_blob)


def _validate_config(config: ImageConfig, at: Descriptor, layers: int) -> None:
    if len(config.diff_ids) != layers:
        raise ImageError(f"the config {at.digest} has {len(config.diff_ids)} diff IDs, its manifest {layers}")
    lines = sum(not line.empty_layer for line in config.history)
    if config.history and lines != layers:
        raise ImageError(f"the history of {at.digest} has {lines} lines with a layer, its manifest {layers}")


def _validate_layer(at: Descriptor, diff_id: Digest, open_blob: Open) -> None:
    """Check the compressed and the uncompressed bytes of a layer."""
    if not is_layer(at.media_type):
        raise ImageError(f"{at.digest} is not a layer: its media type is {at.media_type}")
    sha = hashlib.sha256()
    with open_blob(at.digest) as file:
        _check_bytes(file, at)
        file.seek(0)
        read = decompressing(file.read, compression_of(at.media_type))
        while data := read(_CHUNK):
            sha.update(data)
    if diff_id != f"sha256:{sha.hexdigest()}":
        raise ImageError(f"the layer {at.digest} has the diff ID sha256:{sha.hexdigest()}, not {diff_id}")


def _read(at: Descriptor, open_blob: Open) -> bytes:
    """Return a whole blob, verified."""
    try:
        with open_blob(at.digest) as file:
            _check_bytes(file, at)
            file.seek(0)
            return file.read()
    except OSError as error:
        raise BuildError(f"reading {at.digest}: {error.strerror}") from None


def _check_bytes(file: BinaryIO, at: Descriptor) -> None:
    sha, size = hashlib.sha256(), 0
    while data := file.read(_CHUNK):
        sha.update(data)
        size += len(data)
    if size != at.size:
        raise ImageError(f"{at.digest} has {size} bytes, its descriptor says {at.size}")
    if at.digest != f"sha256:{sha.hexdigest()}":
        raise ImageError(f"the bytes of {at.digest} have the digest sha256:{sha.hexdigest()}")
