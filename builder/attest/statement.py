"""A statement about an image (in-toto Attestation Framework v1), and what carries it beside that image.

That is an OCI manifest whose ``subject`` is the image's own (image-spec v1.1 manifest.md, "Guidelines
for Artifact Usage"): nothing of the image changes, and a registry lists it among the image's referrers.
"""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Sequence

from packageurl import PackageURL

from builder.oci import media_types
from builder.oci.manifest import artifact_bytes
from builder.oci.media_types import IN_TOTO
from builder.oci.model import Platform
from builder.support.json_strict import valid_text
from cache.descriptor import Descriptor
from cache.digest import Digest, digest_of, hex_of
from cache.store import Store
from grammar.reference import parse_reference
from grammar.structs import replace, struct

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_MARK = "in-toto.io/predicate-type"
OURS = "urn:pybuild:"  # what our own identifiers begin with
_EMPTY = b"{}"
_NOWHEN = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


@struct
class Subject:
    """The image for one platform: its names (canonical), its manifest, and when it was made.

    ``created`` is RFC 3339, of SOURCE_DATE_EPOCH where that was given.
    """

    names: tuple[str, ...]
    manifest: Descriptor
    platform: Platform
    created: str

    @property
    def shown(self) -> str:
        """What people call it."""
        return parse_reference(self.names[0]).familiar if self.names else self.manifest.digest

    @property
    def moment(self) -> datetime.datetime:
        """When it was made, to the second, in UTC; 1970 where that is not said, or nonsense."""
        try:
            found = datetime.datetime.fromisoformat(self.created).astimezone(datetime.UTC)
        except (ValueError, OverflowError):
            return _NOWHEN
        return found.replace(microsecond=0)

    @property
    def time(self) -> str:
        """The same as RFC 3339 has it."""
        return f"{self.moment:%Y-%m-%dT%H:%M:%S}Z".rjust(20, "0")

    def derived(self, what: str) -> uuid.UUID:
        """An identifier of *what* is said of this image: always the same (RFC 9562, version 5)."""
        return uuid.uuid5(uuid.NAMESPACE_URL, f"{OURS}{what}:{self.manifest.digest}")


@struct
class Artifact:
    """A statement as registries and layouts hold it: ``body`` is the manifest, ``top`` its descriptor."""

    top: Descriptor
    body: bytes
    subject: Descriptor
    predicate_type: str
    statement: bytes

    @property
    def blobs(self) -> tuple[tuple[Descriptor, bytes], ...]:
        """What the manifest names."""
        return (_descriptor(media_types.EMPTY, _EMPTY), _EMPTY), (
            _descriptor(IN_TOTO, self.statement),
            self.statement,
        )

    def keep(self, store: Store) -> None:
        """Have the manifest and all it names in the store. Raises CacheError."""
        for data in (self.body, *(data for _, data in self.blobs)):
            store.put_blob(data)


def image_url(name: str, digest: str, platform: Platform | str) -> str:
    """The package URL of an image of a registry, spelled as BuildKit does."""
    reference = parse_reference(name)
    space, _, last = replace(reference, tag="", digest="").familiar.rpartition("/")
    qualifiers = {"digest": digest or reference.digest, "platform": str(platform)}
    return PackageURL("docker", space, last, reference.tag, qualifiers).to_string()


def statement(subject: Subject, predicate_type: str, predicate: dict[str, object]) -> bytes:
    """The statement that *predicate* is true of an image; equal values give equal bytes."""
    digest = {"sha256": hex_of(subject.manifest.digest)}
    names = [image_url(name, "", subject.platform) for name in subject.names] or ["_"]
    value = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": digest} for name in names],
        "predicateType": predicate_type,
        "predicate": predicate,
    }
    return valid_text(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)).encode()


def artifact(subject: Subject, predicate_type: str, said: bytes) -> Artifact:
    """The manifest that carries the statement *said* beside its image."""
    about = Descriptor(subject.manifest.media_type, subject.manifest.digest, subject.manifest.size)
    layer = _descriptor(IN_TOTO, said)._replace(annotations={PREDICATE_MARK: predicate_type})
    empty = _descriptor(media_types.EMPTY, _EMPTY)
    body = artifact_bytes(IN_TOTO, empty, [layer], about, {PREDICATE_MARK: predicate_type})
    return Artifact(_descriptor(media_types.MANIFEST, body), body, about, predicate_type, said)


@struct
class Bundle:
    """All statements about an image as an index has them: ``body`` is the manifest, ``top`` names it."""

    top: Descriptor
    body: bytes
    statements: tuple[bytes, ...]

    @property
    def blobs(self) -> tuple[tuple[Descriptor, bytes], ...]:
        """What the manifest names."""
        said = ((_descriptor(IN_TOTO, statement), statement) for statement in self.statements)
        return (_descriptor(media_types.EMPTY, _EMPTY), _EMPTY), *said

    def keep(self, store: Store) -> None:
        """Have the manifest and all it names in the store. Raises CacheError."""
        for data in (self.body, *(data for _, data in self.blobs)):
            store.put_blob(data)


def bundles(items: Sequence[Artifact]) -> list[Bundle]:
    """The manifests for an index, one for each image, in the order of the images (as BuildKit's are)."""
    by_subject: dict[Digest, list[Artifact]] = {}
    for item in items:
        by_subject.setdefault(item.subject.digest, []).append(item)
    return [_bundle(said[0].subject, said) for said in by_subject.values()]


def _bundle(subject: Descriptor, items: Sequence[Artifact]) -> Bundle:
    said = sorted(items, key=lambda item: item.predicate_type)
    layers = [
        _descriptor(IN_TOTO, item.statement)._replace(annotations={PREDICATE_MARK: item.predicate_type})
        for item in said
    ]
    empty = _descriptor(media_types.EMPTY, _EMPTY)
    body = artifact_bytes(media_types.ATTESTATION_MANIFEST, empty, layers, subject)
    marks = {
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": subject.digest,
    }
    top = _descriptor(media_types.MANIFEST, body)._replace(annotations=marks)
    return Bundle(top, body, tuple(item.statement for item in said))


def listed(item: Artifact) -> dict[str, object]:
    """The descriptor of an artifact as an index of referrers, or of a layout, has it."""
    return {
        **item.top.to_json(),
        "artifactType": IN_TOTO,
        "annotations": {PREDICATE_MARK: item.predicate_type},
    }


def listing(items: Sequence[Artifact]) -> list[dict[str, object]]:
    """All of them, in a stable order."""
    return [
        listed(item) for item in sorted(items, key=lambda item: (item.subject.digest, item.predicate_type))
    ]


def referrers_tag(subject: Digest) -> str:
    """The tag under which old registries keep what refers to a manifest (distribution-spec v1.1)."""
    return subject.replace(":", "-")


def _descriptor(media: str, data: bytes) -> Descriptor:
    return Descriptor(media, digest_of(data), len(data))
