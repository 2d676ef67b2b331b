"""Manifests and indexes (image-spec manifest.md, image-index.md), parsed with checks and written exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from builder.oci import media_types
from builder.oci.errors import ImageError
from builder.oci.model import to_json
from builder.support.json_strict import loads
from builder.support.json_types import JsonObject
from cache.descriptor import Descriptor
from cache.digest import Digest, digest
from cache.errors import CacheError
from grammar.structs import struct

_LIMIT = 16 << 20  # bytes
_MOST_ITEMS = 10_000  # entries of an index, or layers of an image
_IMAGE_NAME = "io.containerd.image.name"
_REF_NAME = "org.opencontainers.image.ref.name"
_NO_PLATFORM = "unknown"  # the architecture and system that an index states for attestations


@struct
class Entry:
    """One entry of an index. Its descriptor is checked only when it is used: others may be malformed."""

    value: JsonObject

    @property
    def descriptor(self) -> Descriptor:
        """Return the descriptor. Raises BuildError where it is malformed."""
        return parse_descriptor(self.value, "a manifest")

    @property
    def stated_digest(self) -> object:
        """The digest as the entry states it, unchecked."""
        return self.value.get("digest")

    @property
    def platform(self) -> JsonObject | None:
        """The platform as the entry states it, or None."""
        platform = self.value.get("platform")
        return platform if isinstance(platform, dict) else None

    @property
    def is_image(self) -> bool:
        """Whether the entry can be an image: not an artifact, nor an attestation for one."""
        platform = self.platform
        return "artifactType" not in self.value and (
            platform is None or platform.get("architecture") != _NO_PLATFORM
        )

    @property
    def tag(self) -> str | None:
        """The name that an image layout gives the entry, often only a tag."""
        return self._annotation(_REF_NAME)

    @property
    def image_name(self) -> str | None:
        """The full name of the image, as containerd and pybuild write it."""
        return self._annotation(_IMAGE_NAME)

    def _annotation(self, key: str) -> str | None:
        annotations = self.value.get("annotations")
        text = annotations.get(key) if isinstance(annotations, dict) else None
        return text if isinstance(text, str) and text else None


@struct
class Index:
    """An index: entries for several platforms, with what is attached to them."""

    entries: tuple[Entry, ...]
    value: JsonObject


@struct
class Manifest:
    """The manifest of an image, or of an artifact."""

    value: JsonObject

    @property
    def artifact_type(self) -> str | None:
        """The type of an artifact; None for an image."""
        text = self.value.get("artifactType")
        return text if isinstance(text, str) else None

    @property
    def config_type(self) -> str:
        """The media type of the config as the manifest states it, unchecked; empty where it states none."""
        config = self.value.get("config")
        return str(config.get("mediaType", "")) if isinstance(config, dict) else ""

    def config(self) -> Descriptor:
        """Return the descriptor of the config. Raises BuildError where it is malformed."""
        return parse_descriptor(self.value.get("config"), "the config")

    def layers(self) -> list[Descriptor]:
        """Return the descriptors of the layers, bottom first. Raises BuildError where one is malformed."""
        return [parse_descriptor(item, "a layer") for item in _items(self.value, "layers", "the manifest")]


def parse_manifest(data: bytes, what: str, served_as: str | None = None) -> Index | Manifest:
    """Parse a manifest or an index. A document that could be read as both is refused (REG-03).

    *what* names it in errors; *served_as* is the media type that a registry stated in a header.
    Raises BuildError.
    """
    value = loads(data, what, _LIMIT)
    if not isinstance(value, dict):
        raise ImageError(f"{what} is not a JSON object")
    stated = value.get("mediaType")
    if stated is not None and served_as not in (stated, None, "", "application/json"):
        raise ImageError(f"{what} states the media type {stated!r}, its registry {served_as!r}")
    if value.get("schemaVersion", 2) != 2:
        raise ImageError(f"{what} has an unsupported schema version", "push it again with a current tool")
    named = served_as if served_as and stated is None else stated
    if media_types.is_index(str(named)) or "manifests" in value:
        if "layers" in value or "manifests" not in value:
            raise ImageError(f"{what} is an index and an image at once")
        return Index(tuple(map(Entry, _items(value, "manifests", what))), value)
    return Manifest(value)


def parse_index(data: bytes, what: str) -> Index:
    """Parse an index. Raises BuildError, also for the manifest of an image."""
    parsed = parse_manifest(data, what)
    if not isinstance(parsed, Index):
        raise ImageError(f"{what} is not an index")
    return parsed


def parse_descriptor(value: object, what: str) -> Descriptor:
    """Return the descriptor of *what*, as a manifest or an index holds it. Raises ImageError."""
    if not isinstance(value, dict):
        raise ImageError(f"there is no descriptor of {what}")
    size = value.get("size")
    if type(size) is not int or size < 0:
        raise ImageError(f"the descriptor of {what} has no valid size")
    try:
        return Descriptor(str(value.get("mediaType")), digest(str(value.get("digest"))), size)
    except CacheError as error:
        raise ImageError(f"the descriptor of {what}: {error}") from None


def _items(value: JsonObject, key: str, what: str) -> list[JsonObject]:
    items = value.get(key)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ImageError(f"{key!r} of {what} is not a list of descriptors")
    if len(items) > _MOST_ITEMS:
        raise ImageError(f"{key!r} of {what} has more than {_MOST_ITEMS} items")
    return items


# -- written -------------------------------------------------------------------------------


def index_bytes(
    entries: Sequence[Mapping[str, object]],
    media_type: str = media_types.INDEX,
    annotations: Mapping[str, str] | None = None,
) -> bytes:
    """Return an index of *entries* as it is stored."""
    value: dict[str, object] = {"schemaVersion": 2, "mediaType": media_type, "manifests": list(entries)}
    if annotations:
        value["annotations"] = dict(sorted(annotations.items()))
    return to_json(value)


def manifest_bytes(
    config: Descriptor,
    layers: Sequence[Descriptor],
    media_type: str = media_types.MANIFEST,
    annotations: Mapping[str, str] | None = None,
) -> bytes:
    """Return the manifest of an image as it is stored."""
    value: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": config.to_json(),
        "layers": [layer.to_json() for layer in layers],
    }
    if annotations:
        value["annotations"] = dict(sorted(annotations.items()))
    return to_json(value)


def artifact_bytes(
    artifact_type: str,
    config: Descriptor,
    layers: Sequence[Descriptor],
    subject: Descriptor | None = None,
    annotations: Mapping[str, str] | None = None,
) -> bytes:
    """Return the manifest of an artifact as it is stored; *subject* is the manifest that it describes."""
    value: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": media_types.MANIFEST,
        "artifactType": artifact_type,
        "config": config.to_json(),
        "layers": [layer.to_json() for layer in layers],
    }
    if subject is not None:
        value["subject"] = subject.to_json()
    if annotations:
        value["annotations"] = dict(sorted(annotations.items()))
    return to_json(value)


def tagged(descriptor: Descriptor, tag: str) -> dict[str, object]:
    """Return the entry of an image layout for *descriptor* under the name *tag*."""
    return {**descriptor.to_json(), "annotations": {_REF_NAME: tag}}


def named(tag: str, image_name: str) -> dict[str, str]:
    """Return the annotations that name an image in a layout: for containerd, and for other tools."""
    return {_IMAGE_NAME: image_name, _REF_NAME: tag}


def identity(entry: Entry) -> tuple[str | None, str | None]:
    """Return what an entry of a layout replaces: one of the same name, or of the same digest without one."""
    return entry.tag, None if entry.tag else str(entry.stated_digest)


def blob_path(name: Digest) -> str:
    """Return the path of a blob in an image layout (image-layout.md)."""
    return "blobs/" + name.replace(":", "/")
