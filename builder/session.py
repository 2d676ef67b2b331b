"""The helper processes of one command, forked early and ended for certain."""

from builder.runtime.host import Launcher
from builder.runtime.rootless import entered
from cache.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from builder.execute.packer import Packer


class Session:
    """The launcher and, where they may be needed, a network and a packing process. A context manager.

    Enter it before heavy imports and before any thread: its processes are forked from this
    one. Leaving it ends every container.
    """

    def __init__(self, store: Store, network: bool, copies: bool = False) -> None:
        """*network* is whether containers need one, *copies* whether files are copied."""
        wiring = None
        if network:
            from builder.runtime.network import start

            wiring = start(store.empty if entered() else "")
        self._root = store.root
        self._network = network
        self._shift = not entered()
        self._scratch = store.empty if entered() else ""
        self.launcher = Launcher(store.root, wiring, self._shift)
        self.packer = _packer() if copies else None

    def add_network(self) -> Launcher:
        """A launcher whose containers get a network after all: a trigger of a base image runs something.

        To be called before any thread exists, and any container.
        """
        if self._network:
            return self.launcher
        from builder.runtime.network import start

        self.launcher.close()
        self.launcher = Launcher(self._root, start(self._scratch), self._shift)
        self._network = True
        return self.launcher

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *exc: object) -> None:
        if self.packer is not None:
            self.packer.close()
        self.launcher.close()


def _packer() -> "Packer":
    from builder.execute.packer import Packer

    return Packer()
