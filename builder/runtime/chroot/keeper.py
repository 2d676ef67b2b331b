"""The keeper of chrooted steps: it starts each inside its own Landlock domain, and ends all of it.

It is forked ahead by the supervisor, and waits. The step's processes are below it, orphans too, and in a
domain inside its own: it can signal them, they cannot signal it. It kills them all at once when the first has
ended, when the supervisor says so, and when the supervisor was killed. All its steps have one root and one
network; when one has ended, the process that becomes the next is forked and waits.

    in    a spec with descriptors (root, channel, stdin, stdout, stderr, way to the supervisor)
    out   the step's pid; later its wait status, seconds of CPU time (user, system), most memory in bytes,
          and whether all its processes are gone and the keeper waits for another step
    in    another spec; while a step runs anything, or the end: it is no longer wanted
"""

import contextlib
import os
import select
import signal
import socket
import struct
import time

from builder.runtime import syscalls as sc
from builder.runtime.chroot import landlock
from builder.runtime.chroot.notify import program
from builder.runtime.container import init
from builder.runtime.container.seccomp import program as base_program
from builder.runtime.launcher.protocol import receive_spec, send_spec
from builder.runtime.spec import CAP_SYS_CHROOT, DEFAULT_PATH, ContainerSpec, StepError

STARTED, RESULT = struct.Struct("=i"), struct.Struct("=iddQ?")
_MACHINE = os.uname().machine
_PATIENCE = 2.0  # seconds for killed processes to be gone
_DESCRIPTORS = 6


def start_step(handle: socket.socket, spec: ContainerSpec, fds: list[int]) -> int:
    """Have the keeper at *handle* start a step; the pid of its first process. Raises OSError."""
    send_spec(handle, spec, fds)
    answer = handle.recv(STARTED.size, socket.MSG_WAITALL)
    if len(answer) < STARTED.size:
        raise OSError("the process that keeps a step has ended")
    pid: int = STARTED.unpack(answer)[0]
    return pid


def keep(handle: socket.socket) -> None:
    """Wait on *handle* for steps, start each and end it; never returns."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the supervisor says when
        os.setsid()
        sc.prctl(sc.PR_SET_CHILD_SUBREAPER, 1)
        keeper = _Keeper(socket.socket(fileno=sc.keep_only([handle.detach()])[0]))
        while keeper.serve():
            pass
    except OSError:
        pass  # the supervisor is gone
    finally:
        os._exit(0)


class _Keeper:
    """The keeper's state, from one step to the next."""

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
            self._capabilities = landlock.own_capabilities()
            if not landlock.restrict(self._root, spec["frame"]["network"]):
                self._capabilities &= ~CAP_SYS_CHROOT  # nothing else would hold who leaves by it
        first, feed = self._next or self._fork()
        self._next = None
        with contextlib.suppress(BrokenPipeError):  # it was killed: that is its result
            send_spec(feed, spec, fds)
        feed.close()
        for fd in fds:
            os.close(fd)
        self._handle.sendall(STARTED.pack(first))
        status, user, system, peak, all_gone = self._follow(first)
        self._handle.sendall(RESULT.pack(status, user, system, peak, all_gone))
        if all_gone:
            self._next = self._fork()
        return all_gone

    def _fork(self) -> tuple[int, socket.socket]:
        """A process in the root that waits for its step: its pid, and the way to it."""
        feed, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        pid = os.fork()
        if pid == 0:
            feed.close()
            self._handle.close()
            _wait_and_start(theirs, self._root, self._capabilities)
        theirs.close()
        return pid, feed

    def _follow(self, first: int) -> tuple[int, float, float, int, bool]:
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
        return (signal.SIGKILL if status < 0 else status), user, system, peak, all_gone and wanted


def _wait_and_start(feed: socket.socket, root: int, most: int) -> None:
    """Enter the folder *root*, wait on *feed* for what to run there, and become it; returns never.

    *most* are the capabilities that a step may have at most.
    """
    failure = ""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        with contextlib.suppress(OSError):  # the filter of the container we are in may say no
            sc.join_session_keyring()
        os.fchdir(root)
        os.chroot(b".")
        landlock.restrict_inside()
        sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
    except Exception as error:  # to be told to who asks for this step
        failure = init.words(error)
    received = receive_spec(feed, _DESCRIPTORS)
    if received is None:
        os._exit(0)
    spec, (_root, channel, *stdio, supervisor) = received
    init.report_to(channel)
    try:
        if not failure:
            _start(spec, root, channel, stdio, supervisor, spec["capabilities"] & most)
    except BaseException as error:
        failure = init.words(error)
    init.give_up(failure)


def _start(
    spec: ContainerSpec, root: int, channel: int, stdio: list[int], supervisor: int, capabilities: int
) -> None:
    """Become the step; returns never."""
    network, code = spec["frame"]["network"], b""
    if spec["filtered"]:
        any_socketcall = spec["any_socketcall"] and network != "none"
        # Who has not the capability to chroot is told so by the supervisor.
        code = base_program(_MACHINE, spec["capabilities"] | CAP_SYS_CHROOT, any_socketcall)
        if not code:
            what = f"there is no filter of system calls for {_MACHINE} (pybuild doctor says more)"
            raise StepError(what)
    uid, gid, groups, home = init.find_user(root, spec["user"])
    if code:
        sc.set_seccomp_filter(code)
    fixed = any(read_only for *_, read_only in spec["placed"])
    chroots = bool(capabilities & CAP_SYS_CHROOT)
    listener = sc.set_seccomp_listener(program(_MACHINE, network != "none", fixed, chroots))
    socket.send_fds(socket.socket(fileno=supervisor), [b"L"], [listener])
    init.keep_only(channel, [_own_null(stdio[0]), *stdio[1:]])
    init.change_directory(spec["cwd"], uid, gid)
    init.limit(spec["rlimits"])
    init.become(uid, gid, groups, capabilities)
    env = dict(spec["env"])
    env.setdefault(b"HOME", home)
    env.setdefault(b"PATH", DEFAULT_PATH)
    init.wait_for_clock(spec["not_before"])
    init.execute(spec["argv"], env)


def _own_null(fd: int) -> int:
    """The root's own null device for this machine's, of which root of a step could change the mode."""
    found = os.fstat(fd)
    if found.st_rdev == os.makedev(1, 3):
        with contextlib.suppress(OSError):
            return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    return fd
