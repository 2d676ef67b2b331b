"""How registries get attestations: with the referrers API, and without it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from attested import IMAGE, SUBJECT

from builder.attest.publish import publish
from builder.attest.sbom import CYCLONEDX, PREDICATE_TYPES, SPDX
from builder.attest.statement import Artifact, artifact, referrers_tag, statement
from builder.errors import BuildError
from builder.oci.media_types import MANIFEST as MANIFEST_TYPE
from builder.registry.client import Fetched
from builder.registry.errors import NotFound
from cache.descriptor import Descriptor
from cache.digest import Digest, digest_of
from cache.store import Store


@dataclass
class Shelf:
    """A registry in memory; ``modern`` ones know referrers."""

    modern: bool
    name: str = "registry.test/app"
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)

    def has_blob(self, descriptor: Descriptor) -> bool:
        return descriptor.digest in self.blobs

    def push_blob(self, descriptor: Descriptor, path: str, progress: Callable[[int], None]) -> bool:
        data = Path(path).read_bytes()
        assert digest_of(data) == descriptor.digest
        self.blobs[descriptor.digest] = data
        return True

    def fetch(self, name: str) -> Fetched:
        if name not in self.manifests:
            raise NotFound("no")
        data = self.manifests[name]
        return Fetched("", digest_of(data), data)

    def push_manifest(self, name: str, media_type: str, data: bytes) -> bool:
        value = json.loads(data)
        for item in [value["config"], *value["layers"]] if "layers" in value else []:
            assert item["digest"] in self.blobs
        self.manifests[name] = data
        self.puts.append(name)
        return self.modern and "subject" in value


def two(store: Store) -> tuple[Artifact, Artifact]:
    made = [artifact(SUBJECT, kind, statement(SUBJECT, kind, {})) for kind in ("urn:b", "urn:a")]
    for item in made:
        item.keep(store)
    return made[0], made[1]


def test_publish(made_store: Store) -> None:
    shelf = Shelf(modern=True)
    items = two(made_store)
    publish(made_store, items, shelf)
    assert shelf.puts == [item.top.digest for item in items] and len(shelf.blobs) == 3


def test_publish_to_old(made_store: Store) -> None:
    """The referrers tag lists what was there and what is new, each once; an unchanged one is left alone."""
    shelf, items = Shelf(modern=False), two(made_store)
    tag = referrers_tag(IMAGE.digest)
    assert tag == IMAGE.digest.replace("sha256:", "sha256-")
    theirs = {"mediaType": MANIFEST_TYPE, "digest": digest_of(b"sig"), "size": 3, "artifactType": "sig"}
    shelf.manifests[tag] = json.dumps({"schemaVersion": 2, "manifests": [theirs]}).encode()
    publish(made_store, items, shelf)
    listed = json.loads(shelf.manifests[tag])
    assert listed["mediaType"] == "application/vnd.oci.image.index.v1+json"
    kinds = [item.get("annotations", {}).get("in-toto.io/predicate-type") for item in listed["manifests"]]
    assert kinds == [None, "urn:a", "urn:b"] and listed["manifests"][0] == theirs
    shelf.puts.clear()
    publish(made_store, items, shelf)
    assert tag not in shelf.puts
    fresh = Shelf(modern=False)
    publish(made_store, items, fresh)
    assert len(json.loads(fresh.manifests[tag])["manifests"]) == 2


@pytest.mark.parametrize("data", [b"{}", b"[]", b'{"manifests": [1]}', b"\xff", b"[" * 100_000])
def test_publish_over_nonsense(data: bytes, made_store: Store) -> None:
    """What somebody else keeps under the tag is not overwritten."""
    shelf = Shelf(modern=False)
    shelf.manifests[referrers_tag(IMAGE.digest)] = data
    with pytest.raises(BuildError):
        publish(made_store, two(made_store), shelf)
    assert shelf.manifests[referrers_tag(IMAGE.digest)] == data


def test_predicate_types() -> None:
    assert set(PREDICATE_TYPES) == {SPDX, CYCLONEDX}
    assert Digest(IMAGE.digest).startswith("sha256:")
