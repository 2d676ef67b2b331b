"""A build on one page: read, parse, plan, solve, assemble, deliver."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING

from builder.build.assemble import assemble
from builder.build.deliver import Built, check_outputs, deliver, first_of, known_steps
from builder.build.helpers import Session
from builder.build.inputs import Inputs, read_ignore
from builder.build.resolve import StoreResolver
from builder.build.solve import Solver
from builder.copy.context_source import ContextSource
from builder.copy.filters import SeenContext
from builder.environment import Workshop
from builder.errors import BuildError, ChecksFailed, LayerLost, PlanError, StepError
from builder.events import Notice, Sink
from builder.images.local import put_config
from builder.oci.model import ImageConfig, doubt, host, parse_platform
from builder.plan.graph import Plan, Step
from builder.plan.ops import RunCommand
from builder.plan.planner import plan
from builder.request import HOST_GATEWAY, BuildRequest, BuildResult
from builder.runtime.container import hierarchies
from builder.runtime.isolation import CHROOT, NAMESPACES
from builder.runtime.rootless import entered, was_real_root
from builder.steps.run import check_shared_network
from builder.support.code_digest import edition
from cache.context_scan import StatIndex
from cache.digest import DiffId
from cache.fs import write_atomically
from cache.kernel import ONE_ID, keeps_owners
from cache.store import Store
from grammar import ast
from grammar.booleans import truth
from grammar.errors import DockerfileError, IgnoreError, excerpt, file_lines
from grammar.ignore import Ignore, parse_ignore
from grammar.lint.linter import LINE_BY_LINE, Checks, Finding, Linter, check_file, parse_checks
from grammar.redact import redacted
from grammar.span import Span
from grammar.structs import replace
from grammar.suggest import suggestion

if TYPE_CHECKING:
    from builder.shared_cache.imports import Imports


def build(
    request: BuildRequest,
    inputs: Inputs,
    workshop: Workshop,
    session: Session,
    look: SeenContext | None,
    findings: list[Finding],
) -> tuple[BuildResult, Plan, Solver]:
    """Build an image for each platform, and tag it. Raises BuildError (with an excerpt) or CacheError.

    On any failure nothing is tagged; finished steps stay cached. *look* is what replay has
    seen of the context a moment ago. What the checks find is added to *findings*, also when the build fails.
    """
    check_outputs(request)
    if truth(request.build_args.get("BUILDKIT_MULTI_PLATFORM", "")) and len(request.platforms) < 2:
        note = "BUILDKIT_MULTI_PLATFORM has no effect: an image for one platform is no index here"
        workshop.sink(Notice(note, warning=True))
    requests = [replace(request, platforms=(platform,)) for platform in request.platforms] or [request]
    plans = [plan_file(wanted, inputs, workshop, findings) for wanted in requests]
    _prepare(request, plans, workshop, session)
    workshop.contexts = _contexts(request, inputs, workshop, look)
    imports = used = _imports(request, workshop)
    built: list[Built] = []
    for wanted, made in zip(requests, plans, strict=True):
        first = 1 + sum(len(one.made.steps) for one in built)
        try:
            built.append(_solve(wanted, inputs, made, workshop, imports, first))
        except LayerLost as error:
            if imports is None:
                raise
            note = f"building without the caches, as one cannot be used: {error.message}"
            workshop.sink(Notice(note, warning=True))
            imports.forget()
            imports = None
            built.append(_solve(wanted, inputs, made, workshop, None, first))
    workshop.store.sync()
    workshop.layers.tag_complete()
    done = deliver(request, inputs, built, workshop, used)
    if used is not None:
        used.close()
    chosen = first_of(built)
    result = BuildResult(
        done.image,
        tuple(name for name in plans[0].unused_args if all(name in made.unused_args for made in plans)),
        shown_findings(findings, inputs),
        chosen.made.declared,
        tuple((str(one.platform), one.image) for one in done.built) if len(built) > 1 else (),
        done.top.to_json() if done.top is not None else None,
    )
    return result, chosen.made, chosen.solver


def _prepare(request: BuildRequest, plans: list[Plan], workshop: Workshop, session: Session) -> None:
    """See that steps have what they need, and say what they have to do without."""
    sink = workshop.sink
    platforms = {made.config.platform for made in plans}
    platforms |= {parse_platform(place, host()) for made in plans for *_, place in made.bases}
    for text in sorted(filter(None, map(doubt, platforms))):
        sink(Notice(text, True))
    runs = [step.op for made in plans for step in made.steps if isinstance(step.op, RunCommand)]
    workshop.runs = len(runs)
    if any(op.network == "default" for op in runs):
        workshop.launcher = session.add_network()
        if session.shares_network and workshop.isolation == NAMESPACES:
            check_shared_network()
            sink(Notice("steps share this machine's network (pybuild doctor says what is missing)", True))
    if runs and workshop.isolation == CHROOT:
        shared = any(op.network == "default" for op in runs)
        and_network = " and share this container's network" if shared else ""
        sink(Notice(f"steps are isolated by chroot{and_network} (pybuild doctor says why)"))
    names = [name for name, at in request.sandbox.hosts if at == HOST_GATEWAY]
    if names and any(op.network == "default" for op in runs) and not session.shares_network:
        note = f"{', '.join(names)} of --add-host: steps cannot reach this machine; --network=host lets them"
        sink(Notice(note, True))
    if runs and was_real_root():
        sink(Notice("root of a step is this machine's own root (pybuild doctor says what to change)", True))
    if not keeps_owners():
        sink(Notice(ONE_ID, True))
    if runs and entered() and not hierarchies.find().can:
        sink(Notice("what steps use cannot be limited here (pybuild doctor says what to change)"))


def _solve(
    request: BuildRequest, inputs: Inputs, made: Plan, workshop: Workshop, imports: Imports | None, first: int
) -> Built:
    """Solve every step and put the image's config together; its layers are in the store then.

    *first* is the number that the first step is shown with.
    """
    solver = Solver(made, workshop, workshop.sink, request.no_cache, imports, first)
    try:
        solver.run(request.jobs)
    except StepError as error:
        raise _with_excerpt(error, inputs) from None
    finally:
        with contextlib.suppress(OSError):
            for context in workshop.contexts.values():
                context.index.save(_write_index(workshop.store))
    inline = any(place.kind == "inline" for place in request.cache_to)
    config = _image(made, solver, workshop, inline)
    return Built(put_config(workshop.store, config), config, made, solver)


def _imports(request: BuildRequest, workshop: Workshop) -> Imports | None:
    """What the caches of --cache-from say, cache mounts included."""
    if not request.cache_from:
        return None
    from builder.shared_cache.imports import Imports

    imports = Imports(workshop.store, workshop.layers)
    imports.load(request.cache_from, request.client)
    workshop.fill_cache = imports.fill
    return imports


def plan_file(
    request: BuildRequest,
    inputs: Inputs,
    workshop: Workshop,
    findings: list[Finding],
    metadata_only: bool = False,
    all_stages: bool = False,
) -> Plan:
    """Parse and plan the Dockerfile; what its checks find is added to *findings*.

    With *metadata_only* no base image is pulled; see ``plan`` for *all_stages*. Raises BuildError
    with an excerpt of the file.
    """
    try:
        file = parsed(inputs, workshop.store, request.no_cache)
    except BuildError as error:
        findings += _findings_before(error.span, request, inputs)
        raise
    try:
        resolver = StoreResolver(
            workshop,
            request.client,
            inputs.files,
            metadata_only,
            request.pull,
            lazy=bool(request.cache_from) and request.pull != "newer",
        )
        linter = Linter(file, _checks(request, file), _ignore(inputs.ignore))
        try:
            made = plan(file, request, resolver, linter, all_stages)
        finally:
            findings += linter.findings
    except PlanError as error:
        raise _with_excerpt(error, inputs) from None
    if linter.checks.error and findings:
        names = ", ".join(sorted({finding.rule.name for finding in findings}))
        failure = ChecksFailed(
            f"lint violation found for rules: {names}",
            "the check directive of the file says error=true",
            "\n".join(shown_findings(findings, inputs)),
        )
        failure.span = findings[0].span
        raise failure
    return made


def _findings_before(span: Span | None, request: BuildRequest, inputs: Inputs) -> list[Finding]:
    """What is found line by line before the one that cannot be read, at *span*."""
    from grammar.parse import parse

    with contextlib.suppress(DockerfileError, BuildError):  # of the lines before, too
        if span is not None:
            file = parse("\n".join(inputs.text.split("\n")[: span.first - 1]))
            linter = Linter(file, _checks(request, file))
            check_file(file, linter)
            return [finding for finding in linter.findings if finding.rule.name in LINE_BY_LINE]
    return []


def _checks(request: BuildRequest, file: ast.Dockerfile) -> Checks:
    """What is checked: as the command line says, else as the file does."""
    text = request.build_args.get("BUILDKIT_DOCKERFILE_CHECK", file.directives.check)
    try:
        return parse_checks(text)
    except ValueError as error:
        raise BuildError(f"failed to parse check options: {error}") from None


def parsed(inputs: Inputs, store: Store, anew: bool = False) -> ast.Dockerfile:
    """The file's syntax tree; that of an equal file is kept, as lark alone costs 40 ms, unless it is to be
    read *anew*.

    Raises BuildError with an excerpt of the file.
    """
    text = inputs.text
    data = store.memos.syntax_tree(edition(), text) if not anew else None
    if data is not None:
        with contextlib.suppress(Exception):  # a damaged record: parse again
            stored: ast.Dockerfile = pickle.loads(data)
            return stored
    from grammar.parse import parse

    try:
        tree = parse(text)
    except DockerfileError as error:
        raise _with_excerpt(PlanError(error.message, error.span, error.hint), inputs) from None
    if redacted(text) == text:  # the index holds no passwords
        store.memos.set_syntax_tree(edition(), text, pickle.dumps(tree))
    return tree


def shown_findings(findings: list[Finding], inputs: Inputs) -> tuple[str, ...]:
    """Findings as they are shown: what is wrong, and where."""
    name, lines = inputs.shown, file_lines(inputs.text)
    shown = (
        f"WARNING: {finding.rule.name}: {redacted(finding.message)}\n{excerpt(name, lines, finding.span, 0)}"
        for finding in findings
    )
    return tuple(dict.fromkeys(shown))


def _with_excerpt(error: PlanError | StepError, inputs: Inputs) -> BuildError:
    if error.span is not None:
        error.excerpt = excerpt(inputs.shown, inputs.text, error.span)
    return error


def _contexts(
    request: BuildRequest, inputs: Inputs, workshop: Workshop, look: SeenContext | None
) -> dict[str, ContextSource]:
    """The folders that steps may take files from, by the names of their contexts."""
    out = {}
    if request.context:
        if look is not None and (look.context, look.ignore) != (request.context, inputs.ignore[1] or b""):
            look = None
        out[""] = _context(request.context, inputs.ignore, workshop, look)
    for name, context in request.contexts.items():
        if context.kind == "local":
            path = os.path.join(context.value, ".dockerignore")
            out[name] = _context(context.value, (path, read_ignore(path)), workshop, None)
    return out


def _context(
    folder: str, ignore: tuple[str, bytes | None], workshop: Workshop, look: SeenContext | None
) -> ContextSource:
    name = hashlib.sha256(os.path.realpath(folder).encode("utf-8", "surrogateescape")).hexdigest()
    index = look.index if look is not None else StatIndex(workshop.store.path("contexts", name))
    scanned = look.scanned if look is not None else {}
    return ContextSource(folder, name, index, scanned, _ignore(ignore), ignore[0], workshop.sink)


def _ignore(file: tuple[str, bytes | None]) -> Ignore:
    try:
        return parse_ignore(file[1] or b"")
    except IgnoreError as error:
        raise BuildError(f"{file[0]} line {error.line}: {error}") from None


def _write_index(store: Store) -> Callable[[str, bytes], None]:
    def write(path: str, data: bytes) -> None:
        write_atomically(path, data, store.temporary(), durable=False)

    return write


def _image(made: Plan, solver: Solver, workshop: Workshop, with_cache: bool) -> ImageConfig:
    """Pack what the image holds (only that) and put its config together."""
    root = solver.results[id(made.root)] if made.root is not None else None
    diff_ids: tuple[DiffId, ...] = ()
    if root is not None:
        workshop.layers.fetched(root.stack)
        diff_ids = tuple(map(workshop.layers.diff_id, root.stack))

    def created(step: Step) -> int:
        return solver.results[id(step)].created

    config = assemble(made, diff_ids, created)
    if with_cache:
        from builder.shared_cache.exports import records_of
        from builder.shared_cache.records import INLINE, encode

        records = records_of(workshop.store, known_steps(made, solver, workshop.store), False)
        config = replace(config, extra={**config.extra, INLINE: encode(records)})
    return config


def warn_unused(result: BuildResult, sink: Sink) -> None:
    """Say which --build-arg no ARG asked for, and which one may have been meant."""
    if result.unused_args:
        names = ", ".join(name + suggestion(name, result.declared_args, 0.75) for name in result.unused_args)
        sink(Notice(f"build arguments that no ARG instruction declares: {names}", warning=True))
