"""Steps without namespaces: a process that has them started, answers their calls, and says how each went.

It is forked by the launcher, ahead, has one thread, and holds nothing of the build but the spec of its step.
The step runs below its keeper (keeper.py), confined by chroot, Landlock and two filters. When a step has
ended the next of the same root and network may come to it, so that a small step costs no new processes but
its own.
"""

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable

from builder.runtime import syscalls as sc
from builder.runtime.chroot import landlock, skeleton
from builder.runtime.chroot.answers import Answers
from builder.runtime.chroot.keeper import RESULT, keep, start_step
from builder.runtime.chroot.notify import Listener
from builder.runtime.chroot.processes import Processes
from builder.runtime.container import init
from builder.runtime.launcher.protocol import EXITED, receive_spec
from builder.runtime.spec import CAPABILITIES, ContainerSpec, StepError

IDLE = b"I"  # what the launcher hears when another step may come
_DESCRIPTORS = 4
_PATIENCE = 2.0  # seconds for the processes of a step to be gone

# Wait status, seconds of CPU time (user, system), most memory in bytes, whether the keeper waits for another.
_Result = tuple[int, float, float, int, bool]


def wait_and_supervise(feed: socket.socket, store: bytes, session: str, ahead: bool) -> None:
    """Wait on *feed* for steps whose root is in *session*, run each and say how it went; never returns.

    With *ahead* its keeper is forked before there is a step.

    The launcher sends the spec with descriptors (channel, stdin, stdout, stderr); hanging up means that no
    other step is wanted.
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
        keeper, hand = _fork_keeper(feed) if ahead else (0, None)
        while (received := receive_spec(feed, _DESCRIPTORS)) is not None:
            spec, fds = received
            if hand is None:
                keeper, hand = _fork_keeper(feed)
            root, channel = store + b"/" + spec["upper"], socket.socket(fileno=fds[0])
            if not _supervise(spec, root, channel, fds[1:], keeper, hand, feed):
                break
        else:
            code = 0
    finally:
        os._exit(code)


def _fork_keeper(feed: socket.socket) -> tuple[int, socket.socket]:
    """The process that will start and end the steps: its pid, and the way to it."""
    hand, handle = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    keeper = os.fork()
    if keeper == 0:
        feed.close()
        hand.close()
        keep(handle)
    handle.close()
    return keeper, hand


def _supervise(
    spec: ContainerSpec,
    root: bytes,
    channel: socket.socket,
    stdio: list[int],
    keeper: int,
    hand: socket.socket,
    feed: socket.socket,
) -> bool:
    """Run one step and say how it went on *channel*; whether another may come."""
    result: _Result = 125 << 8, 0.0, 0.0, 0, False
    try:
        result = _Step(spec, root, channel, stdio, keeper, hand).run()
    except BaseException as error:
        message = init.words(error)
        with contextlib.suppress(OSError):
            channel.send(b"E" + message.encode("utf-8", "replace")[:4000])
    code, user, system, peak, goes_on = result
    if goes_on:
        with contextlib.suppress(OSError):  # the launcher wants no other step of this one
            feed.send(IDLE)  # before the builder hears of the end, and sends the next
    with contextlib.suppress(OSError):  # nobody is listening any more
        channel.send(EXITED.pack(b"X", code, user, system, peak, -1))
    channel.close()
    return goes_on


class _Ended(Exception):
    """The build no longer wants this step."""


def _end(_number: int, _frame: object) -> None:
    raise _Ended


class _Step:
    """A step from its start to its end."""

    def __init__(
        self,
        spec: ContainerSpec,
        root: bytes,
        channel: socket.socket,
        stdio: list[int],
        keeper: int,
        hand: socket.socket,
    ) -> None:
        """*keeper* is the pid of the process that starts and ends the step, *hand* the way to it."""
        self._spec = spec
        self._channel = channel
        self._stdio = stdio
        self._keeper = keeper
        self._hand = hand
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._path = os.readlink(b"/proc/self/fd/%d" % self._root)

    def run(self) -> _Result:
        """How the step ended, all its processes being gone."""
        result = None
        try:
            skeleton.write_scripts(self._root, self._spec["scripts"])
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            signal.signal(signal.SIGTERM, _end)
            try:
                fds = [self._root, self._channel.fileno(), *self._stdio, theirs.fileno()]
                first = start_step(self._hand, self._spec, fds)
                theirs.close()
                for fd in self._stdio[:2]:
                    os.close(fd)
                with contextlib.suppress(OSError):  # an old filter may not know it
                    pidfd = os.pidfd_open(first)
                    socket.send_fds(self._channel, [b"P"], [pidfd])
                    os.close(pidfd)
                sc.capset(CAPABILITIES & landlock.own_capabilities())
                result = self._serve(first, ours)
            except _Ended:
                pass
            finally:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                result = self._end_all(result)
        finally:
            os.close(self._stdio[2])
            os.close(self._root)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return result

    def _serve(self, first: int, starting: socket.socket) -> _Result | None:
        """Answer calls until the keeper says how the step ended; None if it cannot. Raises _Ended."""
        processes = Processes(self._path, first, self._keeper)
        answers = Answers(self._spec, self._root, self._path, processes, self._stdio[2])
        poll = select.poll()
        poll.register(self._hand.fileno(), select.POLLIN)
        poll.register(starting.fileno(), select.POLLIN)
        poll.register(self._channel.fileno(), select.POLLHUP | select.POLLRDHUP)
        listening = -1
        step: Callable[[], None] = lambda: None  # noqa: E731
        while True:
            for fd, _event in poll.poll():
                if fd == listening:
                    step()
                elif fd == self._hand.fileno():
                    answers.close()
                    if listening >= 0:
                        os.close(listening)
                    return self._result()
                elif fd == starting.fileno():
                    poll.unregister(fd)
                    _message, fds, _flags, _address = socket.recv_fds(starting, 1, 1)
                    starting.close()
                    if fds:  # else it says on its channel why it has not started
                        listening = fds[0]
                        poll.register(listening, select.POLLIN)
                        step = answers.to(Listener(listening))
                else:
                    raise _Ended

    def _result(self) -> _Result | None:
        answer = self._hand.recv(RESULT.size, socket.MSG_WAITALL)
        if len(answer) < RESULT.size:
            return None
        status, user, system, peak, goes_on = RESULT.unpack(answer)
        return status, user, system, peak, goes_on

    def _end_all(self, result: _Result | None) -> _Result:
        """See that no process of the step is left. Raises StepError where one is."""
        if result is None:
            with contextlib.suppress(OSError):
                self._hand.sendall(b"K")
                if select.select([self._hand], [], [], _PATIENCE)[0]:
                    result = self._result()
        if result is not None and result[4]:
            return result
        deadline, pause = time.monotonic() + _PATIENCE, 0.0005
        while not _all_gone():
            if time.monotonic() > deadline:
                raise StepError("processes of the step could not be ended")
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
            if pause < 0.01:
                continue
            # Without scopes of Landlock the keeper cannot tell them from others: one by one.
            left = landlock.descendants()
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in left:
                    with contextlib.suppress(OSError):
                        os.kill(pid, number)
        return result or (signal.SIGKILL, 0.0, 0.0, 0, False)


def _all_gone() -> bool:
    """Return whether no process is left: those of the step, and its keeper, are our descendants."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return False
    return True
