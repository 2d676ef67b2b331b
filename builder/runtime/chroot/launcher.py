"""The launcher where no namespace can be made: it forks a supervisor for each step, and ends them all.

It speaks as ``builder.runtime.launcher`` does, on the same two kinds of sockets.
One supervisor is forked ahead.
"""

import contextlib
import marshal
import os
import select
import signal
import socket
import time

from builder.runtime import syscalls as sc
from builder.runtime.cgroups import CgroupError, Group, Hierarchies, find
from builder.runtime.chroot import confine
from builder.runtime.chroot.notify import program
from builder.runtime.chroot.supervisor import wait_and_supervise
from builder.runtime.launcher import read_spec, refuse
from builder.runtime.seccomp import program as base_program
from builder.runtime.spec import CAPABILITIES, ContainerSpec

_PATIENCE = 2.5  # seconds that a supervisor has to end its step in
_NO_DEVICES = b"--device needs namespaces, which this container forbids (pybuild doctor says more)"


def serve(control: socket.socket, store: str, session: str) -> None:
    """Serve requests until the builder closes *control*; never returns.

    *session* is the folder below *store* that the roots of this build's steps are in.
    """
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    sc.prctl(sc.PR_SET_CHILD_SUBREAPER, 1)
    sc.prctl(sc.PR_SET_DUMPABLE, 0)
    _Launcher(control, os.fsencode(store), session).loop()


class _Launcher:
    """The supervisors that run, each with its cgroup."""

    def __init__(self, control: socket.socket, store: bytes, session: str) -> None:
        self._control = control
        self._store = store
        self._session = session
        self._supervisors: dict[int, Group] = {}
        self._spare: tuple[int, socket.socket] | None = None  # made while a step runs
        self._made = 0
        self._cgroups: dict[bytes, Hierarchies] = {}  # by the parent that the command line names
        for internet in (True, False):  # made once, as they take longer than a small step
            program(os.uname().machine, internet, False, False)
        base_program(os.uname().machine, CAPABILITIES, False)
        self._wake, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)

    def loop(self) -> None:
        poll = select.poll()
        poll.register(self._control.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            for fd, _event in poll.poll():
                if fd == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake, 4096)
                    self._reap()
                else:
                    self._request()

    def _request(self) -> None:
        message, fds, _flags, _address = socket.recv_fds(self._control, 1, 4)
        if not message:
            self._end()
        channel = socket.socket(fileno=fds[0])
        try:
            spec = read_spec(channel)
            group = self._group(spec)
        except (OSError, CgroupError) as error:
            if isinstance(error, CgroupError):
                refuse(channel, b"E", str(error).encode("utf-8", "replace"))
            for fd in fds[1:4]:
                os.close(fd)
            channel.close()
            return
        if group is None:
            pid, feed = self._spare or self._fork(ahead=True)
            self._spare = None
        else:  # it enters its cgroup before it forks anything
            pid, feed = self._fork(ahead=False)
            self._supervisors[pid] = group
        try:
            if group is not None:
                group.enter(pid, into_v2=True)
            data = marshal.dumps(dict(spec))
            socket.send_fds(feed, [len(data).to_bytes(4, "big")], fds)
            feed.sendall(data)
        except CgroupError as error:
            refuse(channel, b"E", str(error).encode("utf-8", "replace"))
        except OSError:
            refuse(channel, b"E", b"the supervisor of the step has ended")
        feed.close()
        for fd in fds[1:4]:
            os.close(fd)
        channel.close()
        if message == b"R" and self._spare is None:
            self._spare = self._fork(ahead=True)

    def _fork(self, ahead: bool) -> tuple[int, socket.socket]:
        """A supervisor that waits for its step; its pid, and where it hears of it.

        *ahead* is whether it may fork its own helper before that.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        pid = os.fork()
        if pid == 0:
            ours.close()
            wait_and_supervise(theirs, self._store, self._session, ahead)
        theirs.close()
        self._supervisors[pid] = Group()
        return pid, ours

    def _group(self, spec: ContainerSpec) -> Group | None:
        """A cgroup for the step, if it has limits. Raises CgroupError where one cannot be had."""
        if spec["frame"]["devices"]:
            raise CgroupError(_NO_DEVICES.decode())
        parent = spec["frame"]["cgroup_parent"]
        if not parent and not spec["frame"]["limits"]:
            return None  # to move a process takes longer than a small step
        if parent not in self._cgroups:
            self._cgroups[parent] = find(parent)
            self._cgroups[parent].sweep()
        found = self._cgroups[parent]
        self._made += 1
        return found.make(b"%s-%d" % (found.prefix(), self._made), spec["frame"]["limits"])

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if (group := self._supervisors.pop(pid, None)) is not None:
                group.close()
                if status:
                    self._kill_orphans()

    def _kill_orphans(self) -> None:
        """End what a supervisor that was killed has left: it is our child then."""
        for pid in confine.children(os.getpid()):
            if pid not in self._supervisors:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def _end(self) -> None:
        """End every step and leave."""
        if self._spare is not None:
            self._spare[1].close()
        for pid in self._supervisors:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _PATIENCE
        while self._supervisors and time.monotonic() < deadline:
            select.select([self._wake], [], [], 0.1)
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
            self._reap()
        for pid in confine.descendants():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for group in self._supervisors.values():
            group.close()
        os._exit(0)
