"""The cgroup of a step: its limits, what it has used, and its end. ``hierarchies.py`` makes them."""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import TYPE_CHECKING

from builder.runtime.container.cgroup_files import read, read_number, write
from builder.runtime.errors import CgroupError

if TYPE_CHECKING:
    from typing import TypedDict

    class Limits(TypedDict, total=False):
        """The most that a step may use; a resource that is missing or 0 is not limited.

        ``memory``     bytes; there is no swap besides
        ``cpu_quota``  microseconds of CPU time in every 100 ms
        ``cpuset``     the CPUs it may run on, like ``b"0-3,5"``
        ``pids``       processes and threads
        """

        memory: int
        cpu_quota: int
        cpuset: bytes
        pids: int

else:
    Limits = dict

_CLOSE_PATIENCE = 0.5  # seconds
_KILL_PASSES = 10


class Usage:
    """What a step has used."""

    def __init__(self, peak: int, cpu_seconds: float, oom_kills: int) -> None:
        self.peak = peak  # bytes of memory; 0 where it is not known
        self.cpu_seconds = cpu_seconds  # -1.0 where it is not known
        self.oom_kills = oom_kills  # of processes, v2 may count one twice; -1 where it is not known


class Group:
    """The group of one step: at most one directory in each hierarchy, possibly none."""

    def __init__(self) -> None:
        self.fd = -1  # of the v2 directory, for clone3 with CLONE_INTO_CGROUP; -1 if there is none
        self._v2 = b""
        self._v1: list[bytes] = []

    def add(self, path: bytes, unified: bool) -> None:
        """Add the directory *path*, which was just made."""
        if not unified:
            self._v1.append(path)
            return
        self._v2 = path
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise CgroupError(f"opening the cgroup {os.fsdecode(path)}: {error.strerror}") from None

    def enter(self, pid: int, *, into_v2: bool = False) -> None:
        """Move the process *pid* into each v1 directory, with *into_v2* also into that of v2."""
        for path in (*self._v1, self._v2) if into_v2 and self._v2 else self._v1:
            try:
                write(path + b"/cgroup.procs", b"%d" % pid)
            except OSError as error:
                why = f"putting a step into the cgroup {os.fsdecode(path)}: {error.strerror}"
                raise CgroupError(why) from None

    def usage(self) -> Usage:
        """Return what the processes of the group have used so far."""
        peak, microseconds, oom_kills = -1, -1, -1
        if self._v2:
            peak = read_number(self._v2 + b"/memory.peak")
            microseconds = read_number(self._v2 + b"/cpu.stat", b"usage_usec")
            oom_kills = read_number(self._v2 + b"/memory.events", b"oom_kill")
        for path in self._v1:
            peak = max(peak, read_number(path + b"/memory.max_usage_in_bytes"))
            oom_kills = max(oom_kills, read_number(path + b"/memory.oom_control", b"oom_kill"))
            if microseconds < 0 and (nanoseconds := read_number(path + b"/cpuacct.usage")) >= 0:
                microseconds = nanoseconds // 1000
        return Usage(max(peak, 0), microseconds / 1e6 if microseconds >= 0 else -1.0, oom_kills)

    def kill(self) -> None:
        """Kill every process of the group."""
        for path in self._paths():
            _kill(path)

    def close(self) -> None:
        """Kill what is left in the group and remove it."""
        remove_groups(self._paths(), _CLOSE_PATIENCE)
        if self.fd >= 0:
            os.close(self.fd)
        self.fd, self._v2, self._v1 = -1, b"", []

    def _paths(self) -> list[bytes]:
        return [self._v2, *self._v1] if self._v2 else self._v1


def _kill(path: bytes) -> None:
    try:
        write(path + b"/cgroup.kill", b"1")
        return
    except OSError:
        pass  # v1, or a kernel before 5.14
    seen: set[int] = set()
    for _ in range(_KILL_PASSES):  # they may fork meanwhile
        found = {int(pid) for pid in read(path + b"/cgroup.procs").split()}
        if found <= seen:
            return
        seen |= found
        for pid in found - {0, os.getpid()}:  # 0: a process that this pid namespace has no number for
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass


def remove_groups(paths: list[bytes], patience: float) -> None:
    """Remove groups and kill the processes in them. Killed processes may need a moment to end."""
    left = [path for path in paths if not _is_removed(path)]
    end, pause = time.monotonic() + patience if left else 0.0, 0.001
    while left:
        for path in left:
            _kill(path)
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
        left = [path for path in left if not _is_removed(path)]
        if time.monotonic() > end:
            return


def _is_removed(path: bytes) -> bool:
    """Try to remove a group; False if another try may help."""
    try:
        os.rmdir(path)
    except OSError as error:
        return error.errno not in (errno.EBUSY, errno.ENOTEMPTY)
    return True
