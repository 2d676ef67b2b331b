"""Push statements with an image (distribution-spec v1.1, "Pushing Manifests with Subject").

A registry of version 1.1 lists them itself, and sends the header OCI-Subject. For an older one the list is an
image index under a tag with the image's digest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from builder.attest.statement import Artifact, listing, referrers_tag
from builder.oci import media_types
from builder.oci.manifest import index_bytes, parse_index
from builder.registry.client import Fetched
from builder.registry.errors import NotFound
from builder.support.json_types import JsonObject
from cache.descriptor import Descriptor
from cache.digest import Digest
from cache.store import Store


class Target(Protocol):
    """The repository that has the image (builder.registry.repository.Repository)."""

    @property
    def name(self) -> str: ...

    def has_blob(self, descriptor: Descriptor) -> bool: ...

    def push_blob(self, descriptor: Descriptor, path: str, progress: Callable[[int], None]) -> bool: ...

    def fetch(self, name: str) -> Fetched: ...

    def push_manifest(self, name: str, media_type: str, data: bytes) -> bool:
        """Push a manifest; return True if the registry lists it for its subject."""


def publish(store: Store, artifacts: Sequence[Artifact], target: Target) -> None:
    """Push *artifacts*, whose blobs are in the store, to the repository of their subjects.

    Raises BuildError or CacheError.
    """
    unlisted: dict[Digest, list[Artifact]] = {}
    for item in artifacts:
        for descriptor, _data in item.blobs:
            if not target.has_blob(descriptor):
                target.push_blob(descriptor, store.blob_path(descriptor.digest), _no_progress)
        if not target.push_manifest(item.top.digest, item.top.media_type, item.body):
            unlisted.setdefault(item.subject.digest, []).append(item)
    for subject, items in unlisted.items():
        tag = referrers_tag(subject)
        old = _listed(target, tag)
        new = _merged(old, items)
        if new != old:
            target.push_manifest(tag, media_types.INDEX, index_bytes(new))


def _listed(target: Target, tag: str) -> list[JsonObject]:
    """Return the entries of the index under the referrers tag; none where there is no such tag.

    Raises BuildError.
    """
    try:
        fetched = target.fetch(tag)
    except NotFound:
        return []
    index = parse_index(fetched.data, f"the referrers index {target.name}:{tag}")
    return [entry.value for entry in index.entries]


def _merged(old: list[JsonObject], new: Sequence[Artifact]) -> list[JsonObject]:
    """Return *old*, with the signatures of others, and the artifacts of *new* that it does not have."""
    there = {item.get("digest") for item in old}
    return [*old, *(item for item in listing(new) if item["digest"] not in there)]


def _no_progress(count: int) -> None:
    """Show nothing: statements are small."""
