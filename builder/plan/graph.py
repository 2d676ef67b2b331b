"""The DAG of steps, and the order in which to solve them."""

from __future__ import annotations

from builder.oci.model import History, ImageConfig
from builder.plan.ops import Op
from grammar.span import Span
from grammar.structs import struct


@struct(eq=False)
class Step:
    """A step: the step below it (None: an empty root) and the steps that it takes files from.

    Steps are compared by object identity: a comparison by value would walk the graph below.
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
    """A line of history without the time of its layer, and the line before it."""

    created_by: str
    step: Step | None = None
    before: HistoryLine | None = None

    def all(self) -> tuple[HistoryLine, ...]:
        """Return the lines up to this one, in order."""
        lines, line = [self], self
        while line.before is not None:
            line = line.before
            lines.append(line)
        return tuple(reversed(lines))


@struct
class Argument:
    """A build argument: its value in this build, and its description in the file."""

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
    """The build arguments, secrets and SSH agents that a target uses."""

    arguments: tuple[Argument, ...]
    secrets: tuple[Need, ...]
    agents: tuple[Need, ...]


@struct
class Plan:
    """The steps of a build: ``root`` is the target's final step (None: an empty image).

    ``base_history`` is the history of the base image; ``lines`` are added by this build. ``bases`` are the
    base images: name, image ID, platform. ``declared`` are the names of all ARGs. ``epoch`` is the time of
    everything new, in seconds; None for the real times. ``fresh`` are the steps (by ``id``) that run
    without a cache lookup.
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
    """Return *root* and all steps that it depends on, inputs before their users. Does not recurse."""
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
