"""The launcher of steps in chroots, for machines where no namespace can be made.

It forks supervisors, gives them steps, and ends them all. One supervisor is forked ahead. A supervisor whose
step has ended gets the next step of the same root and network. A step with limits gets a supervisor of its
own, which is in the step's cgroup.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import socket
import time

from builder.runtime import syscalls as sc
from builder.runtime.chroot import process_tree
from builder.runtime.chroot.notify import program
from builder.runtime.chroot.supervisor import wait_and_supervise
from builder.runtime.container.cgroups import Group
from builder.runtime.container.seccomp import program as base_program
from builder.runtime.errors import CgroupError
from builder.runtime.launcher.protocol import send_spec
from builder.runtime.launcher.server import Request, Server, Setting
from builder.runtime.spec import CAPABILITIES, FrameSpec

_PATIENCE = 2.5  # seconds for a supervisor to end its step
_MOST_IDLE = 4  # supervisors that wait for a step of their root
_NO_DEVICES = b"--device needs namespaces, which this container forbids (pybuild doctor says more)"


class _Supervisor:
    """A process that waits for a step, or has one.

    ``feed`` carries steps to it, and reports that it is idle.
    """

    def __init__(self, pid: int, feed: socket.socket) -> None:
        self.pid = pid
        self.feed = feed
        self.group = Group()
        self.serves: tuple[bytes, str] | None = None  # the root and the network of its steps


class ChrootLauncher(Server):
    """The supervisors there are."""

    def __init__(self, control: socket.socket, network: socket.socket | None, setting: Setting) -> None:
        super().__init__(control, network, setting)
        sc.prctl(sc.PR_SET_CHILD_SUBREAPER, 1)
        sc.prctl(sc.PR_SET_DUMPABLE, 0)
        self._supervisors: dict[int, _Supervisor] = {}  # by pid
        self._idle: list[_Supervisor] = []
        self._spare: _Supervisor | None = None  # made while a step runs
        for internet in (True, False):  # made once, as they take longer than a small step
            program(os.uname().machine, internet, False, False)
        base_program(os.uname().machine, CAPABILITIES, False)
        self._wake, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        self.watch(self._wake, self._reap)

    def begin(self, request: Request) -> None:
        """Give the step to a supervisor."""
        if request.frame["devices"]:
            request.refuse(b"E", _NO_DEVICES)
            return
        try:
            self._give(request)
        except CgroupError as error:
            request.refuse(b"E", str(error).encode("utf-8", "replace"))
            return
        except OSError:
            request.refuse(b"E", b"the supervisor of the step has ended")
            return
        request.close()
        request.channel.close()
        if request.more and self._spare is None:
            self._spare = self._fork(ahead=True)

    def end(self) -> None:
        """End every step."""
        for supervisor in list(self._supervisors.values()):
            self._hang_up(supervisor)
        for pid in self._supervisors:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _PATIENCE
        while self._supervisors and time.monotonic() < deadline:
            select.select([self._wake], [], [], 0.1)
            self._reap()
        for pid in process_tree.descendants():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for supervisor in self._supervisors.values():
            supervisor.group.close()

    def _give(self, request: Request) -> None:
        """Have a supervisor run a step. Raises CgroupError, and OSError where it has ended."""
        spec, fds = request.spec, [request.channel.fileno(), *request.stdio]
        if _needs_group(request.frame):  # it enters its cgroup before it forks anything
            supervisor = self._fork(ahead=False)
            try:
                supervisor.group = self.make_group(request.frame)
                supervisor.group.enter(supervisor.pid, into_v2=True)
                send_spec(supervisor.feed, spec, fds)
            finally:
                self._hang_up(supervisor)
            return
        serves = spec["upper"], request.frame["network"]
        found = next((idle for idle in self._idle if idle.serves == serves), None)
        if found is not None:
            self._idle.remove(found)
        else:
            found, self._spare = self._spare or self._fork(ahead=True), None
            found.serves = serves
        send_spec(found.feed, spec, fds)

    def _heard(self, supervisor: _Supervisor) -> None:
        """Take note that a supervisor's step has ended, or the supervisor."""
        if not supervisor.feed.recv(1):
            self._hang_up(supervisor)
            return
        self._idle.append(supervisor)
        if len(self._idle) > _MOST_IDLE:
            self._hang_up(self._idle[0])

    def _hang_up(self, supervisor: _Supervisor) -> None:
        """Have a supervisor end, after the step that it has."""
        if supervisor in self._idle:
            self._idle.remove(supervisor)
        if supervisor.feed.fileno() >= 0:
            self.forget(supervisor.feed.fileno())
            supervisor.feed.close()

    def _fork(self, ahead: bool) -> _Supervisor:
        """Fork a supervisor that waits for its step; with *ahead* it may fork its own helper before that."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        pid = os.fork()
        if pid == 0:
            ours.close()
            store, session = os.fsencode(self.setting.store), self.setting.session
            wait_and_supervise(theirs, store, session or self.setting.store, ahead)
        theirs.close()
        supervisor = _Supervisor(pid, ours)
        self._supervisors[pid] = supervisor
        self.watch(ours.fileno(), functools.partial(self._heard, supervisor))
        return supervisor

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if (supervisor := self._supervisors.pop(pid, None)) is not None:
                self._hang_up(supervisor)
                supervisor.group.close()
                if status:
                    self._kill_orphans()

    def _kill_orphans(self) -> None:
        """End the processes that a killed supervisor left: they are children of this process then."""
        for pid in process_tree.children(os.getpid()):
            if pid not in self._supervisors:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)


def _needs_group(frame: FrameSpec) -> bool:
    """Return whether the step has limits.

    Others have no cgroup: to move a process takes longer than a small step.
    """
    return bool(frame["cgroup_parent"] or frame["limits"])
