"""The launcher where no namespace can be made: it forks supervisors, gives them steps, and ends them all.

It speaks the protocol of ``builder.runtime.launcher.server``, on the same two kinds of sockets. One
supervisor is forked ahead. A supervisor whose step has ended gets the next step of the same root and network;
a step with limits gets a supervisor of its own, which is in the step's cgroup.
"""

import contextlib
import os
import select
import signal
import socket
import time

from builder.runtime import syscalls as sc
from builder.runtime.chroot import landlock
from builder.runtime.chroot.notify import program
from builder.runtime.chroot.supervisor import wait_and_supervise
from builder.runtime.container.cgroups import CgroupError, Group, Hierarchies, find
from builder.runtime.container.seccomp import program as base_program
from builder.runtime.launcher.protocol import receive_spec, refuse, send_spec
from builder.runtime.spec import CAPABILITIES, ContainerSpec

_PATIENCE = 2.5  # seconds that a supervisor has to end its step in
_MOST_IDLE = 4  # supervisors that wait for a step of their root
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


class _Supervisor:
    """A process that waits for a step, or has one."""

    def __init__(self, pid: int, feed: socket.socket) -> None:
        self.pid = pid
        self.feed = feed  # where it hears of steps, and says that it is idle
        self.group = Group()
        self.serves: tuple[bytes, str] = b"", ""  # the root and the network of its steps


class _Launcher:
    """The supervisors there are."""

    def __init__(self, control: socket.socket, store: bytes, session: str) -> None:
        self._control = control
        self._store = store
        self._session = session
        self._supervisors: dict[int, _Supervisor] = {}  # by pid
        self._feeds: dict[int, _Supervisor] = {}  # by the descriptor of their feed
        self._idle: list[_Supervisor] = []
        self._spare: _Supervisor | None = None  # made while a step runs
        self._made = 0
        self._cgroups: dict[bytes, Hierarchies] = {}  # by the parent that the command line names
        for internet in (True, False):  # made once, as they take longer than a small step
            program(os.uname().machine, internet, False, False)
        base_program(os.uname().machine, CAPABILITIES, False)
        self._wake, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        self._poll = select.poll()
        self._poll.register(control.fileno(), select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)

    def loop(self) -> None:
        while True:
            for fd, _event in self._poll.poll():
                if fd == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake, 4096)
                    self._reap()
                elif (supervisor := self._feeds.get(fd)) is not None:
                    self._hear(supervisor)
                elif fd == self._control.fileno():
                    self._request()

    def _request(self) -> None:
        message, fds, _flags, _address = socket.recv_fds(self._control, 1, 4)
        if not message:
            self._end()
        channel = socket.socket(fileno=fds[0])
        try:
            received = receive_spec(channel, 0)
            if received is not None:  # else the builder went away
                self._give(received[0], fds)
        except CgroupError as error:
            refuse(channel, b"E", str(error).encode("utf-8", "replace"))
        except OSError:
            refuse(channel, b"E", b"the supervisor of the step has ended")
        for fd in fds[1:4]:
            os.close(fd)
        channel.close()
        if message == b"R" and self._spare is None:
            self._spare = self._fork(ahead=True)

    def _give(self, spec: ContainerSpec, fds: list[int]) -> None:
        """Have a supervisor run a step. Raises CgroupError, and OSError where it has ended."""
        group = self._group(spec)
        if group is not None:  # it enters its cgroup before it forks anything
            supervisor = self._fork(ahead=False)
            supervisor.group = group
            try:
                group.enter(supervisor.pid, into_v2=True)
                send_spec(supervisor.feed, spec, fds)
            finally:
                self._forget(supervisor)
            return
        serves = spec["upper"], spec["frame"]["network"]
        found = next((idle for idle in self._idle if idle.serves == serves), None)
        if found is not None:
            self._idle.remove(found)
        else:
            found, self._spare = self._spare or self._fork(ahead=True), None
            found.serves = serves
        send_spec(found.feed, spec, fds)

    def _hear(self, supervisor: _Supervisor) -> None:
        """A supervisor's step has ended, or itself."""
        if not supervisor.feed.recv(1):
            self._forget(supervisor)
            return
        self._idle.append(supervisor)
        if len(self._idle) > _MOST_IDLE:
            self._forget(self._idle[0])

    def _forget(self, supervisor: _Supervisor) -> None:
        """Hang up: it ends, after the step that it has."""
        if supervisor in self._idle:
            self._idle.remove(supervisor)
        if self._feeds.pop(supervisor.feed.fileno(), None) is not None:
            self._poll.unregister(supervisor.feed.fileno())
            supervisor.feed.close()

    def _fork(self, ahead: bool) -> _Supervisor:
        """A supervisor that waits for its step. *ahead* is whether it may fork its own helper before that."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        pid = os.fork()
        if pid == 0:
            ours.close()
            wait_and_supervise(theirs, self._store, self._session, ahead)
        theirs.close()
        supervisor = _Supervisor(pid, ours)
        self._supervisors[pid] = self._feeds[ours.fileno()] = supervisor
        self._poll.register(ours.fileno(), select.POLLIN)
        return supervisor

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
            if (supervisor := self._supervisors.pop(pid, None)) is not None:
                self._forget(supervisor)
                supervisor.group.close()
                if status:
                    self._kill_orphans()

    def _kill_orphans(self) -> None:
        """End what a supervisor that was killed has left: it is our child then."""
        for pid in landlock.children(os.getpid()):
            if pid not in self._supervisors:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def _end(self) -> None:
        """End every step and leave."""
        for supervisor in list(self._feeds.values()):
            self._forget(supervisor)
        for pid in self._supervisors:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _PATIENCE
        while self._supervisors and time.monotonic() < deadline:
            select.select([self._wake], [], [], 0.1)
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
            self._reap()
        for pid in landlock.descendants():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for supervisor in self._supervisors.values():
            supervisor.group.close()
        os._exit(0)
