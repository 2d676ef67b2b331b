"""Media types of manifests, configs and artifacts. Those of layers are in ``cache.layer.compression``."""

from __future__ import annotations

# Images (image-spec media-types.md), and the Docker types that they replaced.
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"

# Artifacts (image-spec manifest.md, "Guidelines for Artifact Usage").
EMPTY = "application/vnd.oci.empty.v1+json"

# Attestations.
IN_TOTO = "application/vnd.in-toto+json"
ATTESTATION_MANIFEST = "application/vnd.docker.attestation.manifest.v1+json"

# Shared caches of pybuild.
CACHE = "application/vnd.pybuild.cache.v1"
CACHE_CONFIG = "application/vnd.pybuild.cache.config.v1+json"
CACHE_MOUNT = "application/vnd.pybuild.cache.mount.v1.tar+zstd"

# What a registry is asked for.
MANIFESTS = (MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_LIST)

OCTETS = "application/octet-stream"


def is_index(media_type: str) -> bool:
    """Return True for the type of an index, a list of manifests."""
    return media_type in (INDEX, DOCKER_LIST)


def is_docker(media_type: str) -> bool:
    """Return True for a Docker type, which has no annotations and no artifacts."""
    return media_type.startswith("application/vnd.docker.")


def is_image_config(media_type: str) -> bool:
    """Return True for the config of an image; the config of an artifact has another type."""
    return media_type in (CONFIG, DOCKER_CONFIG)
