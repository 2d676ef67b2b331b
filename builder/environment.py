"""What executors may use: the store, containers, the packing process, the context."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from builder.copy.context_source import ContextSource
from builder.copy.pack_process import Packer
from builder.errors import Cancelled
from builder.events import Sink
from builder.images.lazy_layers import Layers
from builder.request import ClientOptions, Secret, Ssh
from builder.runtime.isolation import CHROOT, NAMESPACES
from builder.runtime.launcher.client import Launcher, Outcome, Running
from builder.runtime.spec import ContainerSpec
from cache.store import Store

if TYPE_CHECKING:
    from builder.rootfs.plain_trees import StageTrees


class Workshop:
    """The means of one build; without a launcher it runs nothing. ``contexts`` go by their names."""

    def __init__(
        self,
        store: Store,
        launcher: Launcher | None,
        packer: Packer | None,
        secrets: Mapping[str, Secret],
        ssh: Mapping[str, Ssh],
        sink: Sink,
        isolation: str = NAMESPACES,
        client: ClientOptions | None = None,
    ) -> None:
        self.store = store
        self.client = client or ClientOptions()
        self.isolation = isolation
        self.trees: StageTrees | None = None
        if not store.overlays:
            from builder.rootfs.plain_trees import StageTrees  # most builds have overlays

            self.trees = StageTrees(store, isolation == CHROOT)
        self.launcher = launcher
        self.packer = packer
        self.secrets = secrets
        self.ssh = ssh
        self.sink = sink
        self.contexts: dict[str, ContextSource] = {}
        self.layers = Layers(store, sink)
        # Puts what a shared cache has into the folder of a new cache mount, by its name; whether it had some.
        self.fill_cache: Callable[[str, str], bool] | None = None
        self.emptied: set[str] = set()  # the cache mounts that --no-cache has emptied, by their names
        self.shares_network = False  # steps have this machine's network where they want the usual one
        self.runs = 0  # RUN steps that may still come: containers are made ahead for them
        self._running: set[Running] = set()
        self._lock = threading.Lock()
        self._cancelled = False

    def contain(self, spec: ContainerSpec, sink: Callable[[bytes], None]) -> Outcome:
        """Run a container to its end, everything it writes going to *sink*.

        Raises Cancelled when ``cancel`` was called before it ended, OSError when it could
        not be asked for.
        """
        assert self.launcher is not None
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        os.fchmod(write_end, 0o222)  # so that any user of the step can open /dev/stdout
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with self._lock:
                if self._cancelled:
                    raise Cancelled
                self.runs -= 1
                running = self.launcher.start(spec, null, write_end, write_end, self.runs > 0)
                self._running.add(running)
            os.close(write_end)
            write_end = -1
            try:
                outcome = running.follow({read_end: sink})
            finally:
                with self._lock:
                    self._running.discard(running)
                running.close()
        finally:
            for fd in (read_end, write_end, null):
                if fd >= 0:
                    os.close(fd)
        if self._cancelled:
            raise Cancelled
        return outcome

    def pass_over_run(self) -> None:
        """Take note that a RUN step is cached. May be called from any thread."""
        with self._lock:
            self.runs -= 1

    def check(self) -> None:
        """Raises Cancelled once ``cancel`` was called; for work that takes long."""
        if self._cancelled:
            raise Cancelled

    def cancel(self) -> None:
        """End every running container and refuse new ones. May be called from any thread."""
        with self._lock:
            self._cancelled = True
            for running in self._running:
                running.kill()
