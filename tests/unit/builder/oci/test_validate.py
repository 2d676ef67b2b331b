"""Every fault that an image can have is found, and a sound image has none."""

from __future__ import annotations

import gzip
from typing import Any

import pytest
from layouts import AMD64, Blobs, entry, some_tar

from builder.errors import BuildError
from builder.oci import media_types
from builder.oci.errors import ImageError, MissingBlob
from builder.oci.manifest import Manifest
from builder.oci.validate import validate
from cache.descriptor import Descriptor
from cache.digest import digest_of
from cache.errors import ArchiveError


def test_a_sound_image_and_index_are_valid() -> None:
    blobs = Blobs()
    image = blobs.image()
    validate(image, blobs.open)
    empty = blobs.add(b"{}", media_types.EMPTY)
    attestation = {
        "schemaVersion": 2,
        "mediaType": media_types.MANIFEST,
        "artifactType": media_types.IN_TOTO,
        "config": empty.to_json(),
        "layers": [blobs.add(b"statement", media_types.IN_TOTO).to_json()],
    }
    attached = entry(
        blobs.add_json(attestation, media_types.MANIFEST),
        {"architecture": "unknown", "os": "unknown"},
        annotations={"vnd.docker.reference.digest": image.digest},
    )
    validate(blobs.index(entry(image, AMD64), attached), blobs.open)


def damaged(blobs: Blobs, at: Descriptor) -> None:
    data = blobs.data[at.digest]
    blobs.data[at.digest] = bytes([data[0] ^ 1]) + data[1:]


@pytest.mark.parametrize(
    "fault, says",
    [
        ({"config": {"rootfs": {"type": "layers", "diff_ids": []}}}, "0 diff IDs"),
        ({"config": {"rootfs": {"type": "layers", "diff_ids": [digest_of(b"x")]}}}, "has the diff ID"),
        ({"config": {"history": [{"created_by": "a", "empty_layer": True}]}}, "0 lines with a layer"),
        ({"config": {"history": 3}}, "not an image config"),
        ({"manifest": {"mediaType": media_types.DOCKER_MANIFEST}}, "states the media type"),
        ({"manifest": {"schemaVersion": 1}}, "schema version"),
        ({"manifest": {"manifests": []}}, "an index and an image at once"),
        ({"manifest": {"layers": [3]}}, "not a list of descriptors"),
        ({"manifest": {"config": {}}}, "no valid size"),
    ],
)
def test_faults_of_documents(fault: dict[str, Any], says: str) -> None:
    blobs = Blobs()
    with pytest.raises(BuildError, match=says):
        validate(blobs.image(**fault), blobs.open)


def test_faults_of_bytes() -> None:
    blobs = Blobs()
    image = blobs.image()
    manifest = blobs.manifest(image)
    assert isinstance(manifest, Manifest)
    (layer,) = manifest.layers()
    for at in (image, manifest.config(), layer):
        before = blobs.data[at.digest]
        damaged(blobs, at)
        with pytest.raises(ImageError, match="have the digest"):
            validate(image, blobs.open)
        blobs.data[at.digest] = before + b" "
        with pytest.raises(ImageError, match="its descriptor says"):
            validate(image, blobs.open)
        del blobs.data[at.digest]
        with pytest.raises(MissingBlob):
            validate(image, blobs.open)
        blobs.data[at.digest] = before
    validate(image, blobs.open)


def test_faults_of_layers() -> None:
    blobs = Blobs()
    tar = some_tar()
    wrong_type = blobs.add(gzip.compress(tar), "application/x-tar").to_json()
    with pytest.raises(ImageError, match="is not a layer"):
        validate(blobs.image(manifest={"layers": [wrong_type]}), blobs.open)
    cut = blobs.add(gzip.compress(tar)[:-9], "application/vnd.oci.image.layer.v1.tar+gzip").to_json()
    with pytest.raises(ArchiveError):
        validate(blobs.image(manifest={"layers": [cut]}), blobs.open)
    docker = blobs.add(gzip.compress(tar), "application/vnd.docker.image.rootfs.diff.tar.gzip").to_json()
    with pytest.raises(ImageError, match="but refers to"):
        validate(blobs.image(manifest={"layers": [docker]}), blobs.open)


def test_faults_of_indexes() -> None:
    blobs = Blobs()
    image = blobs.image()
    with pytest.raises(ImageError, match="is for linux/amd64"):
        validate(blobs.index(entry(image, {"architecture": "arm64", "os": "linux"})), blobs.open)
    lost = entry(image, annotations={"vnd.docker.reference.digest": digest_of(b"other")})
    with pytest.raises(ImageError, match="is attached to an image that"):
        validate(blobs.index(lost), blobs.open)
    with pytest.raises(ImageError, match="media type"):
        validate(image._replace(media_type=media_types.INDEX), blobs.open)
