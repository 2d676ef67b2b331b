"""What the conversion of an instruction uses in addition to the state of its stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from builder.errors import PlanError
from builder.plan.graph import Step
from builder.plan.ops import CONTEXT, NOWHERE, Op
from builder.plan.scope import Scope
from builder.request import Sandbox
from grammar.lint.linter import Linter
from grammar.span import Span
from grammar.structs import struct


@struct
class Local:
    """A directory of this machine as a source of files: a build context. ``name`` is "" for the main one."""

    name: str = ""


Origin = Step | Local | None  # where files come from; None: nowhere, an empty root


def number(origin: Origin, sources: tuple[Step, ...]) -> tuple[int, str, tuple[Step, ...]]:
    """Return how an operation refers to *origin*: number, name of the context, and the numbered sources."""
    match origin:
        case None:
            return NOWHERE, "", sources
        case Local():
            return CONTEXT, origin.name, sources
        case Step():
            return len(sources), "", (*sources, origin)
        case _:
            assert_never(origin)


@struct
class StageContext:
    """What the conversion uses in addition to the state.

    ``new_step(op, parent, sources, span)`` makes or reuses a step and names it.
    ``find_source(name, span, mount)`` returns the source that a ``from`` names, the build context for "";
    *mount* says that it is the ``from`` of a RUN --mount. ``new_source(op, name, span)`` makes or reuses a
    step that fetches. ``take(origin, path, span)`` returns the step that copies a path of a directory to
    "/mount" of an empty root.
    """

    scope: Scope
    escape: str
    network: str
    hostname: str
    cache_namespace: str
    allow: frozenset[str]
    sandbox: Sandbox
    epoch: int
    linter: Linter
    new_step: Callable[[Op, Step | None, tuple[Step, ...], Span], Step]
    find_source: Callable[[str, Span, bool], Origin]
    new_source: Callable[[Op, str, Span], Step]
    take: Callable[[Local, str, Span], Step]


def unsupported(what: str, span: Span) -> PlanError:
    """Return the error for syntax that is parsed but cannot be executed. No step has run at that time."""
    return PlanError(f"{what} is not supported yet", span, "see docs/dockerfile-support.md")
