"""Ports of a container on this machine: connections are passed on by threads of this process.

No rule of the machine's is changed and no right is needed: what is accepted here is connected anew
from inside the container's net namespace, to its loopback, where servers on all addresses listen too.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass

from builder.runtime import syscalls as sc

_PATIENCE = 0.5  # seconds for a server that is starting
_TICK = 0.05
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Port:
    """TCP connections to *port* of *address* here (0: any free one) go to *inside* of the container."""

    address: str
    port: int
    inside: int


class Publisher:
    """Listens from its creation on; passes connections on once it is told which process the container is."""

    def __init__(self, ports: tuple[Port, ...]) -> None:
        """Raises OSError where one cannot be listened on."""
        self._servers: list[tuple[socket.socket, int]] = []
        try:
            for port in ports:
                family = socket.AF_INET6 if ":" in port.address else socket.AF_INET
                server = socket.create_server((port.address, port.port), family=family)
                self._servers.append((server, port.inside))
        except OSError:
            self.close()
            raise

    def listening(self) -> list[str]:
        """Where, as text."""
        names = (server.getsockname()[:2] for server, _inside in self._servers)
        return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in names]

    def start(self, pidfd: int) -> None:
        """Pass on what connects, to the container whose first process *pidfd* is."""
        for server, inside in self._servers:
            threading.Thread(target=_accept, args=(server, inside, pidfd), daemon=True).start()

    def close(self) -> None:
        for server, _inside in self._servers:
            server.close()


def _accept(server: socket.socket, inside: int, pidfd: int) -> None:
    with contextlib.suppress(OSError):  # it was closed: the container has ended
        while True:
            connection, _address = server.accept()
            threading.Thread(target=_serve, args=(connection, inside, pidfd), daemon=True).start()


def _serve(connection: socket.socket, inside: int, pidfd: int) -> None:
    """Carry one connection. This thread moves into the container's net namespace for good."""
    with connection:
        try:
            sc.setns(pidfd, sc.CLONE_NEWNET)
            server = _connect(inside)
        except OSError:
            return  # nobody listens there: the caller sees a connection that ends
        with server:
            back = threading.Thread(target=_pump, args=(server, connection), daemon=True)
            back.start()
            _pump(connection, server)
            back.join()


def _connect(port: int) -> socket.socket:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=None)
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(_TICK)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
