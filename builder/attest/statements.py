"""Make the attestations of an image and put them into the store."""

from __future__ import annotations

from builder.attest.packages import Found, find
from builder.attest.provenance import PREDICATE_TYPE, BuildRecord, provenance
from builder.attest.statement import Artifact, Subject, artifact, statement
from builder.images.local import snapshots
from builder.oci.model import ImageConfig
from cache.layer.snapshots import tree_of
from cache.store import Store


def packages_of(store: Store, config: ImageConfig) -> Found:
    """Find the packages in an image of the store. Raises BuildError or CacheError."""
    return find(tree_of(store, snapshots(store, config)))


def sbom_of(store: Store, subject: Subject, found: Found, form: str) -> Artifact:
    """Store a bill of materials of *subject* in the format *form*, and return it. Raises CacheError."""
    from builder.attest.sbom import PREDICATE_TYPES, sbom

    return _kept(store, subject, PREDICATE_TYPES[form], sbom(found, subject, form))


def provenance_of(store: Store, subject: Subject, record: BuildRecord) -> Artifact:
    """Store a statement of how *subject* was built, and return it. Raises CacheError."""
    return _kept(store, subject, PREDICATE_TYPE, provenance(store, subject, record))


def _kept(store: Store, subject: Subject, predicate_type: str, predicate: dict[str, object]) -> Artifact:
    made = artifact(subject, predicate_type, statement(subject, predicate_type, predicate))
    made.keep(store)
    return made
