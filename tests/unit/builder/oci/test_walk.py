"""From an index to the images that it leads to."""

from __future__ import annotations

import pytest
from layouts import AMD64, Blobs, entry

from builder.errors import BuildError
from builder.oci import media_types
from builder.oci.errors import ImageError, MissingBlob
from builder.oci.manifest import parse_manifest
from builder.oci.model import Platform
from builder.oci.walk import image_manifests
from cache.descriptor import Descriptor
from cache.digest import digest_of

V7, V6 = ({"architecture": "arm", "os": "linux", "variant": name} for name in ("v7", "v6"))
ARM64 = {"architecture": "arm64", "os": "linux"}


def found(blobs: Blobs, top: Descriptor, wanted: Platform | None = None) -> list[object]:
    """Return the configs of the images that *top* leads to, by architecture and variant."""
    manifests = image_manifests(blobs.manifest(top), blobs, wanted)
    configs = [blobs.config(manifest.config()) for manifest in manifests]
    return [str(config.platform) for config in configs]


def test_an_image_leads_to_itself() -> None:
    blobs = Blobs()
    assert found(blobs, blobs.image(ARM64), Platform("linux", "amd64")) == ["linux/arm64"]


def test_the_best_platform_comes_first() -> None:
    blobs = Blobs()
    top = blobs.index(*(entry(blobs.image(platform), platform) for platform in (V6, AMD64, ARM64, V7)))
    assert found(blobs, top, Platform("linux", "arm", "v7")) == ["linux/arm/v7", "linux/arm/v6"]
    assert found(blobs, top, Platform("linux", "arm64"))[0] == "linux/arm64"
    assert found(blobs, top, Platform("linux", "riscv64")) == []
    assert len(found(blobs, top)) == 4


def test_only_what_is_wanted_is_read() -> None:
    blobs = Blobs()
    top = blobs.index(*(entry(blobs.image(platform), platform) for platform in (AMD64, ARM64)))
    next(image_manifests(blobs.manifest(top), blobs, Platform("linux", "arm64")))
    assert len(blobs.reads) == 2


def test_without_a_platform_the_config_decides() -> None:
    blobs = Blobs()
    top = blobs.index(entry(blobs.image(AMD64)), entry(blobs.image(ARM64)))
    assert found(blobs, top, Platform("linux", "arm64")) == ["linux/arm64"]


def test_attestations_and_artifacts_are_left_out() -> None:
    blobs = Blobs()
    image = blobs.image()
    unknown = {"architecture": "unknown", "os": "unknown"}
    top = blobs.index(
        entry(image, unknown), entry(image, artifactType=media_types.IN_TOTO), entry(image, AMD64)
    )
    assert found(blobs, top) == ["linux/amd64"]


def test_entries_that_cannot_be_read() -> None:
    blobs = Blobs()
    lost = Descriptor(media_types.MANIFEST, digest_of(b"lost"), 4)
    top = blobs.index(entry(lost, AMD64), {"digest": "md5:0"}, entry(blobs.image(), AMD64))
    with pytest.raises(MissingBlob):
        found(blobs, top)
    errors: list[BuildError] = []
    assert len(list(image_manifests(blobs.manifest(top), blobs, failed=errors.append))) == 1
    assert len(errors) == 2


def test_an_index_in_an_index() -> None:
    blobs = Blobs()
    top = blobs.index(entry(blobs.index(entry(blobs.image(), AMD64))))
    assert found(blobs, top, Platform("linux", "amd64")) == ["linux/amd64"]
    for number in range(5):
        top = blobs.index(entry(top), {**entry(top), "annotations": {"number": str(number)}})
    with pytest.raises(ImageError, match="too many indexes"):
        found(blobs, top)


@pytest.mark.parametrize(
    "data, served_as",
    [
        (b"[]", None),
        (b'{"schemaVersion": 1}', None),
        (b'{"schemaVersion": 2, "manifests": [], "layers": []}', None),
        (b'{"schemaVersion": 2, "layers": []}', media_types.INDEX),
        (b'{"schemaVersion": 2, "manifests": 3}', None),
        (b'{"schemaVersion": 2, "mediaType": "%s", "layers": []}' % media_types.MANIFEST.encode(), "a/b"),
    ],
)
def test_REG_03_ambiguous_documents(data: bytes, served_as: str | None) -> None:
    with pytest.raises(ImageError):
        parse_manifest(data, "it", served_as)
