"""The keeper of a chrooted step: it starts the step inside its own Landlock domain, and ends all of it.

It is forked ahead by the supervisor, and waits. The step's processes are below it, orphans too, and in a
domain inside its own: it can signal them, they cannot signal it. It kills them all at once when the first has
ended, when the supervisor says so, and when the supervisor was killed.

    in    the length of the spec, with descriptors (root, channel, stdin, stdout, stderr, way to the
          supervisor), and the spec
    out   the step's pid; later its wait status, seconds of CPU time (user, system) and most memory in bytes
    in    anything, or the end: the step is no longer wanted
"""

import contextlib
import marshal
import os
import select
import signal
import socket
import struct
import time

from builder.runtime import init
from builder.runtime import syscalls as sc
from builder.runtime.chroot import confine
from builder.runtime.chroot.notify import program
from builder.runtime.seccomp import program as base_program
from builder.runtime.spec import DEFAULT_PATH, ContainerSpec, StepError

STARTED, RESULT = struct.Struct("=i"), struct.Struct("=iddQ")
_MACHINE = os.uname().machine
_PATIENCE = 2.0  # seconds for killed processes to be gone
_DESCRIPTORS = 6


def send_step(handle: socket.socket, spec: ContainerSpec, fds: list[int]) -> int:
    """Have the keeper at *handle* start a step; the pid of its first process. Raises OSError."""
    data = marshal.dumps(dict(spec))
    socket.send_fds(handle, [len(data).to_bytes(4, "big")], fds)
    handle.sendall(data)
    answer = handle.recv(STARTED.size, socket.MSG_WAITALL)
    if len(answer) < STARTED.size:
        raise OSError("the process that keeps a step has ended")
    pid: int = STARTED.unpack(answer)[0]
    return pid


def keep(handle: socket.socket) -> None:
    """Wait on *handle* for a step, start it and end it; never returns."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the supervisor says when
        os.setsid()
        sc.prctl(sc.PR_SET_CHILD_SUBREAPER, 1)
        handle = socket.socket(fileno=sc.keep_only([handle.detach()])[0])
        head, fds, _flags, _address = socket.recv_fds(handle, 4, _DESCRIPTORS)
        if len(head) < 4 or len(fds) < _DESCRIPTORS:
            os._exit(0)
        size, data = int.from_bytes(head, "big"), b""
        while len(data) < size and (more := handle.recv(size - len(data))):
            data += more
        spec: ContainerSpec = marshal.loads(data)
        capabilities = spec["capabilities"] & confine.own_capabilities()
        if not confine.restrict(fds[0], spec["frame"]["network"]):
            capabilities &= ~confine.CHROOT  # nothing else would hold who leaves by it
        first = os.fork()
        if first == 0:
            handle.close()
            _start(spec, fds[0], fds[1], fds[2:5], fds[5], capabilities)
        for fd in fds:
            os.close(fd)
        handle.sendall(STARTED.pack(first))
        result = _follow(handle, first)
        handle.sendall(RESULT.pack(*result))
    except OSError:
        pass  # the supervisor is gone
    finally:
        os._exit(0)


def _follow(handle: socket.socket, first: int) -> tuple[int, float, float, int]:
    """Wait for the end of the first process, or of the supervisor, and end all others."""
    wake, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    status, user, system, peak = -1, 0.0, 0.0, 0

    def reap() -> bool:
        """Take note of processes that have ended; whether none is left."""
        nonlocal status, user, system, peak
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 4096)
        try:
            while (found := os.wait4(-1, os.WNOHANG))[0]:
                user, system = user + found[2].ru_utime, system + found[2].ru_stime
                peak = max(peak, found[2].ru_maxrss << 10)
                if found[0] == first:
                    status = found[1]
        except ChildProcessError:
            return True
        return False

    poll = select.poll()
    poll.register(handle.fileno(), select.POLLIN)
    poll.register(wake, select.POLLIN)
    while not reap() and status < 0:
        if any(fd == handle.fileno() for fd, _event in poll.poll()):
            break
    deadline = time.monotonic() + _PATIENCE
    while not reap() and time.monotonic() < deadline:
        if confine.has_scopes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)  # as far as Landlock lets it reach
        select.select([wake], [], [], 0.01)
    return (signal.SIGKILL if status < 0 else status), user, system, peak


def _start(
    spec: ContainerSpec, root: int, channel: int, stdio: list[int], supervisor: int, capabilities: int
) -> None:
    """Become the step; returns never."""
    init.report_to(channel)
    failure = ""
    try:
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        with contextlib.suppress(OSError):  # the filter of the container we are in may say no
            sc.join_session_keyring()
        network, code = spec["frame"]["network"], b""
        if spec["filtered"]:
            any_socketcall = spec["any_socketcall"] and network != "none"
            # Who has not the capability to chroot is told so by the supervisor.
            code = base_program(_MACHINE, spec["capabilities"] | confine.CHROOT, any_socketcall)
            if not code:
                what = f"there is no filter of system calls for {_MACHINE} (pybuild doctor says more)"
                raise StepError(what)
        uid, gid, groups, home = init.find_user(root, spec["user"])
        os.fchdir(root)
        os.chroot(b".")
        confine.restrict_inside()
        sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
        if code:
            sc.set_seccomp_filter(code)
        fixed = any(read_only for *_, read_only in spec["placed"])
        chroots = bool(capabilities & confine.CHROOT)
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
    except BaseException as error:
        failure = init.words(error)
    init.give_up(failure)


def _own_null(fd: int) -> int:
    """The root's own null device for this machine's, of which root of a step could change the mode."""
    found = os.fstat(fd)
    if found.st_rdev == os.makedev(1, 3):
        with contextlib.suppress(OSError):
            return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    return fd
