"""Follow a container in the foreground: pass on signals, and what it writes, until it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator

from builder.errors import BuildError
from builder.runtime.launcher.client import Launcher, Outcome, Running
from builder.runtime.network.publish import Publisher
from builder.runtime.spec import ContainerSpec
from cache.kernel import write_all

_PASSED_ON = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT),
    *(signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2),
)
_OF_A_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
_MOST_SIGNALS = 2  # a later one kills, as with docker


def follow(launcher: Launcher, spec: ContainerSpec, stdin: int, publisher: Publisher) -> Outcome:
    """Start a container and follow it to its end; *stdin* is a file descriptor, or -1 for none.

    Raises BuildError when the output of the container cannot be written.
    """
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    out_read, out_write = os.pipe2(os.O_CLOEXEC)
    err_read, err_write = os.pipe2(os.O_CLOEXEC)
    for fd in (out_write, err_write):
        os.fchmod(fd, 0o222)  # so that any user of the container can open /dev/stdout
    try:
        running = launcher.start(spec, null if stdin < 0 else stdin, out_write, err_write)
    finally:
        for fd in (null, out_write, err_write):
            os.close(fd)
    passing = _Passing(running, publisher.start)
    try:
        with passing.signals():
            outcome = running.follow({out_read: passing.writer(1), err_read: passing.writer(2)})
    finally:
        running.close()
        os.close(out_read)
        os.close(err_read)
    if passing.failure:
        raise BuildError(f"writing the container's output to standard output: {passing.failure}")
    return Outcome(128 + passing.ended_by) if passing.ended_by else outcome


class _Passing:
    """Passes signals to a container, and its output to standard output and standard error.

    ``ended_by`` is the signal because of which the container was killed, 0 for none; ``failure`` is why its
    output could not be written, "" for none.
    """

    def __init__(self, running: Running, started: Callable[[int], None]) -> None:
        self.ended_by = 0
        self.failure = ""
        self._running = running
        self._pidfd = -1
        self._signals = 0

        def note(pidfd: int) -> None:
            self._pidfd = pidfd
            started(pidfd)

        running.started = note

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Pass signals to the container inside the block, except those that are ignored, as under nohup."""
        taken = [number for number in _PASSED_ON if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._pass) for number in taken}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass(self, number: int, _frame: object) -> None:
        """Pass a signal to the command; one of a terminal goes to its process group.

        The kernel does not deliver a signal to the first process of a PID namespace that would end it by
        default. In that case, before the command runs, and after two signals, the container is killed.
        """
        self._signals += 1
        if self._signals > _MOST_SIGNALS:
            self._end(signal.SIGKILL)
            return
        pid = _pid(self._pidfd) if self._pidfd >= 0 else -1
        if pid < 0 or _is_kept_from(pid, number):
            self._end(number)
            return
        with contextlib.suppress(OSError):  # it has ended
            if number in _OF_A_TERMINAL and pid and os.getpgid(pid) == pid:
                os.killpg(pid, number)
            else:
                signal.pidfd_send_signal(self._pidfd, number)

    def _end(self, number: int) -> None:
        self.ended_by = self.ended_by or number
        self._running.kill()

    def writer(self, target: int) -> Callable[[bytes], None]:
        """Return a function that writes to *target*. A closed pipe ends the container, like a program."""

        def write(data: bytes) -> None:
            try:
                write_all(target, data)
            except BrokenPipeError:
                self._end(signal.SIGPIPE)
            except OSError as error:
                if target == 1 and error.errno != errno.EBADF:  # the caller closed it
                    self.failure = error.strerror or ""
                    self._running.kill()

        return write


def _pid(pidfd: int) -> int:
    """Return the PID behind a pidfd, 0 when the process has ended."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return max(0, int(fields["Pid"]))


def _is_kept_from(pid: int, number: int) -> bool:
    """Return True if the kernel does not deliver a signal: to the first process of a PID namespace without a
    handler for it.
    """
    if not pid:
        return False
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            fields = dict(line.split(":", 1) for line in file)
        asked = int(fields["SigCgt"], 16) | int(fields["SigIgn"], 16)
        return fields["NSpid"].split()[-1] == "1" and not asked >> (number - 1) & 1
    except (OSError, KeyError, ValueError):
        return False  # it has ended
