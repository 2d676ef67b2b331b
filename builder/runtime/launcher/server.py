"""The launcher: a lean, single-threaded process that forks one container per request.

It is forked from the builder before anything heavy is imported and never starts a thread,
so clone3 is cheap and safe. A request is one message on the control socket, ``L`` if it is the last
of the build, else ``R``, that carries descriptors ``(channel, stdin, stdout, stderr)``; the spec
follows on the channel, length first. On the channel the builder then hears

    P        with the pidfd of the container
    E<text>  the step could not be started (N<text>: because of its network)
    X<status><user s><system s><peak><kills>   it ended, always last: CPU time, the most memory it
             had in bytes, and how many of its processes the kernel killed for want of memory

Closing the channel kills the step; closing the control socket kills all steps and ends the
launcher.

Making namespaces, what is mounted in every container, and a network takes longer than a small step
runs, so while a step runs the next container of its frame is made ahead, as a child that waits for its
spec.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal
import socket
import stat

from builder.runtime import syscalls as sc
from builder.runtime.container import init
from builder.runtime.container.cgroups import CgroupError, Group, Hierarchies, find
from builder.runtime.container.seccomp import program
from builder.runtime.launcher.protocol import EXITED, receive_spec, refuse, send_spec
from builder.runtime.rootless import has_machines_root
from builder.runtime.spec import (
    CAPABILITIES,
    CAPABILITY_NAMES,
    ID_COUNT,
    ID_SHIFT,
    ContainerSpec,
    FrameSpec,
    VolumeSpec,
)
from cache.kernel import keeps_owners

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    _Item = TypeVar("_Item", "_Container", "_Request")

_NAMESPACES = (
    sc.CLONE_NEWUSER
    | sc.CLONE_NEWNS
    | sc.CLONE_NEWPID
    | sc.CLONE_NEWUTS
    | sc.CLONE_NEWIPC
    | sc.CLONE_NEWCGROUP
)
_MOUNTS = 1 << CAPABILITY_NAMES.index("sys_admin")
_GUARDED = (
    b"root of a step has the number of this machine's own root here, so it gets no --security=insecure, no "
    b"--security-opt systempaths=unconfined and no CAP_SYS_ADMIN (pybuild doctor says what to change)"
)
# File systems of the kernel's own, where ids cannot be mapped and need not be.
_OWNERLESS = {
    *(b"proc", b"sysfs", b"devtmpfs", b"devpts", b"mqueue", b"cgroup", b"cgroup2", b"securityfs", b"nsfs"),
    *(b"debugfs", b"tracefs", b"bpf", b"binfmt_misc", b"efivarfs", b"configfs", b"pstore", b"hugetlbfs"),
}
_OOM_SCORE = 500  # a step goes before this program when memory runs out


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
        self.note = b""  # what the user should know of its network

    def kill(self) -> None:
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


class _Request:
    """A step that waits for a container."""

    def __init__(self, channel: socket.socket, spec: ContainerSpec, stdio: list[int]) -> None:
        self.channel = channel
        self.spec = spec
        self.frame = spec["frame"]
        self.stdio = stdio

    def refuse(self, kind: bytes, message: bytes) -> None:
        """Answer that the step cannot be started."""
        refuse(self.channel, kind, message)
        self.close()
        self.channel.close()

    def close(self) -> None:
        for fd in self.stdio:
            os.close(fd)


def serve(control: socket.socket, store: str, network: socket.socket | None, shift: bool) -> None:
    """Serve requests until the builder closes *control*; never returns.

    *network* leads to the process that wires net namespaces (builder.runtime.network.setup). With
    *shift* ids of steps are shifted on the host (by root), else they are those of the user
    namespace that this process is in (builder.runtime.rootless).
    """
    os.setsid()  # Ctrl-C at the terminal is the builder's to handle
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    _Launcher(control, store, network, shift).loop()


class _Launcher:
    """The loop's state: who runs, who waits, what is being wired."""

    def __init__(
        self, control: socket.socket, store: str, network: socket.socket | None, shift: bool
    ) -> None:
        self._control = control
        self._network = network
        self._store = os.open(store, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._maps = _SHIFTED if shift else _own_maps()
        self._userns = self._map_namespace() if shift else -1
        self._guarded = has_machines_root()
        self._single = not keeps_owners()  # children remember the answer: /proc is out of their reach
        self._cgroups: dict[bytes, Hierarchies] = {}  # by the parent that the command line names
        self._made = 0
        with open("/proc/self/oom_score_adj", "rb") as file:
            self._oom_score = max(_OOM_SCORE, int(file.read()))
        self._machine = os.uname().machine
        self._make_filter(CAPABILITIES, False)
        self._running: dict[int, _Container] = {}  # by the descriptors polled: channel and pidfd
        self._waiting: list[_Request] = []
        self._wiring: list[_Container] = []
        self._spare: list[_Container] = []
        self._poll = select.poll()
        self._poll.register(control.fileno(), select.POLLIN)
        if network is not None:
            self._poll.register(network.fileno(), select.POLLIN)

    def loop(self) -> None:
        while True:
            for fd, _events in self._poll.poll():
                if fd == self._control.fileno():
                    self._request()
                elif self._network is not None and fd == self._network.fileno():
                    self._wired()
                elif fd in self._running:
                    container = self._running[fd]
                    if fd == container.pidfd:
                        self._finish(container)
                    else:  # the builder hung up: it no longer wants this step
                        self._poll.modify(fd, 0)
                        container.kill()

    # -- requests --------------------------------------------------------------------------

    def _request(self) -> None:
        message, fds, _flags, _address = socket.recv_fds(self._control, 1, 4)
        if not message:
            self._end()
        channel = socket.socket(fileno=fds[0])
        received = receive_spec(channel, 0)
        if received is None:  # the builder went away
            for fd in fds[1:4]:
                os.close(fd)
            channel.close()
            return
        request = _Request(channel, received[0], fds[1:4])
        spec, frame = request.spec, request.frame
        if self._guarded and (not frame["masked"] or spec["capabilities"] & _MOUNTS):
            request.refuse(b"E", _GUARDED)
            return
        if spec["filtered"]:
            self._make_filter(spec["capabilities"], spec["any_socketcall"])
        if frame["network"] == "default" and self._network is None:
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
        if message == b"R" and ahead < 1:
            with contextlib.suppress(OSError, CgroupError):  # it will be told to who asks for one
                self._make(frame)

    def _make_filter(self, capabilities: int, any_socketcall: bool) -> None:
        """Make the filter of system calls that children will find made: it takes longer than all they do."""
        program(self._machine, capabilities, any_socketcall, self._single)

    def _make(self, frame: FrameSpec) -> None:
        """Make a container, and give it to who waits for one. Raises OSError and CgroupError."""
        if frame["network"] != "default":
            self._give(self._clone(frame))
            return
        if self._network is None:
            raise OSError(errno.EPIPE, "the network helper is gone")
        container = self._clone(frame)
        try:
            namespace = os.open(f"/proc/{container.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._discard(container)
            raise
        self._wiring.append(container)
        try:
            socket.send_fds(self._network, [b"W"], [namespace])
        except OSError:
            self._lose_network(b"the network helper is gone")
        finally:
            os.close(namespace)

    def _give(self, container: _Container) -> None:
        """Have the container run what has waited longest for one of its frame, or keep it."""
        request = _first(self._waiting, container.frame)
        if request is None:
            self._spare.append(container)
        else:
            self._waiting.remove(request)
            self._dispatch(container, request)

    def _refuse(self, frame: FrameSpec, kind: bytes, why: bytes) -> None:
        """Answer all who wait for a container of *frame* that there is none."""
        while (request := _first(self._waiting, frame)) is not None:
            self._waiting.remove(request)
            request.refuse(kind, why)

    def _wired(self) -> None:
        """The network helper has answered for the container that has waited longest."""
        assert self._network is not None
        answer = self._network.recv(4096)
        if not answer:
            self._lose_network(b"the network helper ended")
            return
        container = self._wiring.pop(0)
        if answer[:1] == b"A":
            address, _, container.note = answer[1:].partition(b"\n")
            container.address = address.split()
            self._give(container)
            return
        self._discard(container)
        if (request := _first(self._waiting, container.frame)) is not None:
            self._waiting.remove(request)
            request.refuse(b"N", answer[1:])

    def _lose_network(self, why: bytes) -> None:
        assert self._network is not None
        self._poll.unregister(self._network.fileno())
        self._network.close()
        self._network = None
        for container in self._wiring:
            self._discard(container)
            self._refuse(container.frame, b"N", why)
        self._wiring = []

    # -- containers ------------------------------------------------------------------------

    def _clone(self, frame: FrameSpec) -> _Container:
        """A child in new namespaces and a cgroup, its ids mapped, that prepares and waits for a spec.

        Raises OSError, and CgroupError where a limit cannot be set.
        """
        group = self._group(frame)
        nodes: list[int] = []
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
            for fd in nodes:
                os.close(fd)
        container = _Container(frame, pid, pidfd, ours, group)
        try:
            self._write_maps(pid)
            group.enter(pid)
            with open(f"/proc/{pid}/oom_score_adj", "wb", buffering=0) as file:
                file.write(b"%d" % self._oom_score)
            ours.send(b"G")
        except (OSError, CgroupError):
            self._discard(container)
            raise
        return container

    def _group(self, frame: FrameSpec) -> Group:
        parent = frame["cgroup_parent"]
        if parent not in self._cgroups:
            self._cgroups[parent] = find(parent)
            self._cgroups[parent].sweep()
        self._made += 1
        name = b"%s-%d" % (self._cgroups[parent].prefix(), self._made)
        return self._cgroups[parent].make(name, frame["limits"])

    def _dispatch(self, container: _Container, request: _Request) -> None:
        """Give a waiting child its spec, its descriptors and the store, and watch it."""
        try:
            tree = sc.open_tree(self._store, b"")
            if self._userns >= 0:
                sc.mount_setattr(tree, b"", sc.MOUNT_ATTR_IDMAP | sc.MOUNT_ATTR_NODEV, self._userns)
            else:
                sc.mount_setattr(tree, b"", sc.MOUNT_ATTR_NODEV)
            volumes = [self._volume(volume) for volume in request.spec["volumes"]]
        except OSError as error:
            self._discard(container)
            what = f"mounting what a container is made of: {error.strerror or error}"
            request.refuse(b"E", what.encode("utf-8", "replace")[:4000])
            return
        _raise_limits(container.pid, request.spec["rlimits"])
        request.spec["fake_owners"] = self._single
        request.spec["address"] = container.address
        if container.note:
            with contextlib.suppress(OSError):
                os.write(request.stdio[2], b"pybuild: warning: " + container.note + b"\n")
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
        for fd, events in ((container.pidfd, select.POLLIN), (request.channel.fileno(), select.POLLHUP)):
            self._running[fd] = container
            self._poll.register(fd, events)

    def _finish(self, container: _Container) -> None:
        assert container.channel is not None  # it is running
        for fd in (container.pidfd, container.channel.fileno()):
            self._poll.unregister(fd)
            del self._running[fd]
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

    def _nodes(self, frame: FrameSpec) -> list[int]:
        """A mount that holds the step's own nodes of the devices it is given, as a list of one descriptor.

        Those of the host belong to its root, who is nobody in the step. Only real root can make others.
        """
        if self._userns < 0 or not frame["devices"]:
            return []
        nodes = sc.new_mount(b"tmpfs", sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NOEXEC, {b"mode": b"0755"})
        for number, path in enumerate(frame["devices"].values()):
            name, found = b"%d" % number, os.stat(path)
            os.mknod(name, found.st_mode, found.st_rdev, dir_fd=nodes)
            os.chown(name, ID_SHIFT, ID_SHIFT, dir_fd=nodes)
            os.chmod(name, found.st_mode & 0o777, dir_fd=nodes)
        return [nodes]

    def _volume(self, volume: VolumeSpec) -> int:
        """A mount of what is shown of this machine, whose owners are then those of the container's ids.

        Where no owner is anybody's, as in /proc and /dev, they stay as they are: nobody of the container. So
        do mounts inside it that cannot have others. A device can be used only where it is shown itself.
        """
        tree = sc.open_tree(sc.AT_FDCWD, volume["source"], recursive=True)
        try:
            found = os.fstat(tree)
            is_device = stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)
            flags = sc.MOUNT_ATTR_RDONLY if volume["read_only"] else 0
            if not is_device:
                flags |= sc.MOUNT_ATTR_NODEV
            if flags:
                sc.mount_setattr(tree, b"", flags, recursive=True)
            if self._userns >= 0:
                self._map_owners(tree, volume["source"], is_device)
        except OSError as error:
            os.close(tree)
            what = f"{os.fsdecode(volume['source'])} cannot be mounted with mapped ids"
            raise OSError(error.errno, f"{what}: {error.strerror}") from None
        return tree

    def _map_owners(self, tree: int, source: bytes, is_device: bool) -> None:
        """Give the owners in a mount, and in those inside it, the ids of containers. Raises OSError."""
        try:
            sc.mount_setattr(tree, b"", sc.MOUNT_ATTR_IDMAP, self._userns, recursive=True)
        except OSError:
            above, inside = _mounts_at(source)
            try:
                sc.mount_setattr(tree, b"", sc.MOUNT_ATTR_IDMAP, self._userns)
            except OSError:
                if not is_device and above not in _OWNERLESS:
                    raise
            for path in inside:
                with contextlib.suppress(OSError):
                    sc.mount_setattr(tree, path, sc.MOUNT_ATTR_IDMAP, self._userns)

    def _end(self) -> None:
        """Kill every step and leave; killing pid 1 of a pid namespace kills all that is in it."""
        containers = {*self._running.values(), *self._wiring, *self._spare}
        for container in containers:
            container.kill()
        for container in containers:
            os.waitpid(container.pid, 0)
            container.group.close()
        os._exit(0)

    # -- ids -------------------------------------------------------------------------------

    def _map_namespace(self) -> int:
        """A user namespace that carries the id map for idmapped mounts of the store."""
        own = os.getpid()
        pid, pidfd = sc.clone3(sc.CLONE_NEWUSER)
        if pid == 0:
            sc.wait_to_be_killed(own)
        try:
            self._write_maps(pid)
            return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(pidfd)

    def _write_maps(self, pid: int) -> None:
        for name, text in zip(("uid_map", "gid_map"), self._maps, strict=True):
            fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
            os.write(fd, text)
            os.close(fd)


def _mounts_at(path: bytes) -> tuple[bytes, list[bytes]]:
    """The type of the file system that *path* is on, and the paths below it where others are mounted."""
    kind, inside, longest = b"", [], -1
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields, _, rest = line.partition(b" - ")
            place = fields.split()[4].decode("unicode_escape").encode("latin-1")  # blanks are \\040 there
            top = place.rstrip(b"/")
            if path == place or path.startswith(top + b"/"):
                if len(top) >= longest:
                    kind, longest = rest.split()[0], len(top)
            elif place.startswith(path.rstrip(b"/") + b"/"):
                inside.append(place[len(path.rstrip(b"/")) + 1 :])
    return kind, inside


_SHIFTED = (b"0 %d %d" % (ID_SHIFT, ID_COUNT),) * 2


def _own_maps() -> tuple[bytes, bytes]:
    """The ids of the namespace we are in, as maps that change nothing."""
    out = []
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/self/{name}", "rb") as file:
            rows = [line.split() for line in file]
        out.append(b"\n".join(b"%s %s %s" % (first, first, count) for first, _, count in rows))
    return out[0], out[1]


def _first(items: list[_Item], frame: FrameSpec) -> _Item | None:
    """The one of *items* that has been there longest and is of *frame*."""
    return next((item for item in items if item.frame == frame), None)


def _count(items: list[_Item], frame: FrameSpec) -> int:
    return sum(item.frame == frame for item in items)


def _why(error: OSError | CgroupError) -> bytes:
    text = (
        str(error) if isinstance(error, CgroupError) else f"starting a container: {error.strerror or error}"
    )
    return text.encode("utf-8", "replace")[:4000]


def _raise_limits(pid: int, limits: dict[int, tuple[int, int]]) -> None:
    """Let a step have more than its parents may; where this fails, the step says so."""
    for number, (_, hard) in limits.items():
        try:
            soft, highest = resource.prlimit(pid, number)
            if highest != resource.RLIM_INFINITY and (hard == resource.RLIM_INFINITY or hard > highest):
                resource.prlimit(pid, number, (soft, hard))
        except OSError:
            pass
