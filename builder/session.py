"""The helper processes of one command, forked early and ended for certain."""

from __future__ import annotations

from builder.runtime.host import Launcher
from builder.runtime.network import Network
from cache.store import Store


class Session:
    """The launcher, and the network helper when it may be needed. A context manager.

    Enter it before heavy imports and before any thread: both are forked from this process.
    """

    def __init__(self, store: Store) -> None:
        self.launcher = Launcher(store.root)
        self._network: Network | None = None

    def network(self, wanted: bool) -> Network | None:
        """Fork the network helper if *wanted*; it changes nothing on the host until it is used."""
        if wanted and self._network is None:
            self._network = Network()
        return self._network

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.launcher.close()
        if self._network is not None:
            self._network.close()
