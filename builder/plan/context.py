"""What converting an instruction needs besides the state of its stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from builder.errors import PlanError
from builder.plan.graph import Step
from builder.plan.ops import Op
from builder.plan.scope import Scope
from grammar.lint import Linter
from grammar.span import Span


@dataclass(frozen=True, slots=True)
class StageContext:
    """What converting needs besides the state.

    ``new_step(op, parent, sources, span)`` makes or reuses a step and names it;
    ``find_source(name, span, mount)`` gives the last step of what a ``from`` names (*mount*: of
    a RUN --mount), None where that is empty; ``new_source(op, name, span)`` makes or reuses the
    step that fetches something. ``take_context(path, span)`` gives the step that
    takes a path of the build context to "/mount" of an empty root.
    """

    scope: Scope
    escape: str
    network: str
    hostname: str
    cache_namespace: str
    epoch: int
    linter: Linter
    new_step: Callable[[Op, Step | None, tuple[Step, ...], Span], Step]
    find_source: Callable[[str, Span, bool], Step | None]
    new_source: Callable[[Op, str, Span], Step]
    take_context: Callable[[str, Span], Step]


def unsupported(what: str, span: Span) -> PlanError:
    """The error for syntax we read but cannot execute yet; nothing has run when it is raised."""
    return PlanError(f"{what} is not supported yet", span, "docs/dockerfile-support.md lists what is")
