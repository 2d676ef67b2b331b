"""Put statements beside an image that was pushed (distribution-spec v1.1, "Pushing Manifests with Subject").

A registry of version 1.1 lists them itself, and says so by the header OCI-Subject. For older ones the list
is an index under a tag that is named after the image's digest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from builder.attest.statement import Artifact, listing, referrers_tag
from builder.errors import BuildError
from builder.oci.model import INDEX_TYPE, to_json
from builder.registry.client import MANIFEST_LIMIT, Fetched
from builder.registry.errors import NotFound
from builder.support.json_strict import loads
from cache.descriptor import Descriptor
from cache.digest import Digest
from cache.store import Store


class Target(Protocol):
    """The registry that the image is in (builder.registry.client.Registry)."""

    def has_blob(self, repository: str, descriptor: Descriptor) -> bool: ...

    def push_blob(
        self,
        repository: str,
        descriptor: Descriptor,
        path: str,
        mount_from: str,
        progress: Callable[[int], None],
    ) -> bool: ...

    def manifest(self, repository: str, reference: str) -> Fetched: ...

    def push_manifest(self, repository: str, reference: str, media_type: str, data: bytes) -> bool:
        """Whether the registry says that it lists this among what refers to its subject."""


def publish(store: Store, artifacts: Sequence[Artifact], target: Target, repository: str) -> None:
    """Push *artifacts*, whose blobs are in the store, to where their subjects are.

    Raises BuildError or CacheError.
    """
    unlisted: dict[Digest, list[Artifact]] = {}
    for item in artifacts:
        for descriptor, _data in item.blobs:
            if not target.has_blob(repository, descriptor):
                target.push_blob(repository, descriptor, store.blob_path(descriptor.digest), "", _silent)
        if not target.push_manifest(repository, item.top.digest, item.top.media_type, item.body):
            unlisted.setdefault(item.subject.digest, []).append(item)
    for subject, items in unlisted.items():
        tag = referrers_tag(subject)
        old = _listed(target, repository, tag)
        new = _merged(old, items)
        if new != old:
            body = to_json({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": new})
            target.push_manifest(repository, tag, INDEX_TYPE, body)


def _listed(target: Target, repository: str, tag: str) -> list[dict[str, Any]]:
    """What is under the referrers tag; nothing where that is not there. Raises BuildError."""
    try:
        fetched = target.manifest(repository, tag)
    except NotFound:
        return []
    value = loads(fetched.data, f"the index {repository}:{tag}", MANIFEST_LIMIT)
    items = value.get("manifests") if isinstance(value, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise BuildError(f"{repository}:{tag} is no index of what refers to an image")
    return items


def _merged(old: list[dict[str, Any]], new: Sequence[Artifact]) -> list[dict[str, Any]]:
    """All of *old*, signatures of others among them, and what of *new* is not there yet."""
    there = {item.get("digest") for item in old}
    return [*old, *(item for item in listing(new) if item["digest"] not in there)]


def _silent(count: int) -> None:
    """Statements are small: nobody is told of their progress."""
