"""Plan the build of a Dockerfile: the stages that the target needs, and their steps in order."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from builder.errors import BuildError, Cancelled, PlanError
from builder.oci.model import DEFAULT_PATH, ImageConfig, Platform, host, parse_platform, scratch
from builder.plan.context import Local, Origin, StageContext
from builder.plan.convert import convert
from builder.plan.graph import HistoryLine, Plan, Step, needed
from builder.plan.ops import CONTEXT, CopyFiles, Files, FromImage, Mount, Op, Picked, RunCommand
from builder.plan.outline import outline
from builder.plan.remote import redacted
from builder.plan.scope import Scope, parse_epoch, platform_args
from builder.plan.stages import Stage, Stages, check_image_name
from builder.plan.state import StageState, clean
from builder.request import BuildRequest, NamedContext
from cache.digest import Digest
from cache.errors import CacheError
from grammar import ast
from grammar.errors import DockerfileError, ReferenceError_
from grammar.lint import rules
from grammar.lint.linter import Linter
from grammar.lint.syntax import RESERVED, check_file, check_stage
from grammar.parse import parse_instruction
from grammar.reference import Reference, parse_reference
from grammar.span import Span
from grammar.structs import replace, struct
from grammar.suggest import suggestion

_T = TypeVar("_T")
_LAYER_STEPS = (ast.Run, ast.Copy, ast.Add, ast.Workdir)


class Resolver(Protocol):
    """Resolves base images and fetches contexts."""

    def resolve(self, reference: Reference, platform: Platform) -> tuple[Digest, ImageConfig]:
        """Return the image ID and config of *reference*. Raises BuildError or CacheError."""
        ...

    def layout(self, place: str, platform: Platform) -> tuple[Digest, ImageConfig]:
        """Return the same of an image in an OCI layout: ``path[:tag|@digest]``."""
        ...

    def files(self, url: str) -> Files:
        """Return the files that a URL gives. Raises BuildError or CacheError."""
        ...

    @property
    def context(self) -> Files | None:
        """The main build context if it is not a directory, else None."""
        ...


def plan(
    file: ast.Dockerfile,
    request: BuildRequest,
    resolver: Resolver,
    linter: Linter,
    all_stages: bool = False,
) -> Plan:
    """Plan the build of *file* for *request*; report findings to *linter*.

    With *all_stages* convert also the stages that the target does not need, to check them. Raises
    PlanError, and the errors of *resolver*.
    """
    check_file(file, linter)
    return _Planner(file, request, resolver, linter).plan(all_stages)


class _Planner:
    def __init__(
        self, file: ast.Dockerfile, request: BuildRequest, resolver: Resolver, linter: Linter
    ) -> None:
        self._file = file
        self._request = request
        self._resolver = resolver
        self._linter = linter
        self._platform = parse_platform(request.platforms[0], host()) if request.platforms else host()
        self._escape = file.directives.escape
        target = request.target or file.stages[-1].start.name
        predefined = platform_args(self._platform, host(), target)
        self._scope = Scope(dict(request.build_args), predefined)
        self._steps: dict[tuple[Op, int, tuple[int, ...]], Step] = {}
        self._bases: list[tuple[str, str, str]] = []
        self._fresh: set[int] = set()
        self._mounts: dict[int, list[tuple[Mount, Span]]] = {}  # of the RUNs of each stage
        self._named_targets: list[str] = []  # contexts of kind "target" that are being resolved
        self._stages = Stages(file, request, self._scope, linter, self._platform)

    def plan(self, all_stages: bool) -> Plan:
        self._epoch = self._request.epoch
        text = self._scope.globals.get("SOURCE_DATE_EPOCH", "")
        if text in ("", "context"):  # a directory has no commit time
            self._scope.globals.pop("SOURCE_DATE_EPOCH", None)
        elif self._epoch is None:
            self._epoch = parse_epoch(text)
        target = self._stages.target()
        try:
            for index in range(len(self._stages.all)) if all_stages else ():
                self._state_of(index)
            state = self._state_of(target)
        except RecursionError:
            raise PlanError("triggers of base images lead to one another too often") from None
        config = state.config
        if self._request.platforms:  # the config has the requested platform, not the base image's (T93)
            config = replace(config, platform=self._platform)
        if self._request.labels:
            labels = {**(config.settings.get("Labels") or {}), **self._request.labels}
            config = config.with_settings(Labels=labels)
        declared = self._declared()
        return Plan(
            state.root,
            needed(state.root),
            replace(config, history=()),
            config.history,
            state.history.all() if state.history is not None else (),
            tuple(self._bases),
            tuple(name for name in self._scope.unused() if name not in declared),
            declared,
            outline(self._file, self._stages, self._scope, target, self._mounts),
            self._epoch,
            frozenset(self._fresh),
        )

    def _declared(self) -> tuple[str, ...]:
        """Return the names of all ARGs of the file, also of stages that are not needed."""
        bodies = (self._file.global_args, *(stage.instructions for stage in self._file.stages))
        nodes = (node for body in bodies for node in body if isinstance(node, ast.Arg))
        return tuple(dict.fromkeys(pair.key for node in nodes for pair in node.pairs))

    # -- converting ------------------------------------------------------------------------

    def _state_of(self, index: int) -> StageState:
        """Return the final state of a stage, after converting it and the stages that it needs, in file order.

        This calls itself only for triggers: they add needs while a stage is converted.
        """
        for needed_index in self._stages.reachable(index, new=True):
            if self._stages.all[needed_index].state is None:  # a trigger may have converted it
                self._convert_stage(self._stages.all[needed_index])
        state = self._stages.all[index].state
        assert state is not None  # a stage reaches itself
        return state

    def _convert_stage(self, stage: Stage) -> None:
        start = stage.node.start
        check_stage(stage.node, self._linter)
        own_base = stage.base_index is None and stage.base != "scratch"
        counter = _Counter(self._label(stage), own_base + _layer_steps(stage.node.instructions))
        if (named := self._named(start.name)) is not None:  # it replaces the whole stage
            state = self._named_state(named, stage)
            stage.state = replace(state, config=state.config.with_settings(OnBuild=None))
            return
        if stage.base_index is not None:
            below = self._stages.all[stage.base_index].state
            assert below is not None  # earlier in file order, and reachable
            # ENV of the config overrides ARGs of the same names (T44, T49).
            state = replace(below, env={**below.env, **below.config.env}, cmd_set=False)
        elif stage.base == "scratch":
            config = scratch(self._platform)
            state = StageState(config, env=config.env)
        elif (named := self._named(stage.base)) is not None:
            state = self._named_state(named, stage)
        else:
            state = self._from_image(stage, counter)
        triggers = [(text, _trigger(text, start.span)) for text in state.config.settings.get("OnBuild") or ()]
        counter.total += _layer_steps([node for _, node in triggers])
        state = replace(state, config=state.config.with_settings(OnBuild=None))
        for text, node in triggers:  # before the stage's own, and once (T71)
            here = replace(node, span=start.span)
            state = convert(here, state, self._stage_context(stage, counter, f"ONBUILD {text}"))
        context = self._stage_context(stage, counter)
        for node in stage.node.instructions:
            state = convert(node, state, context)
        stage.state = state.settled()

    def _stage_context(self, stage: Stage, counter: _Counter, text: str = "") -> StageContext:
        """Return the context of a stage's instructions. *text* is shown for a trigger."""
        fresh = stage.node.start.name in self._request.no_cache_stages
        fresh |= str(stage.index) in self._request.no_cache_stages

        def new_step(op: Op, parent: Step | None, sources: tuple[Step, ...], span: Span) -> Step:
            shown = " ".join(text.split()) or self._file.sources.get(span.first, "")
            step = self._intern(op, parent, sources, span, counter.name(redacted(shown)))
            if fresh:
                self._fresh.add(id(step))
            if isinstance(op, RunCommand):
                self._mounts.setdefault(stage.index, []).extend((mount, span) for mount in op.mounts)
            return step

        return StageContext(
            self._scope,
            self._escape,
            self._request.network,
            self._request.build_args.get("BUILDKIT_SANDBOX_HOSTNAME", "buildkitsandbox"),
            self._request.build_args.get("BUILDKIT_CACHE_MOUNT_NS", ""),
            self._request.allow,
            self._request.sandbox,
            self._epoch or 0,
            self._linter,
            new_step,
            lambda name, span, mount: self._source(name, stage, span, mount),
            lambda op, name, span: self._intern(op, None, (), span, f"[internal] {name}"),
            self._take,
        )

    def _take(self, origin: Local, path: str, span: Span, dest: str = "/mount") -> Step:
        """Return the step that copies a path of a directory to *dest*, for a bind mount."""
        op = CopyFiles((Picked(path or "/", CONTEXT, literal=True, context=origin.name),), dest)
        return self._intern(op, None, (), span, f"[internal] context {origin.name} {path or '/'}")

    def _files(self, files: Files, span: Span, name: str) -> Step:
        return self._intern(files, None, (), span, f"[internal] context {name}")

    def _label(self, stage: Stage) -> str:
        foreign = f"{self._platform} " if self._platform != host() else ""
        if stage.node.start.name:
            return foreign + stage.node.start.name
        return foreign + (f"stage-{stage.index}" if len(self._stages.all) > 1 else "")

    def _from_image(self, stage: Stage, counter: _Counter) -> StageState:
        start = stage.node.start
        op, config = self._image(stage.base, start.base_span or start.span, stage.platform)
        got = config.platform
        if (got.os, got.architecture) != (stage.platform.os, stage.platform.architecture):
            self._linter.warn(
                rules.INVALID_BASE_IMAGE_PLATFORM, start.span, stage.base, str(stage.platform), str(got)
            )
        text = self._file.sources.get(start.span.first, "")
        step = self._intern(op, None, (), start.span, counter.name(text)) if op.diff_ids else None
        config = _as_base(config)
        return StageState(config, step, config.env)

    def _resolved(self, ask: Callable[[], _T], span: Span) -> _T:
        """Return the result of *ask*, a call of the resolver. Raises PlanError at *span*."""
        try:
            return ask()
        except Cancelled:
            raise
        except (BuildError, CacheError) as error:
            raise PlanError(error.message, span, error.hint, code=error.code) from error

    def _image(self, name: str, span: Span, platform: Platform) -> tuple[FromImage, ImageConfig]:
        reference = check_image_name(name, span)
        try:
            image, config = self._resolver.resolve(reference, platform)
        except Cancelled:
            raise
        except (BuildError, CacheError) as error:
            hint = error.hint
            stages = [stage.node.start.name for stage in self._stages.all if stage.node.start.name]
            if guess := suggestion(name.lower(), stages, 0.75):
                hint = f"{name!r} is not a stage of this file{guess}, so it names an image"
            raise PlanError(f"{name}: {error.message}", span, hint, code=error.code) from error
        self._bases.append((str(reference), image, str(platform)))
        return FromImage(name, image, config.diff_ids), config

    def _source(self, name: str, user: Stage, span: Span, mount: bool) -> Origin:
        if not name:
            files = self._resolver.context
            return Local() if files is None else self._files(files, span, "")
        index = self._stages.named(name, span, mount)
        if index is None:
            if name == "scratch":
                return None
            if (named := self._named(name)) is not None:
                return self._origin_of(named, span)[0]
            op, _config = self._image(name, span, self._platform)
            return self._intern(op, None, (), span, f"FROM {name}")
        if index >= user.index:
            raise PlanError(
                f'cannot {"mount" if mount else "copy"} from stage "{name}", '
                f'it needs to be defined before current stage "{user.shown}"',
                span,
            )
        if (named := self._named(self._stages.all[index].node.start.name)) is not None:
            return self._origin_of(named, span)[0]
        return self._state_of(index).root

    # -- named contexts --------------------------------------------------------------------

    def _named(self, name: str) -> tuple[str, NamedContext] | None:
        """Return the ``--build-context`` that replaces the image or stage *name*, and its name (T69)."""
        if not self._request.contexts or name.lower() in ("", *RESERVED):
            return None
        try:
            normal = parse_reference(name).familiar.removesuffix(":latest")
        except ReferenceError_:
            return None
        found = self._request.contexts.get(normal)
        return (normal, found) if found is not None else None

    def _origin_of(
        self, named: tuple[str, NamedContext], span: Span, platform: Platform | None = None
    ) -> tuple[Origin, ImageConfig | None]:
        """Return a named context as a source of files, and its config if it is an image for *platform*."""
        name, context = named
        match context.kind:
            case "image" if context.value == "scratch":
                return None, None
            case "local":
                return Local(name), None
            case "url":
                files = self._resolved(lambda: self._resolver.files(context.value), span)
                return self._files(files, span, name), None
            case "target":
                index = self._stages.named(context.value, span, True)
                if index is None:
                    raise PlanError(f"the context {name}: there is no stage {context.value!r}", span)
                if name in self._named_targets:
                    raise PlanError(f"circular dependency detected on context: {name}", span)
                self._named_targets.append(name)
                state = self._state_of(index)
                self._named_targets.pop()
                return state.root, state.config
            case "layout":
                wanted = platform or self._platform
                image, config = self._resolved(lambda: self._resolver.layout(context.value, wanted), span)
                op = FromImage(name, image, config.diff_ids)
            case _:
                op, config = self._image(context.value, span, platform or self._platform)
        step = self._intern(op, None, (), span, f"FROM {redacted(context.value)}") if op.diff_ids else None
        return step, config

    def _named_state(self, named: tuple[str, NamedContext], stage: Stage) -> StageState:
        """Return the state of a *stage* that a named context replaces, or is the base of."""
        span = stage.node.start.span
        origin, config = self._origin_of(named, span, stage.platform)
        root = self._take(origin, "/", span, "/") if isinstance(origin, Local) else origin
        line = HistoryLine(f"FROM {named[0]}", root) if config is None and root is not None else None
        config = _as_base(config or scratch(self._platform))
        return StageState(config, root, config.env, history=line)

    # -- steps -----------------------------------------------------------------------------

    def _intern(self, op: Op, parent: Step | None, sources: tuple[Step, ...], span: Span, name: str) -> Step:
        """Return the step that does *op* on these inputs, always the same one (T101)."""
        key = (op, id(parent), tuple(map(id, sources)))
        if key not in self._steps:
            self._steps[key] = Step(name, op, parent, sources, span)
        return self._steps[key]


def _as_base(config: ImageConfig) -> ImageConfig:
    """Return the config that a stage starts with: the image's, without its creation time (T74)."""
    if here := config.settings.get("WorkingDir"):
        config = config.with_settings(WorkingDir=clean(posixpath.join("/", here)))
    if "PATH" not in config.env:  # before anything is expanded (T61, T109)
        config = config.with_env({**config.env, "PATH": DEFAULT_PATH})
    return replace(config, created="")


def _trigger(text: str, span: Span) -> ast.Instruction:
    """Parse a trigger of a base image. An error in it has the span of this FROM."""
    try:
        node = parse_instruction(text, span)
        if isinstance(node, ast.From | ast.Onbuild | ast.Maintainer):
            raise DockerfileError(f"{type(node).__name__.upper()} isn't allowed as an ONBUILD trigger", span)
        return node
    except DockerfileError as error:
        raise PlanError(f"the trigger {text!r}: {error.message}", span, error.hint, code=error.code) from None


def _layer_steps(instructions: Iterable[ast.Instruction]) -> int:
    return sum(isinstance(node, _LAYER_STEPS) for node in instructions)


@struct(frozen=False)
class _Counter:
    """Number the steps of a stage for display: ``[build 2/5] RUN make`` (T75)."""

    label: str
    total: int
    number: int = 0

    def name(self, text: str) -> str:
        self.number += 1
        label = f"{self.label.strip()} " if self.label.strip() else ""
        return f"[{label}{self.number:>{len(str(self.total))}}/{self.total}] {text}"
