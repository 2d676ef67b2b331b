"""What the launchers of all ways to isolate steps have in common: one face, the control socket, the cgroups.

A request is one message on the control socket, ``L`` if it is the last of the build, otherwise ``R``, with
the descriptors ``(channel, stdin, stdout, stderr)``. The spec follows on the channel. On the channel the
builder then receives

    P        with a pidfd of the step's first process
    E<text>  the step could not be started (N<text>: because of its network)
    X...     it has ended, always last (``protocol.EXITED``)

Closing the channel kills the step. Closing the control socket kills all steps and ends the launcher.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from builder.runtime.container.cgroups import Group
from builder.runtime.container.hierarchies import Hierarchies, find
from builder.runtime.launcher.protocol import receive_spec, refuse

if TYPE_CHECKING:
    from collections.abc import Callable

    from builder.runtime.launcher.protocol import Refusal
    from builder.runtime.spec import ContainerSpec, FrameSpec


class Setting(NamedTuple):
    """Where a launcher works.

    With *shift*, ids of steps are shifted on the machine, as root can; otherwise they are those of the user
    namespace that this process is in. *session* is the directory with the roots of chrooted steps.
    """

    store: str
    shift: bool
    session: str | None


class Request:
    """A step that is to be started."""

    def __init__(self, channel: socket.socket, spec: ContainerSpec, stdio: list[int], more: bool) -> None:
        """*more* is whether other steps are expected after this one."""
        self.channel = channel
        self.spec = spec
        self.frame = spec["frame"]
        self.stdio = stdio
        self.more = more

    def refuse(self, kind: Refusal, message: bytes) -> None:
        """Answer that the step cannot be started: ``N`` because of its network, ``E`` for other reasons."""
        refuse(self.channel, kind, message)
        self.close()
        self.channel.close()

    def close(self) -> None:
        """Close standard input, output and error."""
        for fd in self.stdio:
            os.close(fd)


class Server:
    """A launcher: a lean process of one thread that starts steps until the builder closes *control*.

    A subclass says how a step is started, in ``begin``, and how all of them are ended, in ``end``.
    """

    def __init__(self, control: socket.socket, network: socket.socket | None, setting: Setting) -> None:
        """*network* leads to the process that connects net namespaces (``builder.runtime.network.setup``)."""
        os.setsid()  # Ctrl-C at the terminal is the builder's to handle
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        self.network = network
        self.setting = setting
        self._control = control
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._hierarchies: dict[bytes, Hierarchies] = {}  # by --cgroup-parent
        self._made = 0
        self.watch(control.fileno(), self._receive)

    def begin(self, request: Request) -> None:
        """Start a step, or refuse it."""
        raise NotImplementedError

    def end(self) -> None:
        """End every step, until no process of any is left."""
        raise NotImplementedError

    def serve(self) -> NoReturn:
        """Serve requests until the builder closes the control socket."""
        while True:
            for fd, _events in self._poll.poll():
                if (handler := self._handlers.get(fd)) is not None:
                    handler()

    def watch(self, fd: int, handler: Callable[[], None], events: int = select.POLLIN) -> None:
        """Call *handler* when there is one of *events* at *fd*."""
        self._handlers[fd] = handler
        self._poll.register(fd, events)

    def forget(self, fd: int) -> None:
        """Watch *fd* no longer."""
        del self._handlers[fd]
        self._poll.unregister(fd)

    def make_group(self, frame: FrameSpec) -> Group:
        """Make a cgroup for a step. Raises CgroupError if it cannot have its limits."""
        parent = frame["cgroup_parent"]
        if parent not in self._hierarchies:
            self._hierarchies[parent] = find(parent)
            self._hierarchies[parent].sweep()
        self._made += 1
        name = b"%s-%d" % (self._hierarchies[parent].prefix(), self._made)
        return self._hierarchies[parent].make(name, frame["limits"])

    def _receive(self) -> None:
        message, fds, _flags, _address = socket.recv_fds(self._control, 1, 4)
        if not message:
            self.end()
            os._exit(0)
        channel = socket.socket(fileno=fds[0])
        received = receive_spec(channel, 0)
        if received is None:  # the builder has gone
            for fd in fds[1:4]:
                os.close(fd)
            channel.close()
            return
        self.begin(Request(channel, received[0], fds[1:4], message == b"R"))
