"""The launcher: a lean, single-threaded process that forks one container per request.

It is forked from the builder before anything heavy is imported and never starts a thread,
so clone3 is cheap and safe. A request is one message on the control socket that carries
descriptors ``(channel, stdin, stdout, stderr)``; the spec follows on the channel, length
first. On the channel the builder then hears

    C        the namespaces exist (with the net namespace's descriptor when it needs wiring)
    E<text>  the step could not be started
    X<status><user s><system s>   it ended; always last

and answers ``G`` when the network is wired. Closing the channel kills the step; closing the
control socket kills all steps and ends the launcher.
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


class _Step:
    """One running container: its pid, pidfd and the channel to the builder."""

    def __init__(self, pid: int, pidfd: int, channel: socket.socket) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.channel = channel


def serve(control: socket.socket, store_path: str) -> None:
    """Serve requests until the builder closes *control*; never returns."""
    os.setsid()  # Ctrl-C at the terminal is the builder's to handle
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    store = os.open(store_path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    userns = _map_namespace()
    steps: dict[int, _Step] = {}  # by the descriptors polled: channel and pidfd of each step
    poll = select.poll()
    poll.register(control.fileno(), select.POLLIN)
    while True:
        for fd, _events in poll.poll():
            if fd == control.fileno():
                message, fds, _flags, _address = socket.recv_fds(control, 1, 4)
                if not message:
                    _end_all(steps)
                step = _start(fds, store, userns)
                if step is not None:
                    steps[step.pidfd] = steps[step.channel.fileno()] = step
                    poll.register(step.pidfd, select.POLLIN)
                    poll.register(step.channel.fileno(), select.POLLHUP)
            elif fd in steps:
                step = steps[fd]
                if fd == step.pidfd:
                    poll.unregister(step.pidfd)
                    poll.unregister(step.channel.fileno())
                    del steps[step.pidfd], steps[step.channel.fileno()]
                    _finish(step)
                else:  # the builder hung up: it no longer wants this step
                    poll.modify(fd, 0)
                    signal.pidfd_send_signal(step.pidfd, signal.SIGKILL)


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


def _start(fds: list[int], store: int, userns: int) -> _Step | None:
    """Fork one container from the descriptors of a request; None when that failed."""
    channel = socket.socket(fileno=fds[0])
    stdio = fds[1:4]
    try:
        spec = _read_spec(channel)
        tree = sc.open_tree(store, b"")
        sc.mount_setattr(tree, b"", sc.MOUNT_ATTR_IDMAP | sc.MOUNT_ATTR_NODEV, userns)
        mapped, mapping = os.pipe2(os.O_CLOEXEC)
        own_network = spec["network"] != "host"
        pid, pidfd = sc.clone3(_NAMESPACES | (sc.CLONE_NEWNET if own_network else 0))
        if pid == 0:
            os.close(mapping)
            init.report_on(channel.fileno())
            init.run(spec, tree, channel, mapped, stdio)
        try:
            _write_maps(pid)
            if spec["network"] == "default":
                network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                socket.send_fds(channel, [b"C"], [network])
                os.close(network)
            else:
                channel.send(b"C")
        except BrokenPipeError:
            pass  # the builder hung up already: the poll sees it and ends the step
        for fd in (tree, mapped, mapping):
            os.close(fd)
        return _Step(pid, pidfd, channel)
    except OSError as error:
        try:
            channel.send(b"E" + f"starting a container: {error.strerror or error}".encode())
            channel.send(EXITED.pack(b"X", 125 << 8, 0.0, 0.0))
        except OSError:
            pass
        channel.close()
        return None
    finally:
        for fd in stdio:
            os.close(fd)


def _read_spec(channel: socket.socket) -> ContainerSpec:
    size = int.from_bytes(channel.recv(4, socket.MSG_WAITALL), "big")
    data = channel.recv(size, socket.MSG_WAITALL)
    while len(data) < size:
        more = channel.recv(size - len(data), socket.MSG_WAITALL)
        if not more:
            raise OSError("the builder went away")
        data += more
    spec: ContainerSpec = marshal.loads(data)
    return spec


def _finish(step: _Step) -> None:
    _pid, status, usage = os.wait4(step.pid, 0)
    try:
        step.channel.send(EXITED.pack(b"X", status, usage.ru_utime, usage.ru_stime))
    except OSError:
        pass  # nobody is listening any more
    step.channel.close()
    os.close(step.pidfd)


def _end_all(steps: dict[int, _Step]) -> None:
    """Kill every step and leave; killing pid 1 of a pid namespace kills all that is in it."""
    for step in set(steps.values()):
        signal.pidfd_send_signal(step.pidfd, signal.SIGKILL)
        os.waitpid(step.pid, 0)
    os._exit(0)
