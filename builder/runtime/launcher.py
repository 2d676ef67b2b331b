"""The launcher: a lean, single-threaded process that forks one container per request.

It is forked from the builder before anything heavy is imported and never starts a thread,
so clone3 is cheap and safe. A request is one message on the control socket that carries
descriptors ``(channel, stdin, stdout, stderr)``; the spec follows on the channel, length
first. On the channel the builder then hears

    P        with the pidfd of the container
    E<text>  the step could not be started (N<text>: because of its network)
    X<status><user s><system s>   it ended; always last

Closing the channel kills the step; closing the control socket kills all steps and ends the
launcher.

Making namespaces and wiring a network takes longer than a small step runs, so from the first
step with a network on, the next container is made and wired ahead, as a child that waits for
its spec.
"""

import marshal
import os
import select
import signal
import socket
import struct

from builder.runtime import init
from builder.runtime import syscalls as sc
from builder.runtime.spec import ID_COUNT, ID_SHIFT, ContainerSpec

_NAMESPACES = (
    sc.CLONE_NEWUSER
    | sc.CLONE_NEWNS
    | sc.CLONE_NEWPID
    | sc.CLONE_NEWUTS
    | sc.CLONE_NEWIPC
    | sc.CLONE_NEWCGROUP
)
EXITED = struct.Struct("=cidd")
_IDMAP_ADVICE = b"use a --root on ext4, xfs, btrfs or tmpfs"


class _Container:
    """A child in its namespaces: waiting for a spec, or a running step with its channel."""

    def __init__(self, pid: int, pidfd: int, feed: socket.socket) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.feed = feed
        self.channel: socket.socket | None = None

    def kill(self) -> None:
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


class _Request:
    """A step that waits for a container."""

    def __init__(self, channel: socket.socket, spec: ContainerSpec, stdio: list[int]) -> None:
        self.channel = channel
        self.spec = spec
        self.stdio = stdio

    def refuse(self, kind: bytes, message: bytes) -> None:
        """Answer that the step cannot be started."""
        try:
            self.channel.send(kind + message)
            self.channel.send(EXITED.pack(b"X", 125 << 8, 0.0, 0.0))
        except OSError:
            pass  # nobody is listening any more
        self.close()
        self.channel.close()

    def close(self) -> None:
        for fd in self.stdio:
            os.close(fd)


def serve(control: socket.socket, store: str, network: socket.socket | None) -> None:
    """Serve requests until the builder closes *control*; never returns.

    *network* leads to the process that wires net namespaces (builder.runtime.network).
    """
    os.setsid()  # Ctrl-C at the terminal is the builder's to handle
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    _Launcher(control, store, network).loop()


class _Launcher:
    """The loop's state: who runs, who waits, what is being wired."""

    def __init__(self, control: socket.socket, store: str, network: socket.socket | None) -> None:
        self._control = control
        self._network = network
        self._store = os.open(store, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._userns = _map_namespace()
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
        try:
            request = _Request(channel, _read_spec(channel), fds[1:4])
        except OSError:
            for fd in fds[1:4]:
                os.close(fd)
            channel.close()
            return
        if request.spec["network"] != "default":
            try:
                container = self._clone(request.spec["network"] != "host")
            except OSError as error:
                request.refuse(b"E", f"starting a container: {error.strerror or error}".encode())
            else:
                self._dispatch(container, request)
            return
        if self._network is None:
            request.refuse(b"N", b"this build was started without a network helper")
            return
        self._waiting.append(request)
        if self._spare:
            self._dispatch(self._spare.pop(), self._waiting.pop(0))
        self._make_ahead()

    def _make_ahead(self) -> None:
        """Have a container wired for each request that waits, and one for the next."""
        while len(self._wiring) < len(self._waiting) + 1 - len(self._spare):
            try:
                container = self._clone(True)
            except OSError as error:
                for request in self._waiting:
                    request.refuse(b"E", f"starting a container: {error.strerror or error}".encode())
                self._waiting.clear()
                return
            namespace = os.open(f"/proc/{container.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            self._wiring.append(container)
            assert self._network is not None  # or nothing would wait
            try:
                socket.send_fds(self._network, [b"W"], [namespace])
            except OSError:
                self._lose_network(b"the network helper is gone")
                return
            finally:
                os.close(namespace)

    def _wired(self) -> None:
        """The network helper has answered for the container that has waited longest."""
        assert self._network is not None
        answer = self._network.recv(4096)
        if not answer:
            self._lose_network(b"the network helper ended")
            return
        container = self._wiring.pop(0)
        if answer[:1] == b"A":
            if self._waiting:
                self._dispatch(container, self._waiting.pop(0))
            else:
                self._spare.append(container)
            return
        self._discard(container)
        if self._waiting:
            self._waiting.pop(0).refuse(b"N", answer[1:])

    def _lose_network(self, why: bytes) -> None:
        assert self._network is not None
        self._poll.unregister(self._network.fileno())
        self._network.close()
        self._network = None
        for container in self._wiring:
            self._discard(container)
        for request in self._waiting:
            request.refuse(b"N", why)
        self._wiring, self._waiting = [], []

    # -- containers ------------------------------------------------------------------------

    def _clone(self, own_network: bool) -> _Container:
        """A child in new namespaces, its ids mapped, waiting for a spec."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        pid, pidfd = sc.clone3(_NAMESPACES | (sc.CLONE_NEWNET if own_network else 0))
        if pid == 0:
            ours.close()
            init.wait_and_run(theirs)
        theirs.close()
        _write_maps(pid)
        return _Container(pid, pidfd, ours)

    def _dispatch(self, container: _Container, request: _Request) -> None:
        """Give a waiting child its spec, its descriptors and the store, and watch it."""
        try:
            tree = sc.open_tree(self._store, b"")
            sc.mount_setattr(tree, b"", sc.MOUNT_ATTR_IDMAP | sc.MOUNT_ATTR_NODEV, self._userns)
        except OSError as error:
            self._discard(container)
            why = f"mounting the store with mapped ids: {error.strerror}; "
            request.refuse(b"E", why.encode() + _IDMAP_ADVICE)
            return
        try:  # should this process die, the builder can still end the step
            socket.send_fds(request.channel, [b"P"], [container.pidfd])
        except OSError:
            pass  # nobody is listening any more
        data = marshal.dumps(dict(request.spec))
        try:
            fds = [tree, request.channel.fileno(), *request.stdio]
            socket.send_fds(container.feed, [len(data).to_bytes(4, "big")], fds)
            container.feed.sendall(data)
        except OSError:
            pass  # it died; its pidfd says so
        os.close(tree)
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
        try:
            container.channel.send(EXITED.pack(b"X", status, usage.ru_utime, usage.ru_stime))
        except OSError:
            pass  # nobody is listening any more
        container.channel.close()
        os.close(container.pidfd)

    def _discard(self, container: _Container) -> None:
        container.kill()
        os.waitpid(container.pid, 0)
        os.close(container.pidfd)
        container.feed.close()

    def _end(self) -> None:
        """Kill every step and leave; killing pid 1 of a pid namespace kills all that is in it."""
        containers = {*self._running.values(), *self._wiring, *self._spare}
        for container in containers:
            container.kill()
        for container in containers:
            os.waitpid(container.pid, 0)
        os._exit(0)


def _map_namespace() -> int:
    """A user namespace that carries the id map for idmapped mounts of the store."""
    pid, pidfd = sc.clone3(sc.CLONE_NEWUSER)
    if pid == 0:
        signal.pause()
        os._exit(0)
    _write_maps(pid)
    namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(pidfd)
    return namespace


def _write_maps(pid: int) -> None:
    for name in ("uid_map", "gid_map"):
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, b"0 %d %d" % (ID_SHIFT, ID_COUNT))
        os.close(fd)


def _read_spec(channel: socket.socket) -> ContainerSpec:
    size = int.from_bytes(channel.recv(4, socket.MSG_WAITALL), "big")
    data = b""
    while len(data) < size:
        more = channel.recv(size - len(data), socket.MSG_WAITALL)
        if not more:
            raise OSError("the builder went away")
        data += more
    spec: ContainerSpec = marshal.loads(data)
    return spec
