"""The processes of a step, as its supervisor sees them: their owners and their memory.

Memory of a process with other ids is read with those ids (ptrace(2), PTRACE_MODE_FSCREDS); one that
changed them without an exec can be read by nobody here.
"""

import contextlib
import os
import signal
from collections.abc import Iterator

from builder.runtime import syscalls as sc

_MOST_OPEN = 256  # descriptors of memory that are kept
_LONGEST = 4096  # bytes of a path
_PAGE = 4096


class Processes:
    """Everything below one root."""

    def __init__(self, root: bytes, first: int, hidden: int = -1) -> None:
        """*root* is the path of the step's root on the machine, *first* the pid of its first process.

        *hidden* is the pid of a process that does not belong to the step, whatever its root is.
        """
        self._root = root
        self.first = first
        self._hidden = hidden
        self._memory: dict[int, int] = {}  # by thread; -1 where it cannot be read

    # -- memory ----------------------------------------------------------------------------

    def read_path(self, pid: int, address: int) -> bytes | None:
        """Return the text at *address* up to its NUL, None if it cannot be read."""
        for _ in range(2):
            fd = self._memory.get(pid)
            if fd is None:
                fd = self._open(pid)
            if fd < 0:
                return None
            # Not past the page at first: the next one may not be there.
            size = _PAGE - address % _PAGE
            try:
                data = os.pread(fd, size if size > 64 else size + _PAGE, address)
            except OSError:
                try:
                    data = os.pread(fd, size, address)
                except (OSError, OverflowError):
                    return None
            except OverflowError:
                return None
            if data:
                text, end, _ = data.partition(b"\0")
                if end:
                    return text
                with contextlib.suppress(OSError):
                    text, end, _ = (data + os.pread(fd, _LONGEST, address + len(data))).partition(b"\0")
                return text if end and len(text) < _LONGEST else None
            self.forget(pid)  # its program is another by now
        return None

    def write(self, pid: int, address: int, data: bytes) -> bool:
        """Write *data* at *address*; False if that fails."""
        fd = self._memory.get(pid, -1)
        try:
            return fd >= 0 and os.pwrite(fd, data, address) == len(data)
        except (OSError, OverflowError):
            return False

    def forget(self, pid: int) -> None:
        """Forget the memory of a thread that executes another program."""
        fd = self._memory.pop(pid, -1)
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Close all memory."""
        for pid in list(self._memory):
            self.forget(pid)

    def _open(self, pid: int) -> int:
        if len(self._memory) >= _MOST_OPEN:
            self.close()
        path = b"/proc/%d/mem" % pid
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            try:
                with self.as_owner(pid):
                    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                fd = -1
        self._memory[pid] = fd
        return fd

    # -- owners ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def as_owner(self, pid: int) -> Iterator[None]:
        """Access files as the process *pid* may. Raises OSError where there is none.

        Its effective ids are taken, not those for files alone, as some files of /proc look at these.
        """
        fields = self.status(pid)
        uid, gid = int(fields[b"Uid"].split()[1]), int(fields[b"Gid"].split()[1])
        if not uid and not gid:
            yield
            return
        os.setgroups(list(map(int, fields[b"Groups"].split())))
        os.setegid(gid)
        os.seteuid(uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups([])
            sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGTERM)  # a change of ids has cleared it

    def status(self, pid: int) -> dict[bytes, bytes]:
        """Return the lines of /proc/PID/status. Raises OSError."""
        with open(b"/proc/%d/status" % pid, "rb") as file:
            return dict(line.split(b":", 1) for line in file.read().splitlines() if b":" in line)

    def group(self, pid: int) -> int:
        """Return the process that the thread *pid* belongs to. Raises OSError."""
        return int(self.status(pid)[b"Tgid"])

    def owns(self, pid: int) -> bool:
        """Return whether *pid* is a process of this step: one whose root is here."""
        if pid == self._hidden:
            return False
        try:
            with self.as_owner(pid):
                root = os.readlink(b"/proc/%d/root" % pid)
        except (OSError, KeyError, ValueError):
            return False
        return root == self._root or root.startswith(self._root + b"/")

    def all(self) -> list[int]:
        """Return the pids of the step's processes."""
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and self.owns(int(name))]

    def inside(self, path: bytes) -> bytes:
        """Return a path of the machine as the step sees it; a path outside its root stays as it is."""
        if path == self._root:
            return b"/"
        return path.removeprefix(self._root) if path.startswith(self._root + b"/") else path
