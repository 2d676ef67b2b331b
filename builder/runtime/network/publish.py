"""Ports of a container on this machine: connections are passed on by threads of this process.

No rule of the machine's is changed and no right is needed: what is accepted here is connected anew
from inside the container's net namespace, to its loopback, where servers on all addresses listen too.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import NamedTuple

from builder.runtime import syscalls as sc

_PATIENCE = 0.5  # seconds for a server that is starting
_TICK = 0.05
_CHUNK = 1 << 16
_FREE = threading.BoundedSemaphore(200)  # connections at a time, of two descriptors and two threads each


class Port(NamedTuple):
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
    """Accept until the server is closed, because the container has ended; in want of descriptors, wait."""
    while True:
        try:
            connection, _address = server.accept()
        except OSError:
            if server.fileno() < 0:
                return
            time.sleep(_TICK)
            continue
        if not _FREE.acquire(timeout=_PATIENCE):
            connection.close()  # more than can be served
            continue
        try:
            threading.Thread(target=_serve, args=(connection, inside, pidfd), daemon=True).start()
        except RuntimeError:  # no more threads
            _FREE.release()
            connection.close()


def _serve(connection: socket.socket, inside: int, pidfd: int) -> None:
    """Carry one connection. This thread moves into the container's net namespace for good."""
    try:
        with connection:
            sc.setns(pidfd, sc.CLONE_NEWNET)
            with _connect(inside) as server:
                back = threading.Thread(target=_pump, args=(server, connection), daemon=True)
                back.start()
                _pump(connection, server)
                back.join()
    except (OSError, RuntimeError):
        pass  # nobody listens there: the caller sees a connection that ends
    finally:
        _FREE.release()


def _connect(port: int) -> socket.socket:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=None)
        except OSError:  # nobody listens, or the container's loopback is not up: not yet, perhaps
            if time.monotonic() > end:
                raise
            time.sleep(_TICK)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
