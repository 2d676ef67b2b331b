"""The containers of one build: how many may still come, which ones run, and the roots they run on."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from builder.environment import Environment
from builder.runtime.isolation import CHROOT
from builder.runtime.launcher.client import Launcher, Outcome, Running
from builder.runtime.spec import ContainerSpec

if TYPE_CHECKING:
    from builder.rootfs.plain_trees import StageTree, StageTrees


class Containers:
    """Starts the containers of RUN steps, and ends them all when the build is cancelled."""

    def __init__(self, launcher: Launcher, environment: Environment, expected: int) -> None:
        """*expected* is the number of RUN steps: a container is made ahead for the next one."""
        self._launcher = launcher
        self._cancellation = environment.cancellation
        self._expected = expected
        self._running: set[Running] = set()
        self._lock = threading.Lock()
        self._trees: StageTrees | None = None
        if not environment.store.overlays:
            from builder.rootfs.plain_trees import StageTrees  # most builds have overlays

            self._trees = StageTrees(environment.store, environment.isolation == CHROOT)

    @contextlib.contextmanager
    def root(self, stack: tuple[str, ...]) -> Iterator[StageTree | None]:
        """Give a plain tree that holds *stack* where overlayfs is unavailable, otherwise None."""
        if self._trees is None:
            yield None
            return
        with self._trees.taken(stack) as tree:
            yield tree

    def run(self, spec: ContainerSpec, output: Callable[[bytes], None]) -> Outcome:
        """Run a container to its end. *output* gets what it writes.

        Raises Cancelled if the build is cancelled before it ended, and OSError if the launcher is gone.
        """
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        os.fchmod(write_end, 0o222)  # so that any user of the step can open /dev/stdout
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with self._lock:
                self._cancellation.check()
                self._expected -= 1
                running = self._launcher.start(spec, null, write_end, write_end, self._expected > 0)
                self._running.add(running)
            os.close(write_end)
            write_end = -1
            try:
                outcome = running.follow({read_end: output})
            finally:
                with self._lock:
                    self._running.discard(running)
                running.close()
        finally:
            for fd in (read_end, write_end, null):
                if fd >= 0:
                    os.close(fd)
        self._cancellation.check()
        return outcome

    def skip(self) -> None:
        """Take note that a RUN step needs no container."""
        with self._lock:
            self._expected -= 1

    def cancel(self) -> None:
        """Cancel the build: kill every container and refuse new ones. Safe from any thread."""
        self._cancellation.cancel()
        with self._lock:
            for running in self._running:
                running.kill()
