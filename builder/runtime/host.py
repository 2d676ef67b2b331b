"""The builder's side of the launcher: start it, ask for a container, hear how it went."""

from __future__ import annotations

import contextlib
import marshal
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from builder.runtime.launcher import EXITED, serve
from builder.runtime.spec import ContainerSpec
from builder.runtime.syscalls import keep_only


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a container ended: ``error`` when it did not start, else exit code or signal.

    CPU times are in seconds and cover every process of the container.
    """

    code: int
    signal: int = 0
    error: str = ""
    user_seconds: float = 0.0
    system_seconds: float = 0.0


class Running:
    """One container between its start and its end."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._heard = b""

    def kill(self) -> None:
        """Kill every process of the container; ``wait`` still returns. Safe from any thread."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._channel.close()

    def created(self) -> int:
        """Wait until the namespaces exist; the descriptor of a net namespace to wire, or -1."""
        message, fds, _flags, _address = socket.recv_fds(self._channel, 1, 1)
        if message != b"C":
            self._heard = message  # it could not be started; wait() says why
        return fds[0] if fds else -1

    def go(self) -> None:
        """Let the step start: its network is wired."""
        with contextlib.suppress(OSError):  # it is gone; wait() says why
            self._channel.send(b"G")

    def wait(self) -> Outcome:
        """Block until the container has ended and every process of it is gone."""
        data = self._heard
        while chunk := self._channel.recv(65536):
            data += chunk
        if len(data) < EXITED.size or data[-EXITED.size : -EXITED.size + 1] != b"X":
            return Outcome(125, error="the container was ended")
        _kind, status, user, system = EXITED.unpack(data[-EXITED.size :])
        error = data[1 : -EXITED.size].decode("utf-8", "replace") if data[:1] == b"E" else ""
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            return Outcome(128 + number, number, error, user, system)
        return Outcome(os.WEXITSTATUS(status), 0, error, user, system)


class Launcher:
    """The launcher process of this build. A context manager; leaving it ends every container.

    Start it before any thread exists and before heavy imports: its size is what every
    clone3 copies the page tables of.
    """

    def __init__(self, store: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                serve(socket.socket(fileno=keep_only(theirs.detach())), store)
            finally:
                os._exit(1)
        theirs.close()
        self._control = ours

    def start(self, spec: ContainerSpec, stdin: int, stdout: int, stderr: int) -> Running:
        """Start a container; descriptors are copied. Raises OSError when the launcher is gone."""
        channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        data = marshal.dumps(dict(spec))
        try:
            socket.send_fds(self._control, [b"R"], [theirs.fileno(), stdin, stdout, stderr])
        finally:
            theirs.close()
        channel.sendall(len(data).to_bytes(4, "big") + data)
        return Running(channel)

    def close(self) -> None:
        """Kill every container and wait for the launcher to be gone."""
        self._control.close()
        os.waitpid(self.pid, 0)

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def run_output(
    running: Running, output: int, sink: Callable[[bytes], None], wire: Callable[[int], None]
) -> Outcome:
    """Wire the network, hand everything written to the pipe *output* to *sink*, wait for the end.

    The container's end closes the pipe, because no process of it survives.
    """
    namespace = running.created()
    if namespace >= 0:
        try:
            wire(namespace)
        finally:
            os.close(namespace)
        running.go()
    while data := os.read(output, 65536):
        sink(data)
    return running.wait()
