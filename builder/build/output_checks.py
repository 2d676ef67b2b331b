"""Check the outputs of a request before anything is built."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from builder.errors import BuildError, UsageError
from builder.export.exporters import EXPORTERS
from builder.oci.model import host
from builder.request import BuildRequest, Output


def check_outputs(request: BuildRequest) -> None:
    """Raise BuildError for impossible outputs, and for a cache with the name of an image that is pushed."""
    _check_annotations(
        request.outputs, request.platforms or (str(host()),), bool(request.sbom or request.provenance)
    )
    for output in request.outputs:
        if output.kind == "registry" and not (output.names or request.tags):
            raise UsageError("there is no name to push the image under", "give one with -t, or with name=")
    for place in request.cache_to:
        for output in request.outputs:
            names = (output.names or request.tags) if output.kind == "registry" else ()
            if place.kind == "registry" and place.place in names:
                raise BuildError(
                    f"the cache {place.place} would take the place of the image of that name",
                    "give the cache a tag of its own, such as NAME:cache",
                )


def _check_annotations(outputs: Iterable[Output], platforms: Sequence[str], attested: bool) -> None:
    """Raise UsageError for annotations of an index or a platform that an output does not have."""
    for output in outputs:
        for item in output.annotations:
            where = f"the annotation {item.key!r} of {item.place}"
            if item.platform and item.platform not in platforms:
                raise UsageError(f"{where}[{item.platform}]: that platform is not built")
            has_index = len(platforms) > 1 or (
                attested and EXPORTERS[output.kind].attested and output.kind != "registry"
            )
            if item.place.startswith("index") and not has_index:
                raise UsageError(
                    f"{where}: an image for a single platform has no index", "annotate the manifest instead"
                )
            if output.docker_types and item.place != "manifest":
                raise UsageError(f"{where}: docker's media types have no such annotations")
