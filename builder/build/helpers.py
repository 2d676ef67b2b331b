"""The helper processes of one command, forked early and ended for certain."""

from builder.runtime.isolation import CHROOT, NAMESPACES, Isolation
from builder.runtime.launcher.client import Launcher
from builder.runtime.launcher.server import Setting
from builder.runtime.network.uplink import programs
from builder.runtime.rootless import entered
from cache.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from builder.copy.pack_process import Packer


class Session:
    """The launcher and, where they may be needed, a network and a packing process. A context manager.

    Enter it before heavy imports and before any thread: its processes are forked from this
    one. Leaving it ends every container.
    """

    def __init__(
        self, store: Store, network: bool, copies: bool = False, isolation: Isolation = NAMESPACES
    ) -> None:
        """*network* is whether containers need one, *copies* whether files are copied."""
        self._isolation = isolation
        self._setting = Setting(
            store=store.root,
            shift=not entered(),
            session=store.session() if isolation == CHROOT else None,
        )
        self._scratch = None if self._setting.shift else store.empty
        # Without root somebody has to carry a network; else steps share this machine's.
        self.shares_network = isolation == CHROOT or (not self._setting.shift and not programs())
        self._network = network or self.shares_network
        self.launcher = Launcher(self._setting, isolation, self._wiring() if network else None)
        self.packer = _packer() if copies else None

    def add_network(self) -> Launcher:
        """A launcher whose containers get a network after all: a trigger of a base image runs something.

        To be called before any thread exists, and any container.
        """
        if not self._network:
            self.launcher.close()
            self.launcher = Launcher(self._setting, self._isolation, self._wiring())
            self._network = True
        return self.launcher

    def _wiring(self) -> "socket.socket | None":
        """The way to a new process that wires networks."""
        if self.shares_network:
            return None
        from builder.runtime.network.setup import start

        return start(self._scratch)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *exc: object) -> None:
        if self.packer is not None:
            self.packer.close()
        self.launcher.close()


def _packer() -> "Packer":
    from builder.copy.pack_process import Packer

    return Packer()
