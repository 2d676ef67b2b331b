"""What becomes of a build: outputs, names, shared caches; in that order, so that no name means half of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from builder.build.built import Built, first_of
from builder.build.cache_export import export_caches
from builder.build.inputs import Inputs
from builder.environment import Environment
from builder.errors import BuildError, UsageError
from builder.events import Notice
from builder.export.exporters import EXPORTERS, Export
from builder.images.lazy_layers import Layers
from builder.images.local import remember_platform, rename
from builder.oci.model import host
from builder.request import BuildRequest, Output
from cache.descriptor import Descriptor
from cache.store import Store
from grammar.reference import parse_reference
from grammar.structs import replace, struct

if TYPE_CHECKING:
    from builder.attest.statement import Artifact
    from builder.export.image import PackedImage, StoredImage
    from builder.shared_cache.imports import Imports


@struct
class Delivered:
    """What a build left: the images for each platform, as they are named, and what to call them together.

    ``top`` is what a registry, or else an archive, calls that; None where it went to none. ``image`` is
    the image ID: of several platforms the digest of their index, "" where none had to be made.
    """

    built: tuple[Built, ...]
    top: Descriptor | None
    image: str


def deliver(
    request: BuildRequest,
    inputs: Inputs,
    built: Sequence[Built],
    environment: Environment,
    layers: Layers,
    imports: Imports | None,
) -> Delivered:
    """Write outputs, then give the image its names, then leave caches.

    The names mean the image that was exported. Raises BuildError or CacheError.
    """
    store = environment.store
    inline = any(place.kind == "inline" for place in request.cache_to)
    if inline and any(output.rewrite_timestamp for output in request.outputs):
        note = "the cache in the image says nothing of its layers, whose times are rewritten"
        environment.sink(Notice(note, warning=True))
    attests = bool(request.sbom or request.provenance)
    if attests and not any(EXPORTERS[output.kind].attested for output in request.outputs):
        note = "attestations go to registries and OCI archives only (-o type=oci, --push): there is none"
        environment.sink(Notice(note, warning=True))
    for note in dict.fromkeys(note for output in request.outputs for note in output.notes):
        environment.sink(Notice(note))
    told = _told(request.outputs)
    tops = [_export(output, request, inputs, built, environment) for output in request.outputs]
    top = tops[request.outputs.index(told)] if told is not None else None
    named = _named(told, built, store)
    if top is None and len(named) > 1 and (request.iidfile or request.metadata_file or request.quiet):
        top = _index_of(named, environment)
    _name(request, named, store)
    export_caches(request, built, layers, imports)
    image = first_of(named).image if len(named) == 1 else top.digest if top is not None else ""
    if request.iidfile:
        try:
            with open(request.iidfile, "w", encoding="ascii") as file:
                file.write(image)
        except OSError as error:
            raise BuildError(f"writing {request.iidfile}: {error.strerror}") from None
    return Delivered(named, top, image)


def _told(outputs: Sequence[Output]) -> Output | None:
    """Return the output that IDs and metadata are about: the last of those of the highest precedence."""
    found = max(reversed(outputs), key=lambda output: EXPORTERS[output.kind].precedence, default=None)
    return found if found is not None and EXPORTERS[found.kind].precedence else None


def _named(told: Output | None, built: Sequence[Built], store: Store) -> tuple[Built, ...]:
    """The images as they get the names: those that the output *told* of holds."""
    if told is None or not told.rewrite_timestamp:
        return tuple(built)
    from builder.export.image import with_latest_time

    out = []
    for one in built:
        stored = with_latest_time(store, stored_image(one))
        out.append(replace(one, image=stored.image, config=stored.config))
    return tuple(out)


def _name(request: BuildRequest, built: Sequence[Built], store: Store) -> None:
    for tag in request.names:
        rename(store, tag, first_of(built).image)
        for one in [one for one in built if one.platform != host()]:
            remember_platform(store, parse_reference(tag), one.platform, one.image)


# -- outputs -------------------------------------------------------------------------------


def _export(
    output: Output, request: BuildRequest, inputs: Inputs, built: Sequence[Built], environment: Environment
) -> Descriptor | None:
    """Write one output; return the descriptor of what it names, None where it holds no manifest."""
    names = output.names or request.tags

    def attest(packed: Sequence[PackedImage]) -> tuple[Artifact, ...]:
        return _attached(packed, names, request, inputs, built, environment)

    images = tuple(map(stored_image, built))
    export = Export(environment.store, environment.sink, output, names, images, request.client, attest)
    return EXPORTERS[output.kind].write(export)


def stored_image(one: Built) -> StoredImage:
    """Return a built image as outputs take it."""
    from builder.export.image import StoredImage  # not for builds without outputs

    base = len(one.config.diff_ids) - sum(line.step is not None for line in one.plan.lines)
    return StoredImage(one.image, one.config, base, one.plan.epoch)


def _index_of(built: Sequence[Built], environment: Environment) -> Descriptor:
    """Store an index of the images for several platforms, of which no output holds one."""
    from builder.export.image import ImageFormat, exported_image, pack_image

    store = environment.store
    packed = [pack_image(store, stored_image(one), ImageFormat(), environment.sink) for one in built]
    return exported_image(store, packed, Output("oci", "")).descriptor


def _attached(
    packed: Sequence[PackedImage],
    names: tuple[str, ...],
    request: BuildRequest,
    inputs: Inputs,
    built: Sequence[Built],
    environment: Environment,
) -> tuple[Artifact, ...]:
    """The statements that were asked for, of the image for each platform."""
    if not request.sbom and not request.provenance:
        return ()
    from builder.attest.provenance import BuildRecord
    from builder.attest.statement import Subject
    from builder.attest.statements import packages_of, provenance_of, sbom_of

    store, out = environment.store, []
    for one, image in zip(built, packed, strict=True):
        subject = Subject(names, image.descriptor, image.platform, one.config.created)
        if request.sbom:
            found = packages_of(store, one.config)
            for gap in found.gaps:
                environment.sink(Notice(f"the list of packages has a gap: {gap}", warning=True))
            out.append(sbom_of(store, subject, found, request.sbom))
        if request.provenance:
            out.append(
                provenance_of(
                    store,
                    subject,
                    BuildRecord(request, inputs.dockerfile, inputs.files, one.plan, one.solution.results),
                )
            )
    return tuple(out)


# -- checks before the build ----------------------------------------------------------------


def check_outputs(request: BuildRequest) -> None:
    """Raise BuildError for outputs that cannot be, or a cache in the place of an image that is pushed."""
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
