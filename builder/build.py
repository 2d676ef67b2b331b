"""A build on one page: read, parse, plan, solve, assemble, deliver."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import stat
from collections.abc import Callable
from dataclasses import dataclass

from builder import VERSION
from builder.assemble import assemble
from builder.errors import BuildError, PlanError, StepError
from builder.events import Notice, Sink
from builder.execute.sources import ContextSource
from builder.execute.workshop import Workshop
from builder.image.local import put_config
from builder.image.model import ImageConfig
from builder.plan.graph import Plan, Step
from builder.plan.ops import RunCommand
from builder.plan.planner import plan
from builder.replay import Look
from builder.request import BuildRequest, BuildResult
from builder.resolve import StoreResolver
from builder.session import Session
from builder.solve import Solver
from cache.digest import Digest
from cache.kernel import open_in_root
from cache.layers import diff_id
from cache.scan import StatIndex
from cache.store import Store
from grammar import ast
from grammar.errors import DockerfileError, IgnoreError, excerpt
from grammar.ignore import Ignore, parse_ignore
from grammar.lint import Checks, Finding, Linter, parse_checks

_DOCKERFILE_LIMIT = 16 << 20
_IGNORE_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files that steer a build, as read: path and bytes (None when there is none)."""

    dockerfile: tuple[str, bytes]
    ignore: tuple[str, bytes | None]
    absent: tuple[str, ...]


def read_inputs(request: BuildRequest) -> Inputs:
    """Read the Dockerfile and the ignore file that applies. Raises BuildError."""
    path = request.dockerfile or _default_dockerfile(request.context)
    # A link given with -f may lead anywhere; one in the context stays inside it (SRC-16).
    real = os.path.realpath(path) if request.dockerfile else path
    data = _read_regular(real, _DOCKERFILE_LIMIT, "the Dockerfile")
    if data is None:
        raise BuildError(
            f"there is no Dockerfile at {path}",
            "name it with -f, or give the folder that holds it as the context",
        )
    absent: list[str] = []
    for candidate in (path + ".dockerignore", os.path.join(request.context, ".dockerignore")):
        ignore = _read_regular(candidate, _IGNORE_LIMIT, "the ignore file")
        if ignore is not None:
            return Inputs((path, data), (candidate, ignore), tuple(absent))
        absent.append(candidate)
    return Inputs((path, data), ("", None), tuple(absent))


def _default_dockerfile(context: str) -> str:
    """``Dockerfile``, or ``dockerfile`` where only that is there."""
    path = os.path.join(context, "Dockerfile")
    lower = os.path.join(context, "dockerfile")
    return lower if not os.path.lexists(path) and os.path.lexists(lower) else path


def _read_regular(path: str, limit: int, what: str) -> bytes | None:
    """A regular file's bytes, links resolved inside its folder when they are the context's own."""
    try:
        folder = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = open_in_root(folder, os.fsencode(os.path.basename(path)), os.O_RDONLY | os.O_NONBLOCK)
        finally:
            os.close(folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BuildError(f"reading {what} {path}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise BuildError(f"{what} {path} is not a regular file")
    with open(fd, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise BuildError(f"{what} {path} is larger than {limit >> 20} MiB")
    return data


def build(
    request: BuildRequest,
    inputs: Inputs,
    store: Store,
    session: Session,
    sink: Sink,
    look: Look | None = None,
) -> tuple[BuildResult, Plan, Solver, ContextSource]:
    """Build an image and tag it. Raises BuildError (with an excerpt of the file) or CacheError.

    On any failure nothing is tagged; finished steps stay cached. *look* is what replay has
    seen of the context a moment ago.
    """
    findings: list[Finding] = []
    made = plan_file(request, inputs, store, sink, findings)
    if any(isinstance(step.op, RunCommand) and step.op.network == "default" for step in made.steps):
        session.add_network()
    context = _context(request, inputs, store, sink, look)
    workshop = Workshop(store, session.launcher, session.packer, context, request.secrets, sink)
    solver = Solver(made, workshop, sink, request.no_cache)
    try:
        solver.run(request.jobs)
    except StepError as error:
        raise _with_excerpt(error, inputs) from None
    finally:
        with contextlib.suppress(OSError):
            context.index.save(_write_index(store))
    config = _image(made, solver, store)
    store.sync()
    image = put_config(store, config)
    _deliver(request, store, image, config, sink)
    return BuildResult(image, made.unused_args, shown_findings(findings, inputs)), made, solver, context


def plan_file(
    request: BuildRequest,
    inputs: Inputs,
    store: Store,
    sink: Sink,
    findings: list[Finding],
    metadata_only: bool = False,
    all_stages: bool = False,
) -> Plan:
    """Parse and plan the Dockerfile; what its checks find is added to *findings*.

    With *metadata_only* no base image is pulled; see ``plan`` for *all_stages*. Raises BuildError
    with an excerpt of the file.
    """
    file = parsed(inputs, store)
    try:
        resolver = StoreResolver(store, sink, request.insecure_registries, metadata_only)
        linter = Linter(file, _checks(request, file), _ignore(inputs))
        try:
            made = plan(file, request, resolver, linter, all_stages)
        finally:
            findings += linter.sorted()
    except PlanError as error:
        raise _with_excerpt(error, inputs) from None
    if linter.checks.error and findings:
        names = ", ".join(sorted({finding.rule.name for finding in findings}))
        failure = BuildError(
            f"lint violation found for rules: {names}",
            "the check directive of the file says error=true",
            "\n".join(shown_findings(findings, inputs)),
        )
        failure.span = findings[0].span
        raise failure
    return made


def _checks(request: BuildRequest, file: ast.Dockerfile) -> Checks:
    """What is checked: as the command line says, else as the file does."""
    text = request.build_args.get("BUILDKIT_DOCKERFILE_CHECK", file.directives.check)
    try:
        return parse_checks(text)
    except ValueError as error:
        raise BuildError(f"failed to parse check options: {error}") from None


def parsed(inputs: Inputs, store: Store) -> ast.Dockerfile:
    """The file's syntax tree; that of an equal file is kept, as lark alone costs 40 ms.

    Raises BuildError with an excerpt of the file.
    """
    text = _text(inputs)
    key = "ast:" + hashlib.sha256(f"{VERSION}\0{text}".encode("utf-8", "surrogateescape")).hexdigest()
    data = store.index.memo(key)
    if data is not None:
        with contextlib.suppress(Exception):  # a damaged record: parse again
            stored: ast.Dockerfile = pickle.loads(data)
            return stored
    from grammar.parse import parse

    try:
        tree = parse(text)
    except DockerfileError as error:
        raise _with_excerpt(PlanError(error.message, error.span, error.hint), inputs) from None
    store.index.set_memo(key, pickle.dumps(tree))
    return tree


def _text(inputs: Inputs) -> str:
    return inputs.dockerfile[1].decode("utf-8", "surrogateescape")


def shown_name(inputs: Inputs) -> str:
    """What messages call the Dockerfile."""
    return os.path.relpath(inputs.dockerfile[0])


def shown_findings(findings: list[Finding], inputs: Inputs) -> tuple[str, ...]:
    """Findings as they are shown: what is wrong, and where."""
    name, text = shown_name(inputs), _text(inputs)
    return tuple(
        f"WARNING: {finding.rule.name}: {finding.message}\n{excerpt(name, text, finding.span, 0)}"
        for finding in findings
    )


def _with_excerpt(error: PlanError | StepError, inputs: Inputs) -> BuildError:
    if error.span is not None:
        error.excerpt = excerpt(shown_name(inputs), _text(inputs), error.span)
    return error


def _context(
    request: BuildRequest, inputs: Inputs, store: Store, sink: Sink, look: Look | None
) -> ContextSource:
    name = hashlib.sha256(os.path.realpath(request.context).encode("utf-8", "surrogateescape")).hexdigest()
    if look is not None and (look.context, look.ignore) != (request.context, inputs.ignore[1] or b""):
        look = None
    index = look.index if look is not None else StatIndex(store.path("contexts", name))
    scanned = look.scanned if look is not None else {}
    return ContextSource(request.context, name, index, scanned, _ignore(inputs), inputs.ignore[0], sink)


def _ignore(inputs: Inputs) -> Ignore:
    try:
        return parse_ignore(inputs.ignore[1] or b"")
    except IgnoreError as error:
        raise BuildError(f"{inputs.ignore[0]} line {error.line}: {error}") from None


def _write_index(store: Store) -> Callable[[str, bytes], None]:
    def write(path: str, data: bytes) -> None:
        temporary = store.temporary()
        with open(temporary, "xb") as file:
            file.write(data)
        os.replace(temporary, path)

    return write


def _image(made: Plan, solver: Solver, store: Store) -> ImageConfig:
    """Pack what the image holds (only that) and put its config together."""
    root = solver.results[id(made.root)] if made.root is not None else None
    diff_ids: tuple[Digest, ...] = ()
    if root is not None:
        diff_ids = tuple(diff_id(store, snapshot)[0] for snapshot in root.snapshots)

    def created(step: Step) -> int:
        return solver.results[id(step)].created

    return assemble(made, diff_ids, created)


def _deliver(request: BuildRequest, store: Store, image: Digest, config: ImageConfig, sink: Sink) -> None:
    """Outputs first, names last: a name never means an image whose export failed."""
    for output in request.outputs:
        from builder.export.archive import write_archive

        write_archive(store, image, config, request.tags, output.dest, sink, docker=output.kind == "docker")
    for tag in request.tags:
        store.tag(tag, image)
    if request.iidfile:
        try:
            with open(request.iidfile, "w", encoding="ascii") as file:
                file.write(image)
        except OSError as error:
            raise BuildError(f"writing {request.iidfile}: {error.strerror}") from None


def warn_unused(result: BuildResult, sink: Sink) -> None:
    """Say which --build-arg no ARG asked for."""
    if result.unused_args:
        names = ", ".join(result.unused_args)
        sink(Notice(f"build arguments that no ARG instruction declares: {names}", warning=True))
