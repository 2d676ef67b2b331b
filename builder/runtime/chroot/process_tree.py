"""The tree of processes, and the capabilities of this one, as /proc shows them."""

import os


def own_capabilities() -> int:
    """Return the capabilities of this process."""
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"CapPrm:"):
                return int(line.split()[1], 16)
    return 0


def children(pid: int) -> list[int]:
    """Return the pids of the children of the process *pid*."""
    return [child for child, parent in _parents().items() if parent == pid]


def descendants() -> list[int]:
    """Return the pids of all descendants of this process."""
    above, own, found = _parents(), os.getpid(), []
    for pid in above:
        parent: int | None = pid
        while parent is not None and parent != own:
            parent = above.get(parent)
        if parent == own and pid != own:
            found.append(pid)
    return found


def _parents() -> dict[int, int]:
    """Return the parent of every process."""
    above: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fd = os.open(f"/proc/{name}/stat", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    above[int(name)] = int(os.read(fd, 1024).rpartition(b")")[2].split()[1])
                finally:
                    os.close(fd)
            except (OSError, ValueError, IndexError):
                pass
    return above
