"""Do the steps of a plan in the order of their inputs, several at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from builder.errors import Cancelled
from builder.plan.graph import Step
from cache.waits import SIGNAL_TICK

_PATIENCE = 1.0  # seconds that a cancelled build waits for what is going on


class Schedule:
    """Does *work* for each of *steps*, inputs before their users, in at most *jobs* threads.

    *failed* is called with each error, from the thread that met it.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        work: Callable[[Step], None],
        jobs: int,
        failed: Callable[[BaseException], None],
    ) -> None:
        self._work, self._jobs, self._failed = work, jobs, failed
        self._waiting = {id(step): len(step.inputs) for step in steps}
        self._users: dict[int, list[Step]] = {id(step): [] for step in steps}
        for step in steps:
            for needed in step.inputs:
                self._users[id(needed)].append(step)
        self._ready = [step for step in reversed(steps) if not step.inputs]
        self._threads = 0
        self._failure: BaseException | None = None
        self._changed = threading.Condition()  # guards all of this; notified when a thread ends

    def run(self) -> None:
        """Do all of it. Raises the first error, after every running step has ended."""
        with self._changed:
            self._hire(len(self._ready))
            try:
                while self._threads:
                    self._changed.wait(SIGNAL_TICK)
            except BaseException:  # Ctrl-C arrives here, in the main thread
                self._fail(Cancelled())
                # Steps end at once; a thread that waits for a silent server ends with this process.
                self._changed.wait_for(lambda: not self._threads, _PATIENCE)
                raise
        if self._failure is not None:
            raise self._failure

    def _hire(self, steps: int) -> None:
        """Start a thread for each of *steps* more ready steps, as far as the limit allows."""
        for _ in range(min(steps, self._jobs - self._threads)):
            self._threads += 1
            threading.Thread(target=self._take_steps, daemon=True).start()

    def _take_steps(self) -> None:
        """Take ready steps until there are none. A step that makes others ready starts threads for them."""
        while True:
            with self._changed:
                if not self._ready or self._failure is not None:
                    self._threads -= 1
                    self._changed.notify_all()
                    return
                step = self._ready.pop()
            try:
                self._work(step)
            except BaseException as error:
                with self._changed:
                    self._fail(error)
                continue
            with self._changed:
                before = len(self._ready)
                for user in self._users[id(step)]:
                    self._waiting[id(user)] -= 1
                    if not self._waiting[id(user)]:
                        self._ready.append(user)
                self._hire(len(self._ready) - before - 1)

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        self._failed(error)
