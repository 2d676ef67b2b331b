"""How the processes of the runtime talk: a spec goes down to the step, its end is reported up to the builder.

A spec is sent as its length in 4 bytes, with the descriptors that go with it, and its ``marshal`` form.
"""

import marshal
import os
import socket
import struct

from builder.runtime.errors import SetupError
from builder.runtime.spec import ContainerSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, NoReturn

    Refusal = Literal[b"E", b"N"]

# The last message on a step's channel: ``X``, wait status, seconds of CPU time (user, system), most memory in
# bytes, and how many of its processes the kernel killed for want of memory (-1: unknown).
EXITED = struct.Struct("=ciddQi")
_LONGEST_ERROR = 4000  # bytes


def send_spec(way: socket.socket, spec: ContainerSpec, fds: list[int]) -> None:
    """Send *spec*, and descriptors with it. Raises OSError."""
    data = marshal.dumps(dict(spec))
    head = len(data).to_bytes(4, "big")
    if fds:
        socket.send_fds(way, [head], fds)
        head = b""
    way.sendall(head + data)


def receive_spec(way: socket.socket, least: int, most: int = 0) -> tuple[ContainerSpec, list[int]] | None:
    """Receive a spec with *least* to *most* descriptors; None if the sender has gone."""
    fds: list[int] = []
    size, data = 0, b""
    try:
        head, fds, _flags, _address = socket.recv_fds(way, 4, most or least)
        size = int.from_bytes(head, "big")
        while len(data) < size and (more := way.recv(size - len(data))):
            data += more
    except OSError:
        size = 0
    if not size or len(data) < size or len(fds) < least:
        for fd in fds:
            os.close(fd)
        return None
    return marshal.loads(data), fds


def refuse(channel: socket.socket, kind: "Refusal", message: bytes) -> None:
    """Report on *channel* that a step cannot be started: ``N`` if its network fails, otherwise ``E``."""
    try:
        channel.send(kind + message)
        channel.send(EXITED.pack(b"X", 125 << 8, 0.0, 0.0, 0, 0))
    except OSError:
        pass  # nobody is listening any more


def give_up(channel: int, error: BaseException) -> "NoReturn":
    """Report on the descriptor *channel* why this process did not become the step, and end."""
    os.write(channel, b"E" + error_text(error))
    os._exit(error.code if isinstance(error, SetupError) else 125)


def error_text(error: BaseException) -> bytes:
    """Return what the builder is to report of *error*."""
    if isinstance(error, SetupError):
        text = str(error)
    elif isinstance(error, OSError):
        text = f"preparing the container: {error.strerror or error}"
    else:  # a bug
        text = f"preparing the container: {type(error).__name__}: {error}"
    return text.encode("utf-8", "replace")[:_LONGEST_ERROR]
