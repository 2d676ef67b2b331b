"""What becomes of a build: outputs, names, shared caches; in that order, so that no name means half of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from builder.errors import BuildError
from builder.events import Notice
from builder.execute.mounts import cache_name
from builder.execute.workshop import Workshop
from builder.image.local import put_config, remember_platform
from builder.image.model import ImageConfig, Platform, host
from builder.inputs import Inputs
from builder.plan.graph import Plan
from builder.plan.ops import CacheMount, CopyFiles, RunCommand
from builder.request import BuildRequest, Output
from builder.solve import Solver
from cache.compression import ZSTD
from cache.descriptor import Descriptor
from cache.digest import Digest
from cache.errors import CacheError
from cache.layers import clamped
from cache.store import Store
from grammar.reference import parse_reference
from grammar.structs import replace, struct

if TYPE_CHECKING:
    from builder.attest.statement import Artifact
    from builder.caching.exports import Known
    from builder.caching.imports import Imports
    from builder.export.image import Formed, Picture

_ATTESTED = ("oci", "registry")  # outputs that have room for statements beside the image


@struct
class Built:
    """The image for one platform, and how it came about."""

    image: Digest
    config: ImageConfig
    made: Plan
    solver: Solver

    @property
    def platform(self) -> Platform:
        return self.config.platform


def first_of(built: Sequence[Built]) -> Built:
    """The image for this machine, else the first."""
    return next((one for one in built if one.platform == host()), built[0])


def deliver(
    request: BuildRequest,
    inputs: Inputs,
    built: Sequence[Built],
    workshop: Workshop,
    imports: Imports | None = None,
) -> Descriptor | None:
    """Write outputs, then give the image its names, then leave caches.

    Returns what a registry, or else an archive, calls the image. Raises BuildError or CacheError.
    """
    store, chosen = workshop.store, first_of(built)
    inline = any(place.kind == "inline" for place in request.cache_to)
    if inline and any(output.rewrite_timestamp for output in request.outputs):
        note = "the cache in the image says nothing of its layers, whose times are rewritten"
        workshop.sink(Notice(note, warning=True))
    attests = bool(request.sbom or request.provenance)
    if attests and not any(output.kind in _ATTESTED for output in request.outputs):
        note = "attestations go to registries and OCI archives only (-o type=oci, --push): there is none"
        workshop.sink(Notice(note, warning=True))
    tops = {
        output.kind == "registry": _export(output, request, inputs, built, workshop)
        for output in request.outputs
    }
    for tag in request.tags:
        for one in [one for one in built if one.platform != host()]:
            remember_platform(store, parse_reference(tag), one.platform, one.image)
        store.tag(tag, chosen.image)
    if request.iidfile:
        try:
            with open(request.iidfile, "w", encoding="ascii") as file:
                file.write(chosen.image)
        except OSError as error:
            raise BuildError(f"writing {request.iidfile}: {error.strerror}") from None
    _export_caches(request, built, workshop, imports)
    return tops.get(True) or tops.get(False)


# -- outputs -------------------------------------------------------------------------------


def _export(
    output: Output, request: BuildRequest, inputs: Inputs, built: Sequence[Built], workshop: Workshop
) -> Descriptor | None:
    """Write one output; the descriptor of what it names, None where it is files alone."""
    if output.kind in ("tar", "local"):
        _export_files(output, built, workshop)
        return None
    from builder.export.archive import write_archive
    from builder.export.image import picture

    store, sink = workshop.store, workshop.sink
    names = output.names or request.tags
    if output.docker_types and output.compression == ZSTD:
        note = "nothing is known to read zstd layers of docker's media types (oci-mediatypes=false)"
        sink(Notice(note, warning=True))
    parts = [(_formed(output, one, workshop), one.platform) for one in built]
    shown = picture(store, parts, output.docker_types)
    if output.kind in _ATTESTED:
        shown = replace(shown, attached=_attached(shown, names, request, inputs, built, workshop))
    if output.kind == "registry":
        from builder.push import push

        if not names:
            raise BuildError("there is no name to push the image under", "give one with -t, or with name=")
        for name in names:
            push(store, shown, parse_reference(name), sink, request.insecure_registries)
            sink(Notice(f"pushed {name}@{shown.top.digest}"))
        return shown.top
    docker = output.kind == "docker"
    if docker and len(built) > 1:
        raise BuildError("an archive for docker load holds one platform", "use type=oci, or one --platform")
    if output.folder:
        from builder.export.archive import blobs_of, entries_of
        from builder.export.layout import write_layout

        entries = entries_of(shown, names, dict(output.index_annotations))
        write_layout(store, blobs_of(shown), entries, output.dest, sink)
        return shown.top
    dest = output.dest or store.temporary()
    try:
        write_archive(store, [(shown, names)], dest, sink, docker, dict(output.index_annotations))
        if not output.dest:
            from builder.loader import load

            sink(Notice(load(dest)))
    finally:
        if not output.dest:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(dest)
    return shown.top


def _attached(
    shown: Picture,
    names: tuple[str, ...],
    request: BuildRequest,
    inputs: Inputs,
    built: Sequence[Built],
    workshop: Workshop,
) -> tuple[Artifact, ...]:
    """The statements that were asked for, of the image for each platform."""
    if not request.sbom and not request.provenance:
        return ()
    from builder.attest.make import packages_of, provenance_of, sbom_of
    from builder.attest.statement import Subject

    store, out = workshop.store, []
    for one, (formed, platform) in zip(built, shown.parts, strict=True):
        subject = Subject(names, formed.top, platform, one.config.created)
        if request.sbom:
            found = packages_of(store, one.config)
            for gap in found.gaps:
                workshop.sink(Notice(f"the list of packages has a gap: {gap}", warning=True))
            out.append(sbom_of(store, subject, found, request.sbom))
        if request.provenance:
            out.append(
                provenance_of(
                    store,
                    subject,
                    request,
                    inputs.dockerfile,
                    inputs.files,
                    one.made,
                    one.solver.results,
                    request.provenance,
                    request.builder_id,
                )
            )
    return tuple(out)


def _export_files(output: Output, built: Sequence[Built], workshop: Workshop) -> None:
    """The files alone; of several platforms each in a folder of its own, as docker names them."""
    from builder.export.root import write_folder, write_root

    epoch = built[0].made.epoch if output.rewrite_timestamp else None
    roots = {str(one.platform).replace("/", "_") if len(built) > 1 else "": one.config for one in built}
    if output.kind == "tar":
        write_root(workshop.store, roots, output.dest, workshop.sink, epoch)
        return
    for name, config in roots.items():
        dest = os.path.join(output.dest, name) if name else output.dest
        write_folder(workshop.store, config, dest, workshop.sink, epoch)


def _formed(output: Output, one: Built, workshop: Workshop) -> Formed:
    """The blobs of one image as the output wants them."""
    from builder.export.image import Form, form

    epoch = one.made.epoch if output.rewrite_timestamp else None
    image, config, marks = one.image, one.config, dict[Digest, dict[str, str]]()
    if epoch is not None:
        image, config, marks = _rewritten(one.made, workshop.store, config, epoch)
    wanted = Form(
        output.compression,
        output.level,
        output.force,
        output.docker_types,
        dict(output.annotations),
        dict(output.index_annotations),
    )
    base = len(config.diff_ids) - sum(line.step is not None for line in one.made.lines)
    return form(workshop.store, image, config, wanted, workshop.sink, base, marks)


def _rewritten(
    made: Plan, store: Store, config: ImageConfig, epoch: int
) -> tuple[Digest, ImageConfig, dict[Digest, dict[str, str]]]:
    """The image with no time of this build's layers after *epoch*; what marks such layers (T90)."""
    new = sum(line.step is not None for line in made.lines)
    kept = len(config.diff_ids) - new
    layers = [clamped(store, layer, epoch) for layer in config.diff_ids[kept:]]
    config = replace(config, diff_ids=(*config.diff_ids[:kept], *layers))
    return (
        put_config(store, config),
        config,
        {layer: {"buildkit/rewritten-timestamp": str(epoch)} for layer in layers},
    )


# -- shared caches -------------------------------------------------------------------------


def check_places(request: BuildRequest) -> None:
    """Raise BuildError where a cache would take the place of an image that is pushed."""
    for place in request.cache_to:
        for output in request.outputs:
            names = (output.names or request.tags) if output.kind == "registry" else ()
            if place.kind == "registry" and place.place in names:
                raise BuildError(
                    f"the cache {place.place} would take the place of the image of that name",
                    "give the cache a tag of its own, such as NAME:cache",
                )


def _export_caches(
    request: BuildRequest, built: Sequence[Built], workshop: Workshop, imports: Imports | None
) -> None:
    """Write what --cache-to asks for; inline ones are in the image already."""
    wanted = [place for place in request.cache_to if place.kind != "inline"]
    if not wanted:
        return
    from builder.caching.exports import export

    known = known_of(built, workshop.store)
    for place in wanted:
        try:
            insecure = request.insecure_registries
            export(workshop.store, workshop.layers, known, place, imports, insecure, workshop.sink)
        except (BuildError, CacheError) as error:
            if not place.ignore_error:
                raise
            workshop.sink(Notice(f"the cache {place.place} was not written: {error.message}", True))


def known_of(built: Sequence[Built], store: Store) -> Known:
    """What is known of the steps of all platforms, for shared caches."""
    from builder.caching.exports import Known

    every = [known_steps(one.made, one.solver, store) for one in built]
    steps = {step.key: step for known in every for step in known.steps}
    mounts: dict[str, list[tuple[str, str]]] = {}
    for known in every:
        for name, places in known.mounts.items():
            mounts[name] = list(dict.fromkeys([*mounts.get(name, []), *places]))
    last = frozenset[str]().union(*(known.last for known in every))
    return Known(
        tuple(steps.values()), last, tuple(item for known in every for item in known.contents), mounts
    )


def known_steps(made: Plan, solver: Solver, store: Store) -> Known:
    """What is known of the steps of one platform."""
    from builder.caching.exports import Known, StepResult

    steps, mounts = [], dict[str, list[tuple[str, str]]]()
    for step in made.steps:
        result = solver.results[id(step)]
        if not result.layer:
            continue  # it came from outside
        linked = isinstance(step.op, CopyFiles) and step.op.link
        run = solver.results[id(step.parent)].run if step.parent is not None and not linked else ()
        steps.append(StepResult(result.key, run, result.created, result.layer))
        for mount in step.op.mounts if isinstance(step.op, RunCommand) else ():
            if isinstance(mount, CacheMount) and mount.origin < 0:
                name = cache_name(mount, ())
                folder = store.path("caches", name)
                item = (name, folder if os.path.isdir(folder) else "")
                if item not in mounts.setdefault(mount.id, []):
                    mounts[mount.id].append(item)
    last = frozenset(solver.results[id(line.step)].key for line in made.lines if line.step is not None)
    return Known(tuple(steps), last, tuple(solver.contents.items()), mounts)
