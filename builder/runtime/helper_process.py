"""Helper processes that are forked from the builder early, while it has one thread and little memory."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, NamedTuple

from builder.runtime.syscalls import keep_only

if TYPE_CHECKING:
    from collections.abc import Callable


class HelperProcess(NamedTuple):
    """A forked process, and the socket on which it takes requests. It ends when that is closed."""

    pid: int
    socket: socket.socket


def fork_helper(work: Callable[..., object], *passed: socket.socket) -> HelperProcess:
    """Fork a process that calls *work* with its end of the socket and the sockets *passed*, and then ends.

    Requests are messages (SOCK_SEQPACKET). The process has no other descriptors of the builder, so that
    sockets and locks which the builder closes are closed. The sockets *passed* are closed here.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            fds = keep_only([theirs.detach(), *(other.detach() for other in passed)])
            work(*(socket.socket(fileno=fd) for fd in fds))
            code = 0
        finally:
            os._exit(code)
    for other in (theirs, *passed):
        other.close()
    return HelperProcess(pid, ours)
