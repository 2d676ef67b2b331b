"""A statement about an image (in-toto Attestation Framework v1), and the artifact that stores it.

The artifact is an OCI manifest whose ``subject`` is the image's manifest (image-spec v1.1 manifest.md,
"Guidelines for Artifact Usage"). The image is unchanged, and a registry lists the artifact as its referrer.
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
OURS = "urn:pybuild:"  # the prefix of pybuild's identifiers
_EMPTY = b"{}"
_NOWHEN = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


@struct
class Subject:
    """The image for one platform: its names (canonical), its manifest, and when it was made.

    ``created`` is RFC 3339; from SOURCE_DATE_EPOCH if that was given.
    """

    names: tuple[str, ...]
    manifest: Descriptor
    platform: Platform
    created: str

    @property
    def shown(self) -> str:
        """The name for readers."""
        return parse_reference(self.names[0]).familiar if self.names else self.manifest.digest

    @property
    def moment(self) -> datetime.datetime:
        """The creation time, to the second, in UTC; 1970 if it is missing or invalid."""
        try:
            found = datetime.datetime.fromisoformat(self.created).astimezone(datetime.UTC)
        except (ValueError, OverflowError):
            return _NOWHEN
        return found.replace(microsecond=0)

    @property
    def time(self) -> str:
        """The creation time as RFC 3339."""
        return f"{self.moment:%Y-%m-%dT%H:%M:%S}Z".rjust(20, "0")

    def derived(self, what: str) -> uuid.UUID:
        """Return the identifier of a statement *what* about this image (RFC 9562, version 5)."""
        return uuid.uuid5(uuid.NAMESPACE_URL, f"{OURS}{what}:{self.manifest.digest}")


@struct
class Artifact:
    """A statement as registries and layouts store it: ``body`` is the manifest, ``top`` its descriptor."""

    top: Descriptor
    body: bytes
    subject: Descriptor
    predicate_type: str
    statement: bytes

    @property
    def blobs(self) -> tuple[tuple[Descriptor, bytes], ...]:
        """The blobs that the manifest names."""
        return (_descriptor(media_types.EMPTY, _EMPTY), _EMPTY), (
            _descriptor(IN_TOTO, self.statement),
            self.statement,
        )

    def keep(self, store: Store) -> None:
        """Store the manifest and the blobs that it names. Raises CacheError."""
        for data in (self.body, *(data for _, data in self.blobs)):
            store.put_blob(data)


def image_url(name: str, digest: str, platform: Platform | str) -> str:
    """Return the package URL of a registry's image, in BuildKit's spelling."""
    reference = parse_reference(name)
    space, _, last = replace(reference, tag="", digest="").familiar.rpartition("/")
    qualifiers = {"digest": digest or reference.digest, "platform": str(platform)}
    return PackageURL("docker", space, last, reference.tag, qualifiers).to_string()


def statement(subject: Subject, predicate_type: str, predicate: dict[str, object]) -> bytes:
    """Return the statement that *predicate* is true of an image. Equal values give equal bytes."""
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
    """Return the manifest of an artifact with the statement *said*."""
    about = Descriptor(subject.manifest.media_type, subject.manifest.digest, subject.manifest.size)
    layer = _descriptor(IN_TOTO, said)._replace(annotations={PREDICATE_MARK: predicate_type})
    empty = _descriptor(media_types.EMPTY, _EMPTY)
    body = artifact_bytes(IN_TOTO, empty, [layer], about, {PREDICATE_MARK: predicate_type})
    return Artifact(_descriptor(media_types.MANIFEST, body), body, about, predicate_type, said)


@struct
class Bundle:
    """All statements about an image, for an image index: ``body`` is the manifest, ``top`` its descriptor."""

    top: Descriptor
    body: bytes
    statements: tuple[bytes, ...]

    @property
    def blobs(self) -> tuple[tuple[Descriptor, bytes], ...]:
        """The blobs that the manifest names."""
        said = ((_descriptor(IN_TOTO, statement), statement) for statement in self.statements)
        return (_descriptor(media_types.EMPTY, _EMPTY), _EMPTY), *said

    def keep(self, store: Store) -> None:
        """Store the manifest and the blobs that it names. Raises CacheError."""
        for data in (self.body, *(data for _, data in self.blobs)):
            store.put_blob(data)


def bundles(items: Sequence[Artifact]) -> list[Bundle]:
    """Return the manifests for an image index, one for each image, in their order, as in BuildKit."""
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
    """Return the descriptor of an artifact for an index of referrers, or of a layout."""
    return {
        **item.top.to_json(),
        "artifactType": IN_TOTO,
        "annotations": {PREDICATE_MARK: item.predicate_type},
    }


def listing(items: Sequence[Artifact]) -> list[dict[str, object]]:
    """Return the descriptors of all artifacts, in a stable order."""
    return [
        listed(item) for item in sorted(items, key=lambda item: (item.subject.digest, item.predicate_type))
    ]


def referrers_tag(subject: Digest) -> str:
    """Return the tag of a manifest's referrers in older registries (distribution-spec v1.1)."""
    return subject.replace(":", "-")


def _descriptor(media: str, data: bytes) -> Descriptor:
    return Descriptor(media, digest_of(data), len(data))
