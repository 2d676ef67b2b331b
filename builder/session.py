"""The helper processes of one command, forked early and ended for certain."""

from builder.runtime.host import Launcher
from cache.store import Store


class Session:
    """The launcher, with a network for its containers when one may be needed. A context manager.

    Enter it before heavy imports and before any thread: its processes are forked from this
    one. Leaving it ends every container.
    """

    def __init__(self, store: Store, network: bool) -> None:
        wiring = None
        if network:
            from builder.runtime.network import start

            wiring = start()
        self.launcher = Launcher(store.root, wiring)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *exc: object) -> None:
        self.launcher.close()
