"""Maps of user and group ids, and user namespaces that hold them (user_namespaces(7))."""

from __future__ import annotations

import os
import signal
from typing import NamedTuple

from builder.runtime import syscalls as sc
from builder.runtime.spec import ID_COUNT, ID_SHIFT


class IdMaps(NamedTuple):
    """The contents of uid_map and gid_map."""

    uid_map: bytes
    gid_map: bytes


def shifted_maps() -> IdMaps:
    """Return the maps of steps that root starts."""
    row = b"0 %d %d" % (ID_SHIFT, ID_COUNT)
    return IdMaps(row, row)


def own_maps() -> IdMaps:
    """Return the ids of this process's namespace, as maps that change nothing. Raises OSError."""
    return IdMaps(_own_map("uid_map"), _own_map("gid_map"))


def _own_map(name: str) -> bytes:
    with open(f"/proc/self/{name}", "rb") as file:
        rows = [line.split() for line in file]
    return b"\n".join(b"%s %s %s" % (first, first, count) for first, _outside, count in rows)


def write_maps(pid: int, maps: IdMaps) -> None:
    """Map the ids of the user namespace of the process *pid*. Raises OSError."""
    for name, text in zip(IdMaps._fields, maps, strict=True):
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text)
        finally:
            os.close(fd)


def open_user_namespace(maps: IdMaps) -> int:
    """Return a descriptor of a new user namespace with these maps, for mapped mounts. Raises OSError."""
    own = os.getpid()
    pid, pidfd = sc.clone3(sc.CLONE_NEWUSER)
    if pid == 0:
        sc.wait_to_be_killed(own)
    try:
        write_maps(pid, maps)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)
