"""The statements that were asked for, of one image of a build."""

from __future__ import annotations

from collections.abc import Mapping

from builder.attest.packages import Found, find
from builder.attest.provenance import PREDICATE_TYPE, Result, provenance
from builder.attest.statement import Artifact, Subject, artifact, statement
from builder.images.local import snapshots
from builder.oci.model import ImageConfig
from builder.plan.graph import Plan
from builder.plan.ops import Files
from builder.request import BuildRequest
from cache.layer.snapshots import tree_of
from cache.store import Store


def packages_of(store: Store, config: ImageConfig) -> Found:
    """The packages in an image of the store. Raises BuildError or CacheError."""
    return find(tree_of(store, snapshots(store, config)))


def sbom_of(store: Store, subject: Subject, found: Found, form: str) -> Artifact:
    """The bill of materials of *subject* in the wanted *form*, kept in the store. Raises CacheError."""
    from builder.attest.sbom import PREDICATE_TYPES, sbom

    return _kept(store, subject, PREDICATE_TYPES[form], sbom(found, subject, form))


def provenance_of(
    store: Store,
    subject: Subject,
    request: BuildRequest,
    dockerfile: tuple[str, bytes],
    context: Files | None,
    made: Plan,
    results: Mapping[int, Result],
    mode: str,
    builder_id: str = "",
) -> Artifact:
    """How *subject* was built, kept in the store; see ``provenance``. Raises CacheError."""
    said = provenance(subject, request, dockerfile, context, made, results, store, mode, builder_id)
    return _kept(store, subject, PREDICATE_TYPE, said)


def _kept(store: Store, subject: Subject, predicate_type: str, predicate: dict[str, object]) -> Artifact:
    made = artifact(subject, predicate_type, statement(subject, predicate_type, predicate))
    made.keep(store)
    return made
