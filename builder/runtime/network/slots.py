"""The numbers of build networks, and the locks on them.

A number belongs to whoever holds the flock on its file, so two builds never share one. Making and removing a
network holds one more lock, so that no build lists the interfaces while another removes one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from typing import TYPE_CHECKING

from builder.runtime.errors import NetworkError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Where locks are: the first directory that is writable. All builds of a machine have to see the same.
_LOCKS = ("/run/pybuild", "/dev/shm/pybuild-networks", "/var/tmp/pybuild-networks")


def slot_of(name: str) -> int | None:
    """Return the number in the name of a build's table, ``pybuildN``, or of a link of it, ``pybNvM``."""
    number = name.removeprefix("pybuild")
    if number == name and name.startswith("pyb"):
        number = name[3:].partition("v")[0]
    return int(number) if number != name and number.isdigit() else None


@contextlib.contextmanager
def exclusively(locks: str) -> Iterator[None]:
    """Hold the lock for making and removing networks."""
    fd = _open_lock(locks, "networks")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def lock_directory() -> str:
    """Return a directory for locks that belongs to this user. Raises NetworkError."""
    for path in _LOCKS:
        with contextlib.suppress(OSError):
            os.makedirs(path, mode=0o700, exist_ok=True)
            found = os.lstat(path)
            ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
            if ours and os.access(path, os.W_OK):
                return path
    raise NetworkError(f"there is no place for locks: none of {', '.join(_LOCKS)} can be written to")


def _open_lock(locks: str, name: str) -> int:
    os.makedirs(locks, mode=0o700, exist_ok=True)
    return os.open(f"{locks}/{name}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def lock_slot(locks: str, slot: int) -> int | None:
    """Return the exclusive lock of a number as a descriptor, None if another process has it."""
    fd = _open_lock(locks, f"net{slot}")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd
