"""Sessions: the directories below ``tmp`` with what processes have not published.

A process holds the lock of its session; the next process to open one sweeps those whose lock is free.
``borrowed`` in a session names, for each cache mount whose entries are elsewhere, their directory and the
one they belong to, both relative to the store, and the device and inode of the former (marshal).
"""

import contextlib
import fcntl
import marshal
import os
import threading
import time

from cache.fs import kill_inside, move_entries, real_folder, remove_tree
from cache.locks import try_lock

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_TRIES, _PAUSE = 20, 0.05  # to remove a session, and seconds between two tries


class Session:
    """The session of this process in the store at *root*, opened when it is first needed."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._tmp = os.path.join(root, "tmp")
        self._opening = threading.Lock()
        self._path: str | None = None
        self._fd = -1

    def path(self) -> str:
        """Return the directory of the session. Raises OSError."""
        with self._opening:
            if self._path is None:
                self._path = self._open()
            return self._path

    def close(self) -> None:
        """Remove what was not published.

        After a cancel, a thread may still write to the session or remove parts of it: what is left after
        some tries is swept by the next session.
        """
        if self._path is None:
            return
        for _ in range(_TRIES):
            try:
                remove_tree(self._path)
                break
            except OSError:
                time.sleep(_PAUSE)
        os.close(self._fd)
        self._path = None

    def _open(self) -> str:
        """Sweep the sessions of processes that are gone, and make the directory of this one."""
        guard = os.open(self._tmp, _DIRECTORY)
        try:
            fcntl.flock(guard, fcntl.LOCK_EX)
            for name in os.listdir(guard):
                with contextlib.suppress(OSError):  # a session that cannot be removed does not stop a build
                    self._sweep(guard, name)
            name = os.urandom(4).hex()
            os.mkdir(name, 0o700, dir_fd=guard)
            self._fd = os.open(name, _DIRECTORY, dir_fd=guard)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            return os.path.join(self._tmp, name)
        finally:
            os.close(guard)

    def _sweep(self, tmp: int, name: str) -> None:
        """Remove a session whose process is gone, or anything else that lies in *tmp*."""
        try:
            fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=tmp)
        except NotADirectoryError:
            os.unlink(name, dir_fd=tmp)
            return
        try:
            if try_lock(fd):
                path = os.path.join(self._tmp, name)
                kill_inside(path)
                if self._return_borrowed(path):
                    remove_tree(name, dir_fd=tmp)
        finally:
            os.close(fd)

    def _return_borrowed(self, session: str) -> bool:
        """Move the entries of caches back that a killed session had. Return whether all are back.

        A cache that another process uses is left for the next sweep.
        """
        journal, done = os.path.join(session, "borrowed"), True
        if not os.path.isdir(journal):
            return True
        for entry in list(os.scandir(journal)):
            try:
                with open(entry.path, "rb") as file:
                    here, home, device, inode = marshal.loads(file.read())
                # A step may have put a link in the place of the directory, or of one on the way to it.
                with real_folder(self._root, home) as target:
                    if not try_lock(target):
                        done = False
                        continue
                    with real_folder(self._root, here) as source:
                        found = os.fstat(source)
                        if (found.st_dev, found.st_ino) == (device, inode):
                            move_entries(source, target)
            except (OSError, ValueError, EOFError, TypeError):
                pass  # nothing to move back, or no way to
            os.unlink(entry.path)
        return done
