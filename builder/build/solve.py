"""Solve a plan: give every step a result, from the cache or by making it.

The solver takes a ready step, asks its kind for the key, and looks the key up in the store and in shared
caches. On a miss the kind makes the layer, and the solver records it. Only ``builder.steps.kinds`` knows
the kinds. A step is made under a lock of its key: equal steps of several builds are made
once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from builder.build.lookup import Lookup, Result
from builder.build.schedule import Schedule
from builder.errors import BuildError, Cancelled, LayerLost, StepError
from builder.events import Sink, StepCached, StepFailed, StepFinished, StepOutput, StepStarted
from builder.plan.graph import Plan, Step
from builder.shared_cache.content_keys import ContentKey
from builder.steps.kind import EMPTY_ROOT, Key, ReadyStep, Solved, StepKind, Usage
from builder.steps.kinds import Kinds
from builder.support import debug
from cache.errors import CacheError
from cache.index import StepResult
from cache.layer.snapshots import withdraw
from grammar.structs import struct

if TYPE_CHECKING:
    from builder.shared_cache.imports import Imports


@struct
class Solution:
    """The results of a plan, by the ``id`` of steps; the content digests that are used in keys."""

    results: Mapping[int, Solved]
    contents: Mapping[ContentKey, str]

    def of(self, step: Step) -> Solved:
        return self.results[id(step)]


class Solver:
    """One solve of one plan."""

    def __init__(self, plan: Plan, kinds: Kinds, imports: Imports | None, first: int = 1) -> None:
        """*first* is the number that the first step is shown with."""
        self._plan, self._kinds = plan, kinds
        self._no_cache = kinds.environment.no_cache
        self._sink: Sink = kinds.environment.sink
        self._store = kinds.environment.store
        self._numbers = {id(step): number for number, step in enumerate(plan.steps, first)}
        self._results: dict[int, Solved] = {}
        self._lookup = Lookup(plan, kinds.layers, imports, self._key_ahead, self._results)

    def solve(self, jobs: int) -> Solution:
        """Solve every step, up to *jobs* at once.

        Raises the first error, after every running step has ended: StepError, LayerLost, Cancelled.
        """
        Schedule(self._plan.steps, self._solve, jobs, self._failed).run()
        return Solution(self._results, self._kinds.contents.used)

    def _failed(self, error: BaseException) -> None:
        if not isinstance(error, LayerLost):  # the build then goes on, and keeps the steps that are running
            self._kinds.containers.cancel()

    def _solve(self, step: Step) -> None:
        parent = self._results[id(step.parent)] if step.parent is not None else EMPTY_ROOT
        ready = self._ready(step, parent, [self._results[id(source)] for source in step.sources])
        with _blamed_on(step):
            self._results[id(step)] = self._result(ready, self._kind(ready))

    def _ready(self, step: Step, parent: Solved, sources: Sequence[Solved]) -> ReadyStep:
        return ReadyStep(step, parent, tuple(sources), self._no_cache or id(step) in self._plan.fresh)

    def _kind(self, ready: ReadyStep) -> StepKind:
        number = self._numbers[id(ready.step)]
        return self._kinds.of(ready, lambda data: self._sink(StepOutput(number, data)))

    def _key_ahead(self, step: Step, parent: Solved, sources: Sequence[Solved]) -> Key | None:
        """Return the key of a step for assumed input results, if that needs no files of layers."""
        ready = self._ready(step, parent, sources)
        return None if ready.fresh else self._kind(ready).key_ahead()

    def _result(self, ready: ReadyStep, kind: StepKind) -> Solved:
        """Return the result of a step: as the plan names it, made without a lookup, or looked up by its key.

        ``StepKind.key`` decides which: it returns a result, None (the content decides the key), or a key.
        """
        match kind.key():
            case Solved() as result:
                self._say_cached(ready.step)
                return result
            case None:
                made = kind.make(self._shown(ready.step))
                assert made.key is not None
                return Solved(made.key, (made.snapshot,), 0)
            case Key() as key:
                if debug.enabled():
                    fresh = ", not looked up" if ready.fresh else ""
                    debug.debug(
                        f"step {self._numbers[id(ready.step)]} {ready.step.name}: key {key.value}{fresh}"
                    )
                with self._store.making(key.value):
                    found = None if ready.fresh else self._lookup.find(ready, key)
                    if found is not None:
                        self._say_cached(ready.step)
                        kind.reuse()
                    else:
                        found = self._make(ready.step, kind, key)
                return self._lookup.result(ready.parent, key, found)

    def _make(self, step: Step, kind: StepKind, key: Key) -> Result:
        """Make the layer of a step and record it."""
        made = kind.make(self._shown(step))
        created = time.time_ns()
        if debug.enabled():
            debug.debug(f"made {made.snapshot} for key {key.value}")
        try:
            self._store.index.record(key.value, StepResult(made.snapshot, created, key.description))
        except CacheError:
            withdraw(self._store, made.snapshot)
            raise
        return Result(made.snapshot, created)

    def _say_cached(self, step: Step) -> None:
        self._sink(StepCached(self._numbers[id(step)], step.name))

    @contextlib.contextmanager
    def _shown(self, step: Step) -> Iterator[Usage]:
        """Tell the sink that a step started, and how it ended."""
        number = self._numbers[id(step)]
        self._sink(StepStarted(number, step.name))
        started = time.monotonic()
        usage = Usage()
        try:
            yield usage
        except BaseException:
            self._sink(StepFailed(number, step.name, time.monotonic() - started))
            raise
        took = time.monotonic() - started
        self._sink(StepFinished(number, step.name, took, usage.cpu_seconds, usage.peak))


@contextlib.contextmanager
def _blamed_on(step: Step) -> Iterator[None]:
    """Convert an error in the block into a StepError of *step*, which names the line of the Dockerfile."""
    try:
        yield
    except (StepError, Cancelled, LayerLost):
        raise
    except (BuildError, CacheError) as error:
        raise StepError(error.message, step.name, step.span, error.hint, code=error.code) from error
