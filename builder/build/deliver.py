"""Deliver a build: write its outputs, then name the image, then leave shared caches.

In this order no name means an image that was exported in part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from builder.build.attestations import Attestations
from builder.build.built import Built, first_of
from builder.build.cache_export import export_caches
from builder.build.inputs import Inputs
from builder.environment import Environment
from builder.errors import BuildError
from builder.events import Notice, Sink
from builder.export.exporters import EXPORTERS, Export
from builder.images.lazy_layers import Layers
from builder.images.local import remember_platform, rename
from builder.oci.model import host
from builder.request import BuildRequest, Output
from cache.descriptor import Descriptor
from cache.digest import Digest
from cache.store import Store
from grammar.reference import parse_reference
from grammar.structs import replace, struct

if TYPE_CHECKING:
    from builder.export.image import StoredImage
    from builder.shared_cache.imports import Imports


@struct
class Delivered:
    """What a build left: the images for each platform, as they are named.

    ``top`` describes the image, or the index of several, in a registry or else an archive; None if it went to
    none. ``image`` is the image ID: of several platforms the digest of their index, None if none was made.
    """

    built: tuple[Built, ...]
    top: Descriptor | None
    image: Digest | None


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
    _say_what_is_left_out(request, environment.sink)
    exports = [_export(output, request, inputs, built, environment) for output in request.outputs]
    described = _described(exports)
    tops = [EXPORTERS[export.output.kind].write(export) for export in exports]
    top = tops[exports.index(described)] if described is not None else None
    named = _named(described, built)
    if top is None and len(named) > 1 and (request.iidfile or request.metadata_file or request.quiet):
        top = _store_index(_export(Output("oci", ""), request, inputs, named, environment))
    _name(request, named, environment.store)
    export_caches(request, built, layers, imports)
    image = first_of(named).image if len(named) == 1 else top.digest if top is not None else None
    if request.iidfile and image is not None:
        try:
            with open(request.iidfile, "w", encoding="ascii") as file:
                file.write(image)
        except OSError as error:
            raise BuildError(f"writing {request.iidfile}: {error.strerror}") from None
    return Delivered(named, top, image)


def _say_what_is_left_out(request: BuildRequest, sink: Sink) -> None:
    """Report options that have no effect together."""
    inline = any(place.kind == "inline" for place in request.cache_to)
    if inline and any(output.rewrite_timestamp for output in request.outputs):
        note = "the cache in the image says nothing of its layers, whose times are rewritten"
        sink(Notice(note, warning=True))
    attests = bool(request.sbom or request.provenance)
    if attests and not any(EXPORTERS[output.kind].attested for output in request.outputs):
        note = "attestations go to registries and OCI archives only (-o type=oci, --push): there is none"
        sink(Notice(note, warning=True))
    for note in dict.fromkeys(note for output in request.outputs for note in output.notes):
        sink(Notice(note))


def _described(exports: Sequence[Export]) -> Export | None:
    """Return the export that IDs and metadata are about: the last of those of the highest precedence."""
    found = max(reversed(exports), key=lambda one: EXPORTERS[one.output.kind].precedence, default=None)
    return found if found is not None and EXPORTERS[found.output.kind].precedence else None


def _named(described: Export | None, built: Sequence[Built]) -> tuple[Built, ...]:
    """Return the images that get the names: those that the export *described* holds."""
    if described is None or not described.output.rewrite_timestamp:
        return tuple(built)
    from builder.export.image import with_latest_time  # not for builds without outputs

    held = [with_latest_time(described.store, image) for image in described.images]
    return tuple(
        replace(one, image=image.image, config=image.config) for one, image in zip(built, held, strict=True)
    )


def _name(request: BuildRequest, built: Sequence[Built], store: Store) -> None:
    for tag in request.names:
        rename(store, tag, first_of(built).image)
        for one in [one for one in built if one.platform != host()]:
            remember_platform(store, parse_reference(tag), one.platform, one.image)


# -- outputs -------------------------------------------------------------------------------


def _export(
    output: Output, request: BuildRequest, inputs: Inputs, built: Sequence[Built], environment: Environment
) -> Export:
    """Return what the writer of an output is given."""
    names = output.names or request.tags
    return Export(
        store=environment.store,
        sink=environment.sink,
        output=output,
        names=names,
        images=tuple(map(stored_image, built)),
        client=request.client,
        attest=Attestations(request, inputs, built, environment, names).of,
    )


def stored_image(one: Built) -> StoredImage:
    """Return a built image as outputs take it."""
    from builder.export.image import StoredImage  # not for builds without outputs

    base = len(one.config.diff_ids) - sum(line.step is not None for line in one.plan.lines)
    return StoredImage(one.image, one.config, base, one.plan.epoch)


def _store_index(export: Export) -> Descriptor:
    """Store an index of the images for several platforms, of which no output holds one."""
    from builder.export.image import ImageFormat, exported_image, pack_image  # few builds need it

    packed = [pack_image(export.store, image, ImageFormat(), export.sink) for image in export.images]
    return exported_image(export.store, packed, export.output).descriptor
