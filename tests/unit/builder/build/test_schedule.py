"""The schedule: inputs before their users, several steps at once, the first error wins."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from builder.build.schedule import Schedule
from builder.errors import BuildError
from builder.plan.graph import Step
from builder.plan.ops import MakeDir
from grammar.span import Span


def step(name: str, parent: Step | None = None, *sources: Step) -> Step:
    return Step(name, MakeDir(f"/{name}", ""), parent, sources, Span(1, 1))


def run(steps: list[Step], work: Callable[[Step], None], jobs: int = 4) -> list[BaseException]:
    """Run a schedule and return the errors that it reported."""
    failures: list[BaseException] = []
    Schedule(steps, work, jobs, failures.append).run()
    return failures


def test_inputs_come_first() -> None:
    """A step is done after its parent and after all of its sources."""
    base = step("base")
    left, right = step("left", base), step("right", base)
    top = step("top", left, right)
    done: list[str] = []
    run([base, left, right, top], lambda one: done.append(one.name))
    assert done[0] == "base" and done[-1] == "top" and set(done) == {"base", "left", "right", "top"}


def test_independent_steps_run_at_once() -> None:
    """Steps that do not need each other wait for each other here, which one thread could not."""
    both = threading.Barrier(2, timeout=10)

    def work(one: Step) -> None:
        both.wait()

    run([step("a"), step("b")], work)


def test_jobs_is_the_limit() -> None:
    """No more steps run at once than jobs allow."""
    now, most, lock = [0], [0], threading.Lock()

    def work(one: Step) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        threading.Event().wait(0.005)
        with lock:
            now[0] -= 1

    run([step(str(number)) for number in range(20)], work, jobs=3)
    assert most[0] <= 3 and now[0] == 0


def test_the_first_error_ends_it() -> None:
    """What needs a failed step is not done, and the error is raised once nothing runs."""
    base = step("base")
    done: list[str] = []

    def work(one: Step) -> None:
        if one is base:
            raise BuildError("no base")
        done.append(one.name)

    with pytest.raises(BuildError, match="no base"):
        run([base, step("top", base)], work)
    assert done == []
