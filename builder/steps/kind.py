"""The shape that every kind of step has.

A kind says how the key of a step is made from its operation and its inputs, and how its layer is made.
``builder.build.solve`` asks both and knows no kind by name; ``builder.steps.kinds`` is the table of kinds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from builder.plan.graph import Step
from builder.plan.identity import identity
from builder.plan.ops import Op
from builder.shared_cache.content_keys import chained
from cache.digest import Layer, SnapshotId
from cache.keys import CacheKey, derive
from grammar.structs import struct


@struct
class Solved:
    """The result of a step: its key, the layers of its root (bottom first), when they were made (ns).

    A layer that is not unpacked stands in ``stack`` by its diff ID (builder.images.lazy_layers).
    ``runs`` are the layers of the RUN steps in the root, bottom first. ``made`` is the layer that the step
    itself gave; None for a root without steps and for files from outside, which no index records.
    """

    key: CacheKey
    stack: tuple[Layer, ...]
    created: int
    runs: tuple[Layer, ...] = ()
    made: MadeLayer | None = None


@struct
class MadeLayer:
    """A layer as the index names it, and the layers of the RUN steps that it was made on."""

    layer: Layer
    below: tuple[Layer, ...]


EMPTY_ROOT = Solved(CacheKey("scratch"), (), 0)


@struct
class ReadyStep:
    """A step whose inputs are solved. ``fresh``: the cache is not asked for it."""

    step: Step
    parent: Solved
    sources: tuple[Solved, ...]
    fresh: bool


@struct
class Key:
    """What the result of a step is looked up by.

    ``description`` is what ``value`` is the hash of, kept to explain later misses, and the RUN layers below.
    ``below`` are those layers, bottom first: equal keys may have given different layers, and a layer fits
    only what it was made on. ``varies``: two runs of this step may give different layers.
    """

    value: CacheKey
    description: str
    below: tuple[Layer, ...]
    varies: bool = False


def key_of(op: Op, inputs: Sequence[str], below: Solved, varies: bool = False) -> Key:
    """Return the key of *op* on top of the root *below*; *inputs* are keys and content digests."""
    kind, fields = identity(op)
    description = json.dumps([kind, fields, list(inputs), chained(below.runs)])
    return Key(derive(kind, fields, inputs), description, below.runs, varies)


@struct(frozen=False)
class Usage:
    """What a step took: CPU time in seconds, peak memory in bytes; 0 if it started no container."""

    cpu_seconds: float = 0.0
    peak: int = 0


@struct
class Made:
    """What a step gave: a snapshot, and its key where only the content decides it (downloads)."""

    snapshot: SnapshotId
    key: CacheKey | None = None


class StepKind(Protocol):
    """One step of one kind, its inputs solved."""

    def key(self) -> Key | Solved | None:
        """Return what the result is looked up by. May read the files of inputs.

        Return the result itself where the plan names it (a base image), and None where only the content
        that ``make`` gives decides the key (a download). Raises BuildError and CacheError.
        """

    def key_ahead(self) -> Key | None:
        """Return the key if that needs no files of layers, otherwise None."""
        return None

    def make(self, shown: AbstractContextManager[Usage]) -> Made:
        """Make the layer, inside *shown*, which tells the user that the step starts and how it ends.

        Raises BuildError and CacheError.
        """

    def reuse(self) -> None:
        """Take note that the result is taken from the cache."""
        return
