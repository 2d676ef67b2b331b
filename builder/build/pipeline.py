"""A build on one page: plan, solve, assemble, deliver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from builder.build.assemble import assemble
from builder.build.built import Built, first_of
from builder.build.cache_export import known_steps
from builder.build.contexts import open_contexts, save_stat_indexes
from builder.build.deliver import deliver
from builder.build.helpers import Session
from builder.build.inputs import Inputs
from builder.build.notices import check_machine
from builder.build.output_checks import check_outputs
from builder.build.planning import plan_file, shown_findings, with_excerpt
from builder.build.solve import Solution, Solver
from builder.copy.context_source import ContextSource
from builder.copy.filters import SeenContext
from builder.environment import Environment
from builder.errors import LayerLost, StepError
from builder.events import Notice, Sink, SolveStarted
from builder.images.lazy_layers import Layers
from builder.images.local import put_config
from builder.oci.model import ImageConfig
from builder.plan.graph import Plan, Step
from builder.plan.ops import RunCommand
from builder.request import BuildRequest, BuildResult
from builder.run.cache_mounts import CacheMounts
from builder.run.containers import Containers
from builder.steps.contents import StageContents
from builder.steps.kinds import Kinds
from builder.support import debug
from grammar.booleans import truth
from grammar.lint.linter import Finding
from grammar.structs import replace, struct
from grammar.suggest import suggestion

if TYPE_CHECKING:
    from builder.shared_cache.imports import Imports


@struct
class Finished:
    """A build that succeeded: its first image, and the directories that it copied from."""

    result: BuildResult
    built: Built
    contexts: Mapping[str, ContextSource]


def build(
    request: BuildRequest,
    inputs: Inputs,
    environment: Environment,
    session: Session,
    seen: SeenContext | None,
    findings: list[Finding],
) -> Finished:
    """Build an image for each platform, and tag it. Raises BuildError (with an excerpt) or CacheError.

    If anything fails, nothing is tagged, and finished steps stay cached. *seen* is what replay has scanned of
    the context a moment ago. Findings of the lint rules are added to *findings*, also when the build fails.
    """
    check_outputs(request)
    if truth(request.build_args.get("BUILDKIT_MULTI_PLATFORM", "")) and len(request.platforms) < 2:
        note = "BUILDKIT_MULTI_PLATFORM has no effect: an image for one platform is no index here"
        environment.sink(Notice(note, warning=True))
    layers = Layers(environment.store, environment.sink)
    requests = [replace(request, platforms=(platform,)) for platform in request.platforms] or [request]
    plans = [plan_file(wanted, inputs, environment, layers, findings) for wanted in requests]
    debug.debug(f"planned {sum(len(plan.steps) for plan in plans)} steps")
    check_machine(request, plans, environment)
    runs = [step.op for plan in plans for step in plan.steps if isinstance(step.op, RunCommand)]
    networked = any(op.network == "default" for op in runs)
    launcher = session.add_network() if networked else session.launcher
    containers = Containers(launcher, environment, len(runs))
    contexts = open_contexts(request, inputs, environment, seen)
    imports = _imports(request, layers)
    caches = CacheMounts(environment, imports.fill if imports is not None else None)
    work = _Work(request, inputs, environment, layers, contexts, containers, caches)
    built = _solve_all(work, plans, imports)
    debug.debug("every step has a layer")
    environment.store.sync()
    layers.tag_complete()
    delivered = deliver(request, inputs, built, environment, layers, imports)
    debug.debug("delivered the outputs")
    if imports is not None:
        imports.close()
    chosen = first_of(built)
    result = BuildResult(
        delivered.image,
        tuple(name for name in plans[0].unused_args if all(name in plan.unused_args for plan in plans)),
        shown_findings(findings, inputs),
        chosen.plan.declared,
        tuple((str(one.platform), one.image) for one in delivered.built) if len(built) > 1 else (),
        delivered.top.to_json() if delivered.top is not None else None,
    )
    return Finished(result, chosen, contexts)


def _imports(request: BuildRequest, layers: Layers) -> Imports | None:
    """Read the records of the shared caches of --cache-from."""
    if not request.cache_from:
        return None
    from builder.shared_cache.imports import Imports  # few builds have shared caches

    imports = Imports(layers.store, layers)
    imports.load(request.cache_from, request.client)
    return imports


@struct
class _Work:
    """What the solves of all platforms have in common."""

    request: BuildRequest
    inputs: Inputs
    environment: Environment
    layers: Layers
    contexts: Mapping[str, ContextSource]
    containers: Containers
    caches: CacheMounts


def _solve_all(work: _Work, plans: Sequence[Plan], imports: Imports | None) -> list[Built]:
    """Solve the plan of each platform in turn. After a shared cache has failed, go on without them."""
    built: list[Built] = []
    for plan in plans:
        first = 1 + sum(len(one.plan.steps) for one in built)
        try:
            built.append(_solve(work, plan, imports, first))
        except LayerLost as error:
            if imports is None:
                raise
            note = f"building without the caches, as one cannot be used: {error.message}"
            work.environment.sink(Notice(note, warning=True))
            imports.forget()
            imports = None
            built.append(_solve(work, plan, None, first))
    return built


def _solve(work: _Work, plan: Plan, imports: Imports | None, first: int) -> Built:
    """Solve every step and put the image's config together; its layers are in the store then.

    *first* is the number that the first step is shown with.
    """
    store = work.environment.store
    contents = StageContents(store.memos, imports, work.environment.no_cache)
    kinds = Kinds(work.environment, work.layers, work.contexts, contents, work.containers, work.caches)
    solver = Solver(plan, kinds, imports, first)
    work.environment.sink(SolveStarted(len(plan.steps)))
    _empty_caches(work, plan)
    try:
        solution = solver.solve(work.request.jobs)
    except StepError as error:
        raise with_excerpt(error, work.inputs) from None
    finally:
        save_stat_indexes(work.contexts, store)
    config = _image(work, plan, solution)
    return Built(put_config(store, config), config, plan, solution)


def _empty_caches(work: _Work, plan: Plan) -> None:
    """Empty the cache mounts of the RUN steps that are not to come from the build cache."""
    for step in plan.steps:
        if isinstance(step.op, RunCommand) and (work.environment.no_cache or id(step) in plan.fresh):
            work.caches.empty(step.op.mounts, None)


def _image(work: _Work, plan: Plan, solution: Solution) -> ImageConfig:
    """Pack what the image holds (only that) and put its config together."""
    layers, store = work.layers, work.environment.store
    stack = solution.of(plan.root).stack if plan.root is not None else ()
    layers.fetched(stack)
    diff_ids = tuple(map(layers.diff_id, stack))

    def created(step: Step) -> int:
        return solution.of(step).created

    config = assemble(plan, diff_ids, created)
    if any(place.kind == "inline" for place in work.request.cache_to):
        from builder.shared_cache.exports import records_of  # few builds have shared caches
        from builder.shared_cache.records import INLINE, encode

        records = records_of(store, known_steps(plan, solution, store), False)
        config = replace(config, extra={**config.extra, INLINE: encode(records)})
    return config


def warn_unused(result: BuildResult, sink: Sink) -> None:
    """Warn of each --build-arg that no ARG declares, and suggest the name that was meant."""
    if result.unused_args:
        names = ", ".join(name + suggestion(name, result.declared_args, 0.75) for name in result.unused_args)
        sink(Notice(f"build arguments that no ARG instruction declares: {names}", warning=True))
