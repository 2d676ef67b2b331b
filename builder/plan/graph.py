"""The DAG: steps that know their inputs, and the order to think about them in."""

from __future__ import annotations

from builder.oci.model import History, ImageConfig
from builder.plan.ops import Op
from grammar.span import Span
from grammar.structs import struct


@struct(eq=False)
class Step:
    """One step: what it builds on (None on an empty root) and what it takes files from.

    Identity is object identity: comparing by value would walk the whole graph below.
    """

    name: str
    op: Op
    parent: Step | None
    sources: tuple[Step, ...]
    span: Span

    @property
    def inputs(self) -> tuple[Step, ...]:
        return (self.parent, *self.sources) if self.parent is not None else self.sources


@struct(eq=False)
class HistoryLine:
    """A line of history before it is known when its layer was made, and the one before it."""

    created_by: str
    step: Step | None = None
    before: HistoryLine | None = None

    def all(self) -> tuple[HistoryLine, ...]:
        """The lines up to this one, in order."""
        lines, line = [self], self
        while line.before is not None:
            line = line.before
            lines.append(line)
        return tuple(reversed(lines))


@struct
class Argument:
    """A build argument with the value it has in this build, and what the file says of it."""

    name: str
    value: str
    description: str
    span: Span


@struct
class Need:
    """A secret or an ssh agent that a file asks for."""

    name: str
    required: bool
    span: Span


@struct
class Outline:
    """What a target can be given."""

    arguments: tuple[Argument, ...]
    secrets: tuple[Need, ...]
    agents: tuple[Need, ...]


@struct
class Plan:
    """All that is to be done: ``root`` is the target's last step (None: an empty image).

    ``base_history`` came with the base image; ``lines`` are this build's own. ``bases`` are the
    base images: name, image ID, platform. ``declared`` are the names of all ARGs;
    ``epoch`` is when everything new was made, in seconds, if that is given. ``fresh`` are
    the steps (by ``id``) that the cache is not asked for.
    """

    root: Step | None
    steps: tuple[Step, ...]
    config: ImageConfig
    base_history: tuple[History, ...]
    lines: tuple[HistoryLine, ...]
    bases: tuple[tuple[str, str, str], ...]
    unused_args: tuple[str, ...]
    declared: tuple[str, ...]
    outline: Outline
    epoch: int | None
    fresh: frozenset[int] = frozenset()


def needed(root: Step | None) -> tuple[Step, ...]:
    """Every step that *root* depends on and itself, inputs before their users; no recursion."""
    if root is None:
        return ()
    done: dict[int, Step] = {}
    stack = [root]
    while stack:
        step = stack[-1]
        waiting = [i for i in step.inputs if id(i) not in done]
        if waiting:
            stack += waiting[::-1]
            continue
        stack.pop()
        done.setdefault(id(step), step)
    return tuple(done.values())
