"""The stages of a file before their conversion: their bases, and the stages that they copy from."""

from __future__ import annotations

import re

from builder.errors import PlanError
from builder.oci.model import Platform, parse_platform
from builder.plan.convert_copy import check_from
from builder.plan.scope import Scope
from builder.plan.state import StageState
from builder.request import BuildRequest
from grammar import ast
from grammar.errors import ExpansionError, ReferenceError_
from grammar.expansion import expand_word
from grammar.lint import rules
from grammar.lint.linter import Linter
from grammar.reference import Reference, parse_reference
from grammar.span import Span
from grammar.structs import field, struct
from grammar.suggest import suggestion


@struct
class GlobalArg:
    """An ARG before the first FROM: its value, and the names of the ARGs in it."""

    node: ast.Arg
    value: str
    needs: frozenset[str]


class _Recording(dict[str, str]):
    """An environment that records the names that are read from it."""

    def __init__(self, env: dict[str, str]) -> None:
        super().__init__(env)
        self.found: set[str] = set()

    def get(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]
        if name in self:
            self.found.add(name)
        return super().get(name, default)


@struct(frozen=False)
class Stage:
    """A stage: its base stage, the stages that it copies from, and its state after the conversion.

    ``used`` are the arguments in the words of its FROM.
    """

    index: int
    node: ast.Stage
    base: str
    platform: Platform
    base_index: int | None
    sources: dict[int, Span] = field(factory=dict)
    state: StageState | None = None
    used: frozenset[str] = frozenset()

    @property
    def shown(self) -> str:
        """The name for error messages."""
        return self.node.start.name or f"stage-{self.index}"


def check_image_name(name: str, span: Span) -> Reference:
    """Return the image reference that *name* is. Raises PlanError for an invalid one."""
    try:
        return parse_reference(name)
    except ReferenceError_ as error:
        raise PlanError(
            f"{name!r} is neither a stage of this file nor an image name: {error}", span
        ) from None


class Stages:
    """All stages of *file*. The global ARGs are added to *scope*.

    Raises PlanError for an invalid FROM, an ARG that cannot be expanded, and a circle of stages that copy
    from one another.
    """

    def __init__(
        self, file: ast.Dockerfile, request: BuildRequest, scope: Scope, linter: Linter, platform: Platform
    ) -> None:
        self._file = file
        self._request = request
        self._scope = scope
        self._linter = linter
        self._platform = platform
        self._escape = file.directives.escape
        # Predefined platform arguments may be overridden on the command line.
        self._global_env = {
            name: request.build_args.get(name, value) for name, value in scope.globals.items()
        }
        self.global_args: dict[str, GlobalArg] = {}
        self._check_defaults()
        self._read_global_args()
        self.all: list[Stage] = []
        self._by_name: dict[str, int] = {}  # the last of equal names counts (T67)
        for index, node in enumerate(file.stages):
            self.all.append(self._resolve_base(index, node))
            if node.start.name:
                self._by_name[node.start.name] = index
        for stage in self.all:  # also for stages that the target does not need: their --from must be valid
            stage.sources = self._sources_of(stage)
        self._check_circles()

    def _read_global_args(self) -> None:
        """Evaluate the ARGs before the first FROM. Each may use those before it and the predefined ones."""
        for node in self._file.global_args:
            for pair in node.pairs:
                value = None
                needs: set[str] = set()
                if pair.value is not None and pair.key not in self._request.build_args:
                    value = self._expand_global(pair.value, pair.span, None, needs)
                value = self._scope.value_of(pair.key, value)
                if value is not None:
                    self._scope.globals[pair.key] = self._global_env[pair.key] = value
                if pair.key in needs and pair.key in self.global_args:  # its earlier value
                    needs |= self.global_args[pair.key].needs
                self.global_args[pair.key] = GlobalArg(node, value or "", frozenset(needs - {pair.key}))

    def _expand_global(
        self, text: str, span: Span, missing: set[str] | None = None, found: set[str] | None = None
    ) -> str:
        """Expand *text* with global ARGs. Unset names are added to *missing*, the others to *found*."""
        env = _Recording(self._global_env)
        if found is not None:
            env.found = found
        try:
            return expand_word(text, env, self._escape, missing)
        except ExpansionError as error:
            raise PlanError(f"failed to process {text!r}: {error}", span) from None

    def _expand_from(
        self, text: str, start: ast.From, span: Span, used: set[str], missing: set[str] | None = None
    ) -> str:
        """Expand a word of FROM with global and predefined ARGs.

        Set names are added to *used*, unset ones to *missing*.
        """
        missing = set() if missing is None else missing
        try:
            return self._expand_global(text, span, missing, used)
        finally:
            if missing:
                declared = {pair.key for node in self._file.global_args for pair in node.pairs}
                known = declared | set(self._scope.globals)
                for name in sorted(missing - known):
                    self._linter.warn(
                        rules.UNDEFINED_ARG_IN_FROM, start.span, name, self._linter.guess(name, known)
                    )

    def _check_defaults(self) -> None:
        """Warn of a base image name that is empty or invalid without build arguments."""
        env = dict(self._scope.globals)
        try:
            for pair in (pair for node in self._file.global_args for pair in node.pairs):
                if pair.value is not None:
                    env[pair.key] = expand_word(pair.value, env, self._escape)
            for stage in self._file.stages:
                base = expand_word(stage.start.base, env, self._escape)
                if not self._is_reference(base):
                    self._linter.warn(rules.INVALID_DEFAULT_ARG_IN_FROM, stage.start.span, stage.start.base)
        except ExpansionError:
            pass  # the build reports it with more detail

    @staticmethod
    def _is_reference(text: str) -> bool:
        try:
            parse_reference(text)
        except ReferenceError_:
            return False
        return True

    def _resolve_base(self, index: int, node: ast.Stage) -> Stage:
        start = node.start
        used: set[str] = set()
        base = self._expand_from(start.base, start, start.base_span or start.span, used)
        if not base:
            raise PlanError(
                f"base name ({start.base}) should not be blank",
                start.base_span or start.span,
                "give the ARG a default, or pass --build-arg",
            )
        if base != "scratch" and base not in self._by_name:
            check_image_name(base, start.base_span or start.span)
        # As written: a stage is named in lower case, so FROM Base never finds stage "base" (T63).
        platform = self._platform_of(start, used)
        return Stage(index, node, base, platform, self._by_name.get(base), used=frozenset(used))

    def target(self) -> int:
        wanted = self._request.target
        if not wanted:
            return len(self.all) - 1
        names = self._by_name
        if wanted.lower() in names:
            return names[wanted.lower()]
        raise PlanError(
            f'target stage "{wanted}" could not be found{suggestion(wanted.lower(), names)}',
            hint=f"the stages are: {', '.join(names)}" if names else "no stage of this file has a name",
            code="E-STAGE",
        )

    def reachable(self, target: int, new: bool = False) -> list[int]:
        """Return the stages that the target needs, in file order (a stage needs only earlier ones).

        With *new*, return only those without a state: all needs of a stage with a state have one too.
        """
        found: set[int] = set()
        stack = [target]
        while stack:
            index = stack.pop()
            stage = self.all[index]
            if index in found or (new and stage.state is not None):
                continue
            found.add(index)
            if stage.base_index is not None:
                stack.append(stage.base_index)
            stack += [
                source for source in stage.sources if source < index
            ]  # the conversion reports the others
        return sorted(found)

    def _sources_of(self, stage: Stage) -> dict[int, Span]:
        """Return the stages that its ``COPY --from`` and ``RUN --mount=from=`` name, with their spans."""
        found: dict[int, Span] = {}
        for node in stage.node.instructions:
            names: list[tuple[str, Span, bool]] = []
            if isinstance(node, ast.Copy) and node.from_:
                check_from(node)
                names.append((node.from_, node.span, False))
            elif isinstance(node, ast.Run):
                for flag in node.mounts:
                    text = flag.value or ""
                    names += [
                        (name, flag.span, True) for name in re.findall(r"(?i)(?:^|,)from=([^,$]+)", text)
                    ]
            for name, span, mount in names:
                index = self.named(name, span, mount)
                if index is not None:
                    found.setdefault(index, span)
                elif name != "scratch":
                    check_image_name(name, span)
        return found

    def _check_circles(self) -> None:
        """Raise PlanError if stages copy from one another in a circle."""
        done: set[int] = set()
        for start in range(len(self.all)):
            path: dict[int, None] = {}
            stack = [(start, iter(self.all[start].sources.items()))]
            if start in done:
                continue
            path[start] = None
            while stack:
                index, left = stack[-1]
                for source, span in left:
                    if source in path:
                        name = self.all[start].shown
                        raise PlanError(f"circular dependency detected on stage: {name}", span)
                    if source not in done:
                        path[source] = None
                        stack.append((source, iter(self.all[source].sources.items())))
                        break
                else:
                    stack.pop()
                    del path[index]
                    done.add(index)

    def named(self, name: str, span: Span, mount: bool) -> int | None:
        """Return the index of the stage that ``from`` names; None if it is an image.

        The ``from`` of a *mount* can use names only, not numbers (T65).
        """
        if re.fullmatch("[+-]?[0-9]+", name) and not mount:
            index = int(name) if len(name) < 20 else -1
            if not 0 <= index < len(self.all):
                raise PlanError(f"invalid stage index {name}", span)
            return index
        return self._by_name.get(name.lower())

    def _platform_of(self, start: ast.From, used: set[str]) -> Platform:
        """Return the platform of a FROM, by default that of the build. Its arguments are added to *used*."""
        if not start.platform:
            return self._platform
        missing: set[str] = set()
        try:
            wanted = self._expand_from(start.platform, start, start.span, used, missing)
            guess = "".join(suggestion(name, self._scope.globals, 0.75) for name in sorted(missing)[:1])
            if not wanted:
                raise ValueError(f"empty platform value from expression {start.platform}{guess}")
            platform = parse_platform(wanted, self._platform)
        except ValueError as error:
            what = f"failed to parse platform {start.platform}: " if wanted else ""
            raise PlanError(f"{what}{error}{guess if wanted else ''}", start.span) from None
        if start.platform in ("$TARGETPLATFORM", "${TARGETPLATFORM}"):
            self._linter.warn(rules.REDUNDANT_TARGET_PLATFORM, start.span, start.platform)
        elif wanted == start.platform and not (
            platform.os in start.name or platform.architecture in start.name
        ):
            self._linter.warn(rules.FROM_PLATFORM_FLAG_CONST_DISALLOWED, start.span, wanted)
        return platform
