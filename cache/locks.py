"""flock on files and directories. The lock of a descriptor ends with its process."""

import contextlib
import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def try_lock(fd: int, shared: bool = False) -> bool:
    """Take the lock of *fd* if it is free; a *shared* one also if others share it. Return True if taken."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def single_flight(folder: str, name: str) -> "Iterator[None]":
    """Hold the lock *name* during the block. Its file exists only while a process holds or awaits it.

    A process that gets the lock of a file that was unlinked meanwhile tries again with the new file.
    """
    path = os.path.join(folder, name)
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            current = os.stat(path)
        except FileNotFoundError:
            os.close(fd)
            continue
        if current.st_ino == os.fstat(fd).st_ino:
            break
        os.close(fd)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.close(fd)
