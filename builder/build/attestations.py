"""Make the attestations that a build is asked for: SBOM and provenance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from builder.build.built import Built
from builder.build.inputs import Inputs
from builder.environment import Environment
from builder.events import Notice
from builder.request import BuildRequest
from grammar.structs import struct

if TYPE_CHECKING:
    from builder.attest.statement import Artifact, Subject
    from builder.export.image import PackedImage


@struct
class Attestations:
    """The attestations for one output, which has the image under ``names``."""

    request: BuildRequest
    inputs: Inputs
    built: Sequence[Built]
    environment: Environment
    names: tuple[str, ...]

    def of(self, packed: Sequence[PackedImage]) -> tuple[Artifact, ...]:
        """Return the statements about the image for each platform. Raises BuildError or CacheError."""
        if not self.request.sbom and not self.request.provenance:
            return ()
        from builder.attest.statement import Subject  # few builds are attested

        out: list[Artifact] = []
        for one, image in zip(self.built, packed, strict=True):
            subject = Subject(self.names, image.descriptor, image.platform, one.config.created)
            if self.request.sbom:
                out.append(self._sbom(one, subject))
            if self.request.provenance:
                out.append(self._provenance(one, subject))
        return tuple(out)

    def _sbom(self, one: Built, subject: Subject) -> Artifact:
        from builder.attest.statements import packages_of, sbom_of

        store = self.environment.store
        found = packages_of(store, one.config)
        for gap in found.gaps:
            self.environment.sink(Notice(f"the list of packages has a gap: {gap}", warning=True))
        return sbom_of(store, subject, found, self.request.sbom)

    def _provenance(self, one: Built, subject: Subject) -> Artifact:
        from builder.attest.provenance import BuildRecord
        from builder.attest.statements import provenance_of

        inputs = self.inputs
        record = BuildRecord(self.request, inputs.dockerfile, inputs.files, one.plan, one.solution.results)
        return provenance_of(self.environment.store, subject, record)
