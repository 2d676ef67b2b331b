"""The reaper of chrooted steps: it starts each inside its own Landlock domain, and ends all of its processes.

It is forked ahead by the supervisor, and waits. The step's processes are below it, orphans too, and in a
domain inside its own: it can signal them, they cannot signal it. It kills them all at once when the first has
ended, when the supervisor says so, and when the supervisor was killed. All its steps have one root and one
network. When one has ended, the process that becomes the next is forked and waits.

    in    a spec with descriptors (root, channel, stdin, stdout, stderr, way to the supervisor)
    out   the pid of the step's first process, in 4 bytes; later ``Result``
    in    another spec; while a step runs, anything, or the end: the step is no longer wanted
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import time
from typing import TYPE_CHECKING, NamedTuple, NoReturn, assert_never

from builder.runtime import syscalls as sc
from builder.runtime.chroot import landlock, process_tree
from builder.runtime.chroot.notify import program
from builder.runtime.container import operations as op
from builder.runtime.container.order import chroot_frame_operations, chroot_operations
from builder.runtime.container.process import Process
from builder.runtime.launcher.protocol import give_up, receive_spec, send_spec
from builder.runtime.spec import CAP_SYS_CHROOT

if TYPE_CHECKING:
    from builder.runtime.container.operations import ChrootOperation, ProcessOperation

_MACHINE = os.uname().machine
_PATIENCE = 2.0  # seconds for killed processes to be gone
_DESCRIPTORS = 6


RESULT = struct.Struct("=iddQ?")  # a ``Result``


class Result(NamedTuple):
    """How a step ended: wait status, seconds of CPU time, most memory in bytes.

    ``goes_on``: all its processes are gone, and the reaper waits for another step.
    """

    status: int
    user: float
    system: float
    peak: int
    goes_on: bool


def reap_steps(handle: socket.socket) -> NoReturn:
    """Wait on *handle* for steps, start each and end it."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the supervisor says when
        os.setsid()
        sc.prctl(sc.PR_SET_CHILD_SUBREAPER, 1)
        reaper = _Reaper(socket.socket(fileno=sc.keep_only([handle.detach()])[0]))
        while reaper.serve():
            pass
    except OSError:
        pass  # the supervisor is gone
    finally:
        os._exit(0)


class _Reaper:
    """The reaper's state, from one step to the next."""

    def __init__(self, handle: socket.socket) -> None:
        self._handle = handle
        self._wake, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        self._poll = select.poll()
        self._poll.register(handle.fileno(), select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)
        self._capabilities = 0  # what a step may have at most; known with the first
        self._root = -1
        self._next: tuple[int, socket.socket] | None = None  # the process that becomes the next step

    def serve(self) -> bool:
        """Wait for one step, start it and end it; whether there may be another. Raises OSError."""
        received = receive_spec(self._handle, _DESCRIPTORS)
        if received is None:
            return False
        spec, fds = received
        if self._root < 0:
            self._root = os.dup(fds[0])
            self._capabilities = process_tree.own_capabilities()
            if not landlock.restrict(self._root, spec["frame"]["network"]):
                self._capabilities &= ~CAP_SYS_CHROOT  # nothing else would hold a process that leaves by it
        first, feed = self._next or self._fork()
        self._next = None
        with contextlib.suppress(BrokenPipeError):  # it was killed: that is its result
            send_spec(feed, spec, fds)
        feed.close()
        for fd in fds:
            os.close(fd)
        self._handle.sendall(first.to_bytes(4, "little"))
        result = self._follow(first)
        self._handle.sendall(RESULT.pack(*result))
        if result.goes_on:
            self._next = self._fork()
        return result.goes_on

    def _fork(self) -> tuple[int, socket.socket]:
        """Fork a process in the root that waits for its step; its pid, and the way to it."""
        feed, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        pid = os.fork()
        if pid == 0:
            feed.close()
            self._handle.close()
            _wait_and_start(theirs, self._root, self._capabilities)
        theirs.close()
        return pid, feed

    def _follow(self, first: int) -> Result:
        """Wait for the end of the first process, or of the supervisor, and end all others."""
        status, user, system, peak = -1, 0.0, 0.0, 0

        def reap() -> bool:
            """Take note of processes that have ended; whether none is left."""
            nonlocal status, user, system, peak
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
            try:
                while (found := os.wait4(-1, os.WNOHANG))[0]:
                    user, system = user + found[2].ru_utime, system + found[2].ru_stime
                    peak = max(peak, found[2].ru_maxrss << 10)
                    if found[0] == first:
                        status = found[1]
            except ChildProcessError:
                return True
            return False

        wanted = True
        while not reap() and status < 0 and wanted:
            wanted = all(fd != self._handle.fileno() for fd, _event in self._poll.poll())
        deadline, all_gone = time.monotonic() + _PATIENCE, False
        while not (all_gone := reap()) and time.monotonic() < deadline:
            if landlock.has_scopes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGKILL)  # as far as Landlock lets it reach
            select.select([self._wake], [], [], 0.01)
        return Result(signal.SIGKILL if status < 0 else status, user, system, peak, all_gone and wanted)


def _wait_and_start(feed: socket.socket, root: int, held: int) -> NoReturn:
    """Enter the directory *root*, wait on *feed* for a step, and become it.

    It has *held* capabilities at most.
    """
    failure = None
    waiting = _ChrootedStep(Process(-1, [], root), -1)
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        waiting.apply(chroot_frame_operations())
    except Exception as error:  # reported to the step that comes
        failure = error
    received = receive_spec(feed, _DESCRIPTORS)
    if received is None:
        os._exit(0)
    spec, (_root, channel, stdin, stdout, stderr, supervisor) = received
    process = Process(channel, [_own_null(stdin), stdout, stderr], root)
    try:
        if failure is not None:
            raise failure
        _ChrootedStep(process, supervisor).apply(chroot_operations(spec, held))
    except BaseException as error:
        give_up(process.channel, error)
    os._exit(125)


class _ChrootedStep:
    """A step whose root is a directory, in the namespaces of the machine."""

    def __init__(self, process: Process, supervisor: int) -> None:
        """*supervisor* is a socket to the supervisor."""
        self._process = process
        self._supervisor = supervisor

    def apply(self, operations: list[ChrootOperation | ProcessOperation]) -> None:
        """Apply *operations* in order; the last of a step executes the command.

        Raises SetupError and OSError.
        """
        for operation in operations:
            match operation:
                case op.EnterChroot() | op.RestrictScope() | op.Listen():
                    self._apply(operation)
                case _:
                    self._process.apply(operation)

    def _apply(self, operation: ChrootOperation) -> None:
        match operation:
            case op.EnterChroot():
                os.setsid()
                with contextlib.suppress(OSError):  # the filter of an outer container may forbid it
                    sc.join_session_keyring()
                os.fchdir(self._process.root)
                os.chroot(b".")
            case op.RestrictScope():
                landlock.restrict_inside()
            case op.Listen(internet, changes, chroots):
                listener = sc.set_seccomp_listener(program(_MACHINE, internet, changes, chroots))
                socket.send_fds(socket.socket(fileno=self._supervisor), [b"L"], [listener])
            case _:
                assert_never(operation)


def _own_null(fd: int) -> int:
    """Return the null device of the root instead of the machine's: root of a step could change its mode."""
    found = os.fstat(fd)
    if found.st_rdev == os.makedev(1, 3):
        with contextlib.suppress(OSError):
            return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    return fd
