"""What converting an instruction needs besides the state of its stage."""

from __future__ import annotations

from collections.abc import Callable

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
    """How an op names *origin*: by number and context, with the sources that it then numbers."""
    match origin:
        case None:
            return NOWHERE, "", sources
        case Local():
            return CONTEXT, origin.name, sources
        case Step():
            return len(sources), "", (*sources, origin)


@struct
class StageContext:
    """What converting needs besides the state.

    ``new_step(op, parent, sources, span)`` makes or reuses a step and names it;
    ``find_source(name, span, mount)`` gives what a ``from`` names (*mount*: of a RUN --mount),
    the build context for ""; ``new_source(op, name, span)`` makes or reuses the
    step that fetches something. ``take(origin, path, span)`` gives the step that
    takes a path of a directory to "/mount" of an empty root.
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
    """The error for syntax we read but cannot execute yet; nothing has run when it is raised."""
    return PlanError(f"{what} is not supported yet", span, "docs/dockerfile-support.md lists what is")
