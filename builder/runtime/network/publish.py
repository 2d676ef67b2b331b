"""Published ports of a container: threads of this process pass connections on.

No rule of the machine is changed and no privilege is needed. For each accepted connection, another is made
inside the container's net namespace, to its loopback, where servers on all addresses listen too.
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
    """Published ports: it listens from the start, and passes connections on after ``start``."""

    def __init__(self, ports: tuple[Port, ...]) -> None:
        """Listen. Raises OSError if that fails for a port."""
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
        """Return the addresses and ports, as text."""
        names = (server.getsockname()[:2] for server, _inside in self._servers)
        return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in names]

    def start(self, pidfd: int) -> None:
        """Pass connections on to the container whose first process is *pidfd*."""
        for server, inside in self._servers:
            threading.Thread(target=_accept, args=(server, inside, pidfd), daemon=True).start()

    def close(self) -> None:
        for server, _inside in self._servers:
            server.close()


def _accept(server: socket.socket, inside: int, pidfd: int) -> None:
    """Accept connections until the server is closed; wait while there are no descriptors."""
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
