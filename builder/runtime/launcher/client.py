"""The builder's side of the launcher: start it, request a container, and follow it to its end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable, Mapping
from typing import NamedTuple

from builder.runtime.container.hierarchies import find
from builder.runtime.helper_process import fork_helper
from builder.runtime.isolation import NAMESPACES, Isolation, launcher_of, operations_of
from builder.runtime.launcher.protocol import EXITED, send_spec
from builder.runtime.launcher.server import Setting
from builder.runtime.spec import ContainerSpec, FrameSpec
from builder.support import debug


class Outcome(NamedTuple):
    """How a container ended: exit code or signal, and ``error`` if it did not start.

    CPU times are in seconds and cover every process of the container; ``peak`` is the most memory
    it had, in bytes, 0 if unknown, and ``oom_kills`` how many processes the kernel killed for want of
    memory, -1 if unknown.
    """

    code: int
    signal: int = 0
    error: str | None = None
    network_failed: bool = False
    user_seconds: float = 0.0
    system_seconds: float = 0.0
    peak: int = 0
    oom_kills: int = 0


class Running:
    """One container between its start and its end."""

    def __init__(self, channel: socket.socket) -> None:
        self.started: Callable[[int], None] | None = None
        """Called with a pidfd of the container's first process, once there is one."""
        self._channel = channel
        self._heard = b""
        self._pidfd = -1

    def kill(self) -> None:
        """Kill every process of the container; ``wait`` still returns. Safe from any thread."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._channel.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)

    def follow(self, outputs: Mapping[int, Callable[[bytes], None]]) -> Outcome:
        """Pass the data of each pipe of *outputs* to its function, and wait for the end.

        The container's end closes the pipes, because no process of it survives.
        """
        poll = select.poll()
        for fd in (*outputs, self._channel.fileno()):
            poll.register(fd, select.POLLIN)
        left = len(outputs)
        while left:
            for fd, _events in poll.poll():
                if fd not in outputs:
                    more = self._hear()
                elif more := bool(data := os.read(fd, 65536)):
                    outputs[fd](data)
                else:
                    left -= 1
                if not more:
                    poll.unregister(fd)
        return self._wait()

    def _hear(self) -> bool:
        """Receive a message of the launcher; False if there is none left.

        A container dies with its launcher, unless it has asked the kernel for something else; it is killed
        here.
        """
        data, fds, _flags, _address = socket.recv_fds(self._channel, 65536, 1)
        self._heard += data
        if fds:
            self._pidfd = fds[0]
            if self.started is not None:
                self.started(self._pidfd)
        if not data and not self._ended() and self._pidfd >= 0:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        return bool(data)

    def _ended(self) -> bool:
        return self._heard[-EXITED.size : -EXITED.size + 1] == b"X"

    def _wait(self) -> Outcome:
        """Block until the container has ended and every process of it is gone."""
        while self._hear():
            pass
        if not self._ended():
            return Outcome(125, error="the container was ended")
        _kind, status, user, system, peak, kills = EXITED.unpack(self._heard[-EXITED.size :])
        said = self._heard[: -EXITED.size].removeprefix(b"P")
        error = said[1:].decode("utf-8", "replace") or None
        if said[:1] == b"N":
            return Outcome(125, error=error, network_failed=True)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            return Outcome(128 + number, number, error, False, user, system, peak, kills)
        return Outcome(os.WEXITSTATUS(status), 0, error, False, user, system, peak, kills)


class Launcher:
    """The launcher process of this build. A context manager; leaving it ends every container.

    Start it before any thread exists and before heavy imports: its size is what every
    clone3 copies the page tables of.
    """

    def __init__(
        self, setting: Setting, isolation: Isolation = NAMESPACES, network: socket.socket | None = None
    ) -> None:
        """Fork the launcher; *network*, its way to the process that connects steps, is consumed."""
        self._isolation = isolation
        self._described: FrameSpec | None = None
        server = launcher_of(isolation)  # imports what the launcher needs

        def serve(control: socket.socket, network: socket.socket | None = None) -> None:
            server(control, network, setting).serve()

        self._pid, self._control = fork_helper(serve, *([network] if network else []))

    def start(self, spec: ContainerSpec, stdin: int, stdout: int, stderr: int, more: bool = False) -> Running:
        """Start a container; descriptors are copied. Raises OSError when the launcher is gone.

        With *more*, others like it are expected, and the next is made ahead.
        """
        if debug.enabled():
            self._describe(spec)
        channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            socket.send_fds(self._control, [b"R" if more else b"L"], [theirs.fileno(), stdin, stdout, stderr])
        finally:
            theirs.close()
        send_spec(channel, spec, [])
        return Running(channel)

    def _describe(self, spec: ContainerSpec) -> None:
        """Print the operations of a container; those of a frame once, as long as it stays the same."""
        from builder.runtime.container.describe import describe  # seldom needed

        operations = operations_of(self._isolation, spec)
        if spec["frame"] != self._described:
            self._described = spec["frame"]
            debug.debug(f"container\n{describe(operations.frame)}")
        debug.debug(f"step\n{describe(operations.step)}")

    def close(self) -> None:
        """Kill every container and wait for the launcher to be gone."""
        self._control.close()
        _pid, status = os.waitpid(self._pid, 0)
        if status:  # it was killed, and could not clean up
            find().sweep()

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
