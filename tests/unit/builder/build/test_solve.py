"""The solver by its own face, with kinds of steps that are made up: it names none of the real ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import pytest

from builder.build.solve import Solver
from builder.environment import Environment
from builder.errors import BuildError, StepError
from builder.events import Event, StepCached, StepFailed, StepFinished, StepStarted
from builder.images.lazy_layers import Layers
from builder.oci.model import ImageConfig, host
from builder.plan.graph import Outline, Plan, Step
from builder.plan.ops import MakeDir
from builder.steps.contents import StageContents
from builder.steps.kind import Key, Made, ReadyStep, Solved, StepKind, Usage, key_of
from builder.steps.kinds import Kinds
from cache.layer.snapshots import commit, draft
from cache.store import Store
from grammar.span import Span


class Fake(StepKind):
    """A kind that counts how often it is made and reused, and fails if it is told to."""

    def __init__(self, ready: ReadyStep, kinds: FakeKinds) -> None:
        self._ready, self._kinds = ready, kinds

    def key(self) -> Key | Solved | None:
        return key_of(self._ready.step.op, [self._ready.parent.key], self._ready.parent)

    def make(self, shown: AbstractContextManager[Usage]) -> Made:
        with shown as usage, draft(self._kinds.environment.store, ()) as made:
            if self._kinds.failure is not None:
                raise self._kinds.failure
            self._kinds.made.append(self._ready.step.name)
            usage.peak = 7
            return Made(commit(made))

    def reuse(self) -> None:
        self._kinds.reused.append(self._ready.step.name)


class FakeKinds:
    """Stands in for builder.steps.kinds.Kinds."""

    def __init__(self, store: Store, no_cache: bool = False) -> None:
        self.events: list[Event] = []
        self.environment = Environment(store, self.events.append, {}, {}, no_cache=no_cache)
        self.layers = Layers(store, self.events.append)
        self.contents = StageContents(store.memos, None, no_cache)
        self.containers = self
        self.failure: BuildError | None = None
        self.made: list[str] = []
        self.reused: list[str] = []
        self.cancelled = False

    def of(self, ready: ReadyStep, output: Callable[[bytes], None]) -> StepKind:
        return Fake(ready, self)

    def cancel(self) -> None:
        self.cancelled = True

    def solve(self, plan: Plan) -> dict[str, Solved]:
        solution = Solver(plan, cast(Kinds, self), None).solve(2)
        return {step.name: solution.of(step) for step in plan.steps}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(str(tmp_path / "store")) as made:
        yield made


def plan_of(*steps: Step, fresh: frozenset[int] = frozenset()) -> Plan:
    config = ImageConfig(platform=host())
    return Plan(steps[-1], steps, config, (), (), (), (), (), Outline((), (), ()), None, fresh)


def chain() -> tuple[Step, Step]:
    below = Step("below", MakeDir("/a", ""), None, (), Span(1, 1))
    return below, Step("above", MakeDir("/b", ""), below, (), Span(2, 2))


def kinds_of_events(events: list[Event]) -> list[type[Any]]:
    return [type(event) for event in events]


def test_a_miss_makes_and_a_hit_reuses(store: Store) -> None:
    """What one solve made, the next one finds: same keys, same layers, and it is said to be cached."""
    first, second = FakeKinds(store), FakeKinds(store)
    before = first.solve(plan_of(*chain()))
    after = second.solve(plan_of(*chain()))
    assert first.made == ["below", "above"] and first.reused == []
    assert second.made == [] and second.reused == ["below", "above"]
    assert before == after and len(after["above"].stack) == 2
    assert kinds_of_events(first.events) == [StepStarted, StepFinished] * 2
    assert kinds_of_events(second.events) == [StepCached] * 2
    assert [event.peak for event in first.events if isinstance(event, StepFinished)] == [7, 7]


@pytest.mark.parametrize("no_cache", [True, False])
def test_fresh_steps_are_made_again(store: Store, no_cache: bool) -> None:
    """--no-cache asks the cache for no step, --no-cache-filter for none of some stages."""
    FakeKinds(store).solve(plan_of(*chain()))
    again, steps = FakeKinds(store, no_cache), chain()
    again.solve(plan_of(*steps, fresh=frozenset() if no_cache else frozenset({id(steps[1])})))
    assert again.made == (["below", "above"] if no_cache else ["above"])


def test_an_error_names_the_step(store: Store) -> None:
    """An error becomes one of the step, the build is cancelled, and nothing is recorded."""
    kinds = FakeKinds(store)
    kinds.failure = BuildError("it broke", "mend it")
    with pytest.raises(StepError) as caught:
        kinds.solve(plan_of(*chain()))
    assert (caught.value.step, caught.value.message, caught.value.hint) == ("below", "it broke", "mend it")
    assert caught.value.span == Span(1, 1) and kinds.cancelled
    assert kinds_of_events(kinds.events) == [StepStarted, StepFailed]
    later = FakeKinds(store)
    later.solve(plan_of(*chain()))
    assert later.made == ["below", "above"]


def test_a_lost_layer_is_made_again(store: Store) -> None:
    """A record of a snapshot that is gone counts as none."""
    result = FakeKinds(store).solve(plan_of(*chain()))
    os.rename(store.path("snapshots", result["above"].stack[1]), store.path("gone"))
    again = FakeKinds(store)
    again.solve(plan_of(*chain()))
    assert again.made == ["above"]
