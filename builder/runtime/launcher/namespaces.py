"""The launcher of steps in namespaces: it forks one container per request, by clone3.

It is forked from the builder before anything heavy is imported and never starts a thread, so clone3 is cheap
and safe.

Making namespaces, the mounts that every container has, and a network takes longer than a small step runs. So
while a step runs, the next container of the same frame is made ahead, as a child that waits for its spec.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import resource
import select
import signal
import socket
from typing import TYPE_CHECKING

from builder.runtime import syscalls as sc
from builder.runtime.container import init
from builder.runtime.container.cgroups import Group
from builder.runtime.container.seccomp import program
from builder.runtime.errors import CgroupError
from builder.runtime.id_maps import open_user_namespace, own_maps, shifted_maps, write_maps
from builder.runtime.launcher.protocol import EXITED, send_spec
from builder.runtime.launcher.server import Request, Server, Setting
from builder.runtime.launcher.volumes import open_volume
from builder.runtime.rootless import has_machines_root
from builder.runtime.spec import CAPABILITIES, CAPABILITY_NAMES, ID_SHIFT, FrameSpec
from cache.kernel import keeps_owners

if TYPE_CHECKING:
    from typing import TypeVar

    from builder.runtime.launcher.protocol import Refusal

    _Item = TypeVar("_Item", "_Container", "Request")

_NAMESPACES = (
    sc.CLONE_NEWUSER
    | sc.CLONE_NEWNS
    | sc.CLONE_NEWPID
    | sc.CLONE_NEWUTS
    | sc.CLONE_NEWIPC
    | sc.CLONE_NEWCGROUP
)
_SYS_ADMIN = 1 << CAPABILITY_NAMES.index("sys_admin")
_GUARDED = (
    b"root of a step has the number of this machine's own root here, so it gets no --security=insecure, no "
    b"--security-opt systempaths=unconfined and no CAP_SYS_ADMIN (pybuild doctor says what to change)"
)
_OOM_SCORE = 500  # a step is killed before this program when memory runs out


class _Container:
    """A child in its namespaces: waiting for a spec, or a running step with its channel."""

    def __init__(self, frame: FrameSpec, pid: int, pidfd: int, feed: socket.socket, group: Group) -> None:
        self.frame = frame
        self.pid = pid
        self.pidfd = pidfd
        self.feed = feed
        self.group = group
        self.channel: socket.socket | None = None
        self.address: list[bytes] = []
        self.warning = b""  # about its network, for the user

    def kill(self) -> None:
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


class NamespaceLauncher(Server):
    """The containers that run, wait for a spec, or wait for a network; and the steps that wait for them."""

    def __init__(self, control: socket.socket, network: socket.socket | None, setting: Setting) -> None:
        super().__init__(control, network, setting)
        self._store = os.open(setting.store, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._maps = shifted_maps() if setting.shift else own_maps()
        self._userns = open_user_namespace(self._maps) if setting.shift else -1
        self._guarded = has_machines_root()
        self._fake_owners = not keeps_owners()  # children remember the answer: /proc is out of their reach
        with open("/proc/self/oom_score_adj", "rb") as file:
            self._oom_score = max(_OOM_SCORE, int(file.read()))
        self._machine = os.uname().machine
        self._make_filter(CAPABILITIES, False)
        self._running: set[_Container] = set()
        self._waiting: list[Request] = []
        self._wiring: list[_Container] = []
        self._spare: list[_Container] = []
        if network is not None:
            self.watch(network.fileno(), self._wired)

    # -- requests --------------------------------------------------------------------------

    def begin(self, request: Request) -> None:
        """Give the step a prepared container, or make one."""
        spec, frame = request.spec, request.frame
        if self._guarded and (not frame["masked"] or spec["capabilities"] & _SYS_ADMIN):
            request.refuse(b"E", _GUARDED)
            return
        if spec["filtered"]:
            self._make_filter(spec["capabilities"], spec["any_socketcall"])
        if frame["network"] == "default" and self.network is None:
            request.refuse(b"N", b"this build was started without a network helper")
            return
        self._waiting.append(request)
        if (spare := _first(self._spare, frame)) is not None:
            self._spare.remove(spare)
            self._give(spare)
        try:
            while _count(self._waiting, frame) > _count(self._wiring, frame):
                self._make(frame)
        except (OSError, CgroupError) as error:
            self._refuse(frame, b"E", _why(error))
            return
        ahead = _count(self._spare, frame) + _count(self._wiring, frame) - _count(self._waiting, frame)
        if request.more and ahead < 1:
            with contextlib.suppress(OSError, CgroupError):  # the step that needs it reports that
                self._make(frame)

    def _make_filter(self, capabilities: int, any_socketcall: bool) -> None:
        """Make the seccomp filter before the child is forked: it takes longer than all that a child does."""
        program(self._machine, capabilities, any_socketcall, self._fake_owners)

    def _make(self, frame: FrameSpec) -> None:
        """Make a container, and give it to a step that waits for one. Raises OSError and CgroupError."""
        if frame["network"] != "default":
            self._give(self._clone(frame))
            return
        if self.network is None:
            raise OSError(errno.EPIPE, "the network helper is gone")
        container = self._clone(frame)
        try:
            namespace = os.open(f"/proc/{container.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._discard(container)
            raise
        self._wiring.append(container)
        try:
            socket.send_fds(self.network, [b"W"], [namespace])
        except OSError:
            self._lose_network(b"the network helper is gone")
        finally:
            os.close(namespace)

    def _give(self, container: _Container) -> None:
        """Give the container to the step that has waited longest for one of its frame, or keep it."""
        request = _first(self._waiting, container.frame)
        if request is None:
            self._spare.append(container)
        else:
            self._waiting.remove(request)
            self._dispatch(container, request)

    def _refuse(self, frame: FrameSpec, kind: Refusal, why: bytes) -> None:
        """Refuse all steps that wait for a container of *frame*."""
        while (request := _first(self._waiting, frame)) is not None:
            self._waiting.remove(request)
            request.refuse(kind, why)

    def _wired(self) -> None:
        """Take the network helper's answer for the container that has waited longest."""
        assert self.network is not None
        answer = self.network.recv(4096)
        if not answer:
            self._lose_network(b"the network helper ended")
            return
        container = self._wiring.pop(0)
        if answer[:1] == b"A":
            address, _, container.warning = answer[1:].partition(b"\n")
            container.address = address.split()
            self._give(container)
            return
        self._discard(container)
        if (request := _first(self._waiting, container.frame)) is not None:
            self._waiting.remove(request)
            request.refuse(b"N", answer[1:])

    def _lose_network(self, why: bytes) -> None:
        assert self.network is not None
        self.forget(self.network.fileno())
        self.network.close()
        self.network = None
        for container in self._wiring:
            self._discard(container)
            self._refuse(container.frame, b"N", why)
        self._wiring = []

    # -- containers ------------------------------------------------------------------------

    def _clone(self, frame: FrameSpec) -> _Container:
        """Fork a child in new namespaces and a cgroup, with mapped ids. It prepares and waits for a spec.

        Raises OSError, and CgroupError if a limit cannot be set.
        """
        group = self.make_group(frame)
        nodes = -1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        flags = _NAMESPACES | (sc.CLONE_NEWNET if frame["network"] in ("none", "default") else 0)
        try:
            nodes = self._nodes(frame)
            pid, pidfd = sc.clone3(flags, group.fd)
            if pid == 0:
                ours.close()
                init.wait_and_run(theirs, frame, nodes)
        except OSError:
            group.close()
            raise
        finally:
            theirs.close()
            if nodes >= 0:
                os.close(nodes)
        container = _Container(frame, pid, pidfd, ours, group)
        try:
            write_maps(pid, self._maps)
            group.enter(pid)
            with open(f"/proc/{pid}/oom_score_adj", "wb", buffering=0) as file:
                file.write(b"%d" % self._oom_score)
            ours.send(b"G")
        except (OSError, CgroupError):
            self._discard(container)
            raise
        return container

    def _dispatch(self, container: _Container, request: Request) -> None:
        """Give a waiting child its spec, its descriptors and the store, and watch it."""
        try:
            tree = sc.open_tree(self._store, b"")
            if self._userns >= 0:
                sc.mount_setattr(tree, b"", sc.MOUNT_ATTR_IDMAP | sc.MOUNT_ATTR_NODEV, self._userns)
            else:
                sc.mount_setattr(tree, b"", sc.MOUNT_ATTR_NODEV)
            volumes = [open_volume(volume, self._userns) for volume in request.spec["volumes"]]
        except OSError as error:
            self._discard(container)
            what = f"mounting what a container is made of: {error.strerror or error}"
            request.refuse(b"E", what.encode("utf-8", "replace")[:4000])
            return
        _raise_limits(container.pid, request.spec["rlimits"])
        request.spec["address"] = container.address
        if container.warning:
            with contextlib.suppress(OSError):
                os.write(request.stdio[2], b"pybuild: warning: " + container.warning + b"\n")
        try:  # should this process die, the builder can still end the step
            socket.send_fds(request.channel, [b"P"], [container.pidfd])
        except OSError:
            pass  # nobody is listening any more
        try:
            send_spec(
                container.feed, request.spec, [tree, request.channel.fileno(), *request.stdio, *volumes]
            )
        except OSError:
            pass  # it died; its pidfd says so
        for fd in (tree, *volumes):
            os.close(fd)
        container.feed.close()
        request.close()
        container.channel = request.channel
        self._running.add(container)
        self.watch(container.pidfd, functools.partial(self._finish, container))
        self.watch(request.channel.fileno(), functools.partial(self._kill, container), select.POLLHUP)

    def _kill(self, container: _Container) -> None:
        """End a step that the builder no longer wants: it has hung up."""
        assert container.channel is not None  # it is running
        self._poll.modify(container.channel.fileno(), 0)
        container.kill()

    def _finish(self, container: _Container) -> None:
        assert container.channel is not None  # it is running
        self.forget(container.pidfd)
        self.forget(container.channel.fileno())
        self._running.remove(container)
        _pid, status, usage = os.wait4(container.pid, 0)
        group = container.group.usage()
        user, system = usage.ru_utime, usage.ru_stime
        if group.cpu_seconds > user + system:  # processes that nobody waited for are in it too
            system = group.cpu_seconds - user
        peak = group.peak or usage.ru_maxrss << 10
        try:
            container.channel.send(EXITED.pack(b"X", status, user, system, peak, group.oom_kills))
        except OSError:
            pass  # nobody is listening any more
        container.channel.close()
        os.close(container.pidfd)
        container.group.close()

    def _discard(self, container: _Container) -> None:
        container.kill()
        os.waitpid(container.pid, 0)
        os.close(container.pidfd)
        container.feed.close()
        container.group.close()

    def _nodes(self, frame: FrameSpec) -> int:
        """Return a mount that holds the step's own nodes of the devices it is given, -1 if it needs none.

        The machine's nodes belong to its root, which is nobody in the step. Only real root can make others.
        """
        if self._userns < 0 or not frame["devices"]:
            return -1
        nodes = sc.new_mount(b"tmpfs", sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NOEXEC, [(b"mode", b"0755")])
        for number, path in enumerate(frame["devices"].values()):
            name, found = b"%d" % number, os.stat(path)
            os.mknod(name, found.st_mode, found.st_rdev, dir_fd=nodes)
            os.chown(name, ID_SHIFT, ID_SHIFT, dir_fd=nodes)
            os.chmod(name, found.st_mode & 0o777, dir_fd=nodes)
        return nodes

    def end(self) -> None:
        """Kill every step; killing pid 1 of a pid namespace kills all that is in it."""
        containers = {*self._running, *self._wiring, *self._spare}
        for container in containers:
            container.kill()
        for container in containers:
            os.waitpid(container.pid, 0)
            container.group.close()


def _first(items: list[_Item], frame: FrameSpec) -> _Item | None:
    """Return the oldest of *items* with this frame."""
    return next((item for item in items if item.frame == frame), None)


def _count(items: list[_Item], frame: FrameSpec) -> int:
    return sum(item.frame == frame for item in items)


def _why(error: OSError | CgroupError) -> bytes:
    text = (
        str(error) if isinstance(error, CgroupError) else f"starting a container: {error.strerror or error}"
    )
    return text.encode("utf-8", "replace")[:4000]


def _raise_limits(pid: int, limits: dict[int, tuple[int, int]]) -> None:
    """Raise the hard limits of a child; if this fails, the child reports it."""
    for number, (_, hard) in limits.items():
        try:
            soft, highest = resource.prlimit(pid, number)
            if highest != resource.RLIM_INFINITY and (hard == resource.RLIM_INFINITY or hard > highest):
                resource.prlimit(pid, number, (soft, hard))
        except OSError:
            pass
