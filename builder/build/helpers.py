"""The helper processes of one command, forked early and always ended."""

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
    """The launcher and, if they may be needed, the network helper and the packing process. A context manager.

    Enter it before heavy imports and before any thread starts: its processes are forked from this one. The
    exit ends all containers.
    """

    def __init__(
        self, store: Store, network: bool, copies: bool = False, isolation: Isolation = NAMESPACES
    ) -> None:
        """Fork the processes: with *network*, one for containers' networks; with *copies*, one that packs."""
        self._isolation = isolation
        self._setting = Setting(
            store=store.root,
            shift=not entered(),
            session=store.session() if isolation == CHROOT else None,
        )
        self._scratch = None if self._setting.shift else store.empty
        # Without root, passt or slirp4netns must provide the network; otherwise steps share this machine's.
        self.shares_network = isolation == CHROOT or (not self._setting.shift and not programs())
        # True if add_network has nothing to do: the launcher has the helper, or can have none.
        self._network = network or self.shares_network
        self.launcher = Launcher(self._setting, isolation, self._wiring() if network else None)
        self.packer = _packer() if copies else None

    def add_network(self) -> Launcher:
        """Return a launcher with a network, needed when an ONBUILD trigger adds a RUN.

        Call this before the first thread or container.
        """
        if not self._network:
            self.launcher.close()
            self.launcher = Launcher(self._setting, self._isolation, self._wiring())
            self._network = True
        return self.launcher

    def _wiring(self) -> "socket.socket | None":
        """Start the network helper; return the socket to it, None if steps share this machine's network."""
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
