"""Steps without namespaces: a process that has them started, answers their calls, and reports how each ended.

It is forked by the launcher, ahead, has one thread, and holds nothing of the build but the spec of its step.
The step runs below its reaper (``reaper.py``), confined by chroot, Landlock and two filters. When a step has
ended, the next of the same root and network may come to it, so that a small step costs no new processes but
its own.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from typing import TYPE_CHECKING, NoReturn

from builder.runtime import syscalls as sc
from builder.runtime.chroot import landlock, process_tree, skeleton
from builder.runtime.chroot.answers import Answers
from builder.runtime.chroot.notify import Listener
from builder.runtime.chroot.processes import Processes
from builder.runtime.chroot.reaper import RESULT, Result, reap_steps
from builder.runtime.errors import SetupError
from builder.runtime.launcher.protocol import EXITED, error_text, receive_spec, send_spec
from builder.runtime.spec import CAPABILITIES, ContainerSpec

if TYPE_CHECKING:
    from collections.abc import Callable

IDLE = b"I"  # what the launcher receives when another step may come
_DESCRIPTORS = 4
_PATIENCE = 2.0  # seconds for the processes of a step to be gone
_FAILED = Result(status=125 << 8, user=0.0, system=0.0, peak=0, goes_on=False)
_KILLED = Result(status=signal.SIGKILL, user=0.0, system=0.0, peak=0, goes_on=False)


def wait_and_supervise(feed: socket.socket, store: bytes, session: str, ahead: bool) -> NoReturn:
    """Wait on *feed* for steps whose roots are below *session*, run each and report how it ended.

    With *ahead*, its reaper is forked before there is a step. The launcher sends the spec with the
    descriptors (channel, stdin, stdout, stderr). If it hangs up, no other step is wanted.
    """
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # no signal may come between a call and its answer
        signal.set_wakeup_fd(-1)
        os.setsid()
        os.setgroups([])
        sc.prctl(sc.PR_SET_CHILD_SUBREAPER, 1)
        sc.prctl(sc.PR_SET_DUMPABLE, 0)
        sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGTERM)
        os.umask(0o022)
        feed = socket.socket(fileno=sc.keep_only([feed.detach()])[0])
        landlock.restrict_supervisor(session)
        reaper = _Reaper(feed) if ahead else None
        while (received := receive_spec(feed, _DESCRIPTORS)) is not None:
            if reaper is None:
                reaper = _Reaper(feed)
            spec, fds = received
            step = _Step(spec, store, fds, reaper)
            if not step.run_and_report(feed):
                break
        else:
            code = 0
    finally:
        os._exit(code)


class _Reaper:
    """The process that starts and ends the steps, as its supervisor sees it."""

    def __init__(self, feed: socket.socket) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.pid = os.fork()
        if self.pid == 0:
            feed.close()
            self.socket.close()
            reap_steps(theirs)
        theirs.close()

    def start(self, spec: ContainerSpec, fds: list[int]) -> int:
        """Have it start a step; the pid of the step's first process. Raises OSError."""
        send_spec(self.socket, spec, fds)
        answer = self.socket.recv(4, socket.MSG_WAITALL)
        if len(answer) < 4:
            raise OSError("the process that starts the step has ended")
        return int.from_bytes(answer, "little")

    def end_step(self) -> Result | None:
        """Have it end the step; how that ended, None if it does not say in time."""
        with contextlib.suppress(OSError):
            self.socket.sendall(b"K")
            if select.select([self.socket], [], [], _PATIENCE)[0]:
                return self.result()
        return None

    def result(self) -> Result | None:
        """Receive how the step ended, None if the reaper has ended itself."""
        answer = self.socket.recv(RESULT.size, socket.MSG_WAITALL)
        return Result(*RESULT.unpack(answer)) if len(answer) == RESULT.size else None


class _Ended(Exception):
    """The build no longer wants this step."""


def _end(_number: int, _frame: object) -> None:
    raise _Ended


class _Step:
    """A step from its start to its end."""

    def __init__(self, spec: ContainerSpec, store: bytes, fds: list[int], reaper: _Reaper) -> None:
        """*fds* are the status channel and standard input, output and error; they are consumed."""
        self._spec = spec
        self._path = store + b"/" + spec["upper"]
        self._root = -1
        self._channel = socket.socket(fileno=fds[0])
        self._stdio = fds[1:]
        self._reaper = reaper

    def run_and_report(self, feed: socket.socket) -> bool:
        """Run the step and report its end; True, and ``IDLE`` on *feed*, if another may come."""
        result = _FAILED
        try:
            result = self._run()
        except BaseException as error:
            with contextlib.suppress(OSError):
                self._channel.send(b"E" + error_text(error))
        if result.goes_on:
            with contextlib.suppress(OSError):  # the launcher wants no other step of this one
                feed.send(IDLE)  # before the builder hears of the end, and sends the next
        with contextlib.suppress(OSError):  # nobody is listening any more
            ended = EXITED.pack(b"X", result.status, result.user, result.system, result.peak, -1)
            self._channel.send(ended)
        self._channel.close()
        return result.goes_on

    def _run(self) -> Result:
        """Run the step until all its processes are gone."""
        result = None
        try:
            self._root = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            self._path = os.readlink(b"/proc/self/fd/%d" % self._root)
            skeleton.write_scripts(self._root, self._spec["scripts"])
            signal.signal(signal.SIGTERM, _end)
            try:
                result = self._serve(*self._start())
            except _Ended:
                pass
            finally:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                result = self._end_all(result)
        finally:
            os.close(self._stdio[2])
            if self._root >= 0:
                os.close(self._root)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return result

    def _start(self) -> tuple[int, socket.socket]:
        """Have the step started; the pid of its first process, and the socket that its listener comes by."""
        starting, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        first = self._reaper.start(
            self._spec, [self._root, self._channel.fileno(), *self._stdio, theirs.fileno()]
        )
        theirs.close()
        for fd in self._stdio[:2]:
            os.close(fd)
        with contextlib.suppress(OSError):  # an old filter may not know it
            pidfd = os.pidfd_open(first)
            socket.send_fds(self._channel, [b"P"], [pidfd])
            os.close(pidfd)
        sc.capset(CAPABILITIES & process_tree.own_capabilities())
        return first, starting

    def _serve(self, first: int, starting: socket.socket) -> Result | None:
        """Answer calls until the reaper reports how the step ended; None if it cannot. Raises _Ended."""
        processes = Processes(self._path, first, self._reaper.pid)
        answers = Answers(self._spec, self._root, self._path, processes, self._stdio[2])
        poll = select.poll()
        poll.register(self._reaper.socket.fileno(), select.POLLIN)
        poll.register(starting.fileno(), select.POLLIN)
        poll.register(self._channel.fileno(), select.POLLHUP | select.POLLRDHUP)
        listening = -1
        answer: Callable[[], None] = lambda: None  # noqa: E731
        while True:
            for fd, _event in poll.poll():
                if fd == listening:
                    answer()
                elif fd == self._reaper.socket.fileno():
                    answers.close()
                    if listening >= 0:
                        os.close(listening)
                    return self._reaper.result()
                elif fd == starting.fileno():
                    poll.unregister(fd)
                    _message, fds, _flags, _address = socket.recv_fds(starting, 1, 1)
                    starting.close()
                    if fds:  # otherwise it reports on its channel why it has not started
                        listening = fds[0]
                        poll.register(listening, select.POLLIN)
                        answer = answers.to(Listener(listening))
                else:
                    raise _Ended

    def _end_all(self, result: Result | None) -> Result:
        """Wait until no process of the step is left. Raises SetupError if one stays."""
        result = result or self._reaper.end_step()
        if result is not None and result.goes_on:
            return result
        deadline, pause = time.monotonic() + _PATIENCE, 0.0005
        while not _all_gone():
            if time.monotonic() > deadline:
                raise SetupError("processes of the step could not be ended")
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
            if pause < 0.01:
                continue
            # Without scopes of Landlock the reaper cannot tell them from others: one by one.
            left = process_tree.descendants()
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in left:
                    with contextlib.suppress(OSError):
                        os.kill(pid, number)
        return result or _KILLED


def _all_gone() -> bool:
    """Return True if no process is left: those of the step, and its reaper, are descendants of this one."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return False
    return True
