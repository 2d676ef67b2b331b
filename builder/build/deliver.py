"""What becomes of a build: outputs, names, shared caches; in that order, so that no name means half of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from builder.build.inputs import Inputs
from builder.build.solve import Solver
from builder.environment import Workshop
from builder.errors import BuildError, UsageError
from builder.events import Notice
from builder.images.local import put_config, remember_platform, rename
from builder.oci.model import ImageConfig, Platform, host
from builder.plan.graph import Plan
from builder.plan.ops import CacheMount, CopyFiles, RunCommand
from builder.request import BuildRequest, Output
from builder.run.mounts import cache_name
from cache.descriptor import Descriptor
from cache.digest import Digest
from cache.errors import CacheError
from cache.layer.blobs import clamped
from cache.layer.compression import ZSTD
from cache.store import Store
from grammar.reference import parse_reference
from grammar.structs import replace, struct

if TYPE_CHECKING:
    from builder.attest.statement import Artifact, Bundle
    from builder.export.image import Formed, Picture
    from builder.shared_cache.exports import Known
    from builder.shared_cache.imports import Imports

_ATTESTED = ("oci", "registry")  # outputs that have room for statements about the image


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
    workshop: Workshop,
    imports: Imports | None = None,
) -> Delivered:
    """Write outputs, then give the image its names, then leave caches.

    The names mean the image that was exported. Raises BuildError or CacheError.
    """
    store = workshop.store
    inline = any(place.kind == "inline" for place in request.cache_to)
    if inline and any(output.rewrite_timestamp for output in request.outputs):
        note = "the cache in the image says nothing of its layers, whose times are rewritten"
        workshop.sink(Notice(note, warning=True))
    attests = bool(request.sbom or request.provenance)
    if attests and not any(output.kind in _ATTESTED for output in request.outputs):
        note = "attestations go to registries and OCI archives only (-o type=oci, --push): there is none"
        workshop.sink(Notice(note, warning=True))
    for note in dict.fromkeys(note for output in request.outputs for note in output.notes):
        workshop.sink(Notice(note))
    told = _told(request.outputs)
    tops = [_export(output, request, inputs, built, workshop) for output in request.outputs]
    top = tops[request.outputs.index(told)] if told is not None else None
    named = _named(told, built, store)
    if top is None and len(named) > 1 and (request.iidfile or request.metadata_file or request.quiet):
        plain = Output("oci", "")
        top = picture_of(plain, [(_formed(plain, one, workshop), one.platform) for one in named], store).top
    _name(request, named, store)
    _export_caches(request, built, workshop, imports)
    image = first_of(named).image if len(named) == 1 else top.digest if top is not None else ""
    if request.iidfile:
        try:
            with open(request.iidfile, "w", encoding="ascii") as file:
                file.write(image)
        except OSError as error:
            raise BuildError(f"writing {request.iidfile}: {error.strerror}") from None
    return Delivered(named, top, image)


def _told(outputs: Sequence[Output]) -> Output | None:
    """The output that IDs and metadata are about: the last to a registry, else an archive, else the store."""
    for kinds in (("registry",), ("oci", "docker"), ("image",)):
        for output in reversed(outputs):
            if output.kind in kinds:
                return output
    return None


def _named(told: Output | None, built: Sequence[Built], store: Store) -> tuple[Built, ...]:
    """The images as they get the names: those that the output *told* of holds."""
    if told is None or not told.rewrite_timestamp:
        return tuple(built)
    out = []
    for one in built:
        image, config = one.image, one.config
        if one.made.epoch is not None:
            image, config, _marks = _rewritten(one.made, store, config, one.made.epoch)
        out.append(replace(one, image=image, config=config))
    return tuple(out)


def _name(request: BuildRequest, built: Sequence[Built], store: Store) -> None:
    for tag in request.names:
        rename(store, tag, first_of(built).image)
        for one in [one for one in built if one.platform != host()]:
            remember_platform(store, parse_reference(tag), one.platform, one.image)


# -- outputs -------------------------------------------------------------------------------


def _export(
    output: Output, request: BuildRequest, inputs: Inputs, built: Sequence[Built], workshop: Workshop
) -> Descriptor | None:
    """Write one output; the descriptor of what it names, None where that is files, or is in the store."""
    if output.kind == "image":
        return None
    if output.kind in ("tar", "local"):
        _export_files(output, built, workshop)
        return None
    from builder.export.archive import write_archive

    store, sink = workshop.store, workshop.sink
    names = output.names or request.tags
    if output.docker_types and output.compression == ZSTD:
        note = "nothing is known to read zstd layers of docker's media types (oci-mediatypes=false)"
        sink(Notice(note, warning=True))
    parts = [(_formed(output, one, workshop), one.platform) for one in built]
    said = _attached(parts, names, request, inputs, built, workshop) if output.kind in _ATTESTED else ()
    if output.kind == "registry":
        from builder.export.push import push

        if not names:
            raise BuildError("there is no name to push the image under", "give one with -t, or with name=")
        shown = picture_of(output, parts, store)
        for name in names:
            reference = parse_reference(name)
            options = request.client
            if output.insecure:
                options = options.trusting(reference.registry)
            if output.by_digest:
                reference = replace(reference, tag="", digest=shown.top.digest)
            push(store, shown, reference, sink, options, said)
            sink(Notice(f"pushed {replace(reference, digest='')}@{shown.top.digest}"))
        return shown.top
    shown = picture_of(output, parts, store, said)
    docker = output.kind == "docker"
    if docker and len(built) > 1:
        raise BuildError("an archive for docker load holds one platform", "use type=oci, or one --platform")
    if output.folder:
        from builder.export.archive import blobs_of, entries_of
        from builder.export.layout import write_layout

        write_layout(store, blobs_of(shown), entries_of(shown, names), output.dest, sink)
        return shown.top
    dest = output.dest or store.temporary()
    try:
        write_archive(store, [(shown, names)], dest, sink, docker)
        if not output.dest:
            from builder.export.daemon import load

            sink(Notice(load(dest)))
    finally:
        if not output.dest:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(dest)
    return shown.top


def picture_of(
    output: Output,
    parts: Sequence[tuple[Formed, Platform]],
    store: Store,
    said: Sequence[Artifact] = (),
) -> Picture:
    """What the output names: the image, or an index of images and of what is said of them."""
    from builder.export.image import picture

    attached: list[Bundle] = []
    if said:
        from builder.attest.statement import bundles

        attached = bundles(said)
        for item in attached:
            item.keep(store)
    types, index = output.docker_types, output.marks("index")
    return picture(store, parts, types, index, output.marks("index-descriptor"), attached)


def _attached(
    parts: Sequence[tuple[Formed, Platform]],
    names: tuple[str, ...],
    request: BuildRequest,
    inputs: Inputs,
    built: Sequence[Built],
    workshop: Workshop,
) -> tuple[Artifact, ...]:
    """The statements that were asked for, of the image for each platform."""
    if not request.sbom and not request.provenance:
        return ()
    from builder.attest.statement import Subject
    from builder.attest.statements import packages_of, provenance_of, sbom_of

    store, out = workshop.store, []
    for one, (formed, platform) in zip(built, parts, strict=True):
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
    several = len(built) > 1
    split = output.split if output.split is not None and output.kind == "local" else several
    roots = [(str(one.platform).replace("/", "_"), one.config) for one in built]
    if output.kind == "tar":
        write_root(workshop.store, roots, output.dest, workshop.sink, epoch, split)
    else:
        write_folder(workshop.store, roots, output.dest, workshop.sink, epoch, split, output.delete)


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
        output.marks("manifest", str(one.platform)),
        output.marks("manifest-descriptor", str(one.platform)),
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
            has_index = len(platforms) > 1 or (attested and output.kind == "oci")
            if item.place.startswith("index") and not has_index:
                raise UsageError(
                    f"{where}: an image for a single platform has no index", "annotate the manifest instead"
                )
            if output.docker_types and item.place != "manifest":
                raise UsageError(f"{where}: docker's media types have no such annotations")


def _export_caches(
    request: BuildRequest, built: Sequence[Built], workshop: Workshop, imports: Imports | None
) -> None:
    """Write what --cache-to asks for; inline ones are in the image already."""
    wanted = [place for place in request.cache_to if place.kind != "inline"]
    if not wanted:
        return
    from builder.shared_cache.exports import export

    known = known_of(built, workshop.store)
    for place in wanted:
        try:
            export(workshop.store, workshop.layers, known, place, imports, request.client, workshop.sink)
        except (BuildError, CacheError) as error:
            if not place.ignore_error:
                raise
            workshop.sink(Notice(f"the cache {place.place} was not written: {error.message}", True))


def known_of(built: Sequence[Built], store: Store) -> Known:
    """What is known of the steps of all platforms, for shared caches."""
    from builder.shared_cache.exports import Known

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
    from builder.shared_cache.exports import Known, StepResult

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
