"""The paths of /proc, /sys and /dev for a step, where these cannot be mounted.

A ``Place`` says what such a path means: a file of the machine that is opened for the step, a symlink of /proc
that leads back into its root, a text. A step sees only its own processes, and can write only to
/proc.
"""

import errno
import os
import stat
from typing import Literal, NamedTuple

from builder.runtime.chroot.processes import Processes
from builder.runtime.container.devices import STREAM_LINKS

# As builder.runtime.container.order masks them in a step's own /proc.
_HIDDEN_IN_PROC = frozenset(
    b"acpi asound interrupts kcore keys key-users kmsg kpagecgroup kpagecount kpageflags latency_stats"
    b" pagetypeinfo sched_debug scsi slabinfo sysrq-trigger timer_list timer_stats vmallocinfo".split()
)
_HIDDEN_IN_SYS = (
    b"/sys/devices/virtual/powercap",
    b"/sys/firmware",
    b"/sys/fs/bpf",
    b"/sys/fs/pstore",
    b"/sys/fs/selinux",
    b"/sys/kernel/config",
    b"/sys/kernel/debug",
    b"/sys/kernel/security",
    b"/sys/kernel/slab",
    b"/sys/kernel/tracing",
)
# Of a process: what leads to memory or descriptors by other ways than those below.
_HIDDEN_OF_PROCESS = frozenset((b"map_files", b"mem", b"pagemap"))
MOUNTS = ("overlay", "/", "overlay"), ("proc", "/proc", "proc"), ("tmpfs", "/dev", "tmpfs"), (
    "sysfs", "/sys", "sysfs",
)  # fmt: skip


# Files of these directories are copied with their contents, for programs that open them by a descriptor of
# the directory. Files of others are found by their paths only.
WITH_CONTENT = (b"/sys/devices/system", b"/sys/fs/cgroup", b"/proc/sys")
_SHOWN = (
    *(*WITH_CONTENT, b"/sys/block", b"/sys/class", b"/sys/devices/virtual/net"),
    *(b"/sys/fs", b"/sys/kernel/mm"),
)


class Place(NamedTuple):
    """What a path means, by ``kind``.

    file    the file or directory ``path`` of the machine; ``pid`` is the process it belongs to, 0 for none
    open    the file behind the descriptor named ``path`` of the process ``pid``
    inside  ``path``, inside the step's root
    text    a file with the contents ``path``
    link    a symlink to ``path``, not followed
    none    no file: the errno ``code``
    """

    kind: Literal["file", "open", "inside", "text", "link", "none"]
    path: bytes = b""
    pid: int = 0
    code: int = errno.ENOENT


_NOTHING = Place("none")


def special(path: bytes) -> bool:
    """Return whether an absolute path may need an answer."""
    return path.startswith((b"/proc", b"/dev/", b"/sys"))


class Files:
    """The paths of one step."""

    def __init__(self, processes: Processes, masked: bool, placed: list[tuple[bytes, bytes, bool]]) -> None:
        """With *masked*, sensitive paths are hidden. *placed* is shown as mounts."""
        self._processes = processes
        self._hidden_in_proc: frozenset[bytes] = _HIDDEN_IN_PROC if masked else frozenset()
        self._hidden_in_sys = _HIDDEN_IN_SYS if masked else ()
        shown = [(os.fsdecode(target), kind.decode(), read_only) for target, kind, read_only in placed]
        self._mounts = [*MOUNTS, *((kind, target, kind) for target, kind, _ in shown)]
        self._read_only = {"/sys", *(target for target, _, read_only in shown if read_only)}

    def resolve(self, pid: int, path: bytes, follow: bool) -> Place | None:
        """Return what the absolute *path* means to the thread *pid*; None if the kernel finds it in the root.

        Without *follow* a symlink at its end is not followed. Raises OSError.
        """
        for _ in range(8):
            parts = _normal(path)
            if parts[:1] == [b"dev"]:
                target = STREAM_LINKS.get(parts[1]) if len(parts) > 1 else None
                if target is None or (len(parts) == 2 and not follow):
                    return None
                path = b"/".join([target, *parts[2:]])
                continue
            if parts[:1] == [b"sys"]:
                return self._in_sys(b"/" + b"/".join(parts), follow)
            if parts[:1] != [b"proc"] or len(parts) == 1:
                return None
            found = self._in_proc(pid, parts[1:], follow)
            if found is None or found.kind != "link" or not follow:
                return found
            path = found.path if found.path.startswith(b"/") else b"/proc/" + found.path
        return Place("none", code=errno.ELOOP)

    def _in_proc(self, pid: int, parts: list[bytes], follow: bool) -> Place | None:
        name, rest = parts[0], parts[1:]
        if name in (b"self", b"thread-self"):
            group = self._processes.group(pid)
            link = b"%d" % group if name == b"self" else b"%d/task/%d" % (group, pid)
            if not rest and not follow:
                return Place("link", link)
            return self._in_proc(pid, [*link.split(b"/"), *rest], follow)
        if name.isdigit() and len(name) < 10:
            wanted = int(name)
            if wanted != self._processes.group(pid) and not self._processes.owns(wanted):
                if wanted != 1:
                    return _NOTHING
                wanted = self._processes.first  # a step's first process is the first of a container
            return self._of_process(wanted, rest, follow, b"/proc/%d" % wanted)
        if name in self._hidden_in_proc:
            there = os.path.exists(b"/proc/" + name) and not rest
            return Place("text") if there and not is_directory(b"/proc/" + name) else _NOTHING
        if name in (b"mounts", b"net"):
            if not rest and not follow:
                return Place("link", b"self/" + name)
            return self._in_proc(pid, [b"self", *parts], follow)
        path = _real(b"/proc/" + b"/".join(parts), follow)
        if not path.startswith(b"/proc/") or path.split(b"/")[2].isdigit():
            return _NOTHING
        if os.path.islink(path):
            return Place("link", os.readlink(path))
        return Place("file", path) if os.path.lexists(path) else None

    def _of_process(self, pid: int, rest: list[bytes], follow: bool, top: bytes) -> Place:
        """Return the place below *top*, the directory of the process *pid* or of a thread of it."""
        if not rest:
            return Place("file", top, pid)
        name, more = rest[0], rest[1:]
        if name == b"task" and more:
            if not more[0].isdigit():
                return _NOTHING
            return self._of_process(pid, more[1:], follow, b"%s/task/%s" % (top, more[0]))
        if name in (b"exe", b"cwd", b"root"):
            target = self._link(pid, b"%s/%s" % (top, name))
            if not more and not follow:
                return Place("link", target)
            return Place("inside", b"/".join([target, *more]))
        if name == b"fd" and more:
            if not more[0].isdigit():
                return _NOTHING
            target = self._link(pid, b"%s/fd/%s" % (top, more[0]))
            if len(more) > 1:
                return Place("inside", b"/".join([target, *more[1:]]))
            return Place("open", b"%s/fd/%s" % (top, more[0]), pid) if follow else Place("link", target)
        if name == b"ns" and more and not follow:
            return Place("link", self._link(pid, b"%s/ns/%s" % (top, more[0])))
        if name in (b"mounts", b"mountinfo", b"mountstats"):
            return Place("text", self._mount_table(name))
        return _NOTHING if name in _HIDDEN_OF_PROCESS else Place("file", b"/".join([top, *rest]), pid)

    def _link(self, pid: int, path: bytes) -> bytes:
        """Return the target of a symlink of /proc, as the step sees it. Raises OSError."""
        with self._processes.as_owner(pid):
            return self._processes.inside(os.readlink(path))

    def _mount_table(self, name: bytes) -> bytes:
        """Return the mounts that a step would have in namespaces."""
        lines = []
        for number, (source, place, kind) in enumerate(self._mounts, 100):
            access = "ro" if place in self._read_only else "rw"
            if name == b"mounts":
                lines.append(f"{source} {place} {kind} {access},relatime 0 0\n")
            elif name == b"mountinfo":
                above = 99 if place == "/" else 100
                fields = f"{number} {above} 0:{number} / {place} {access},relatime"
                lines.append(f"{fields} - {kind} {source} {access}\n")
            else:
                lines.append(f"device {source} mounted on {place} with fstype {kind}\n")
        return "".join(lines).encode("utf-8", "surrogateescape")

    def _in_sys(self, path: bytes, follow: bool) -> Place:
        real = _real(path, follow)
        hidden = any(real == top or real.startswith(top + b"/") for top in self._hidden_in_sys)
        if hidden or not (real + b"/").startswith(b"/sys/"):
            return _NOTHING
        return Place("file", real) if follow or not os.path.islink(real) else Place("link", os.readlink(real))


def _normal(path: bytes) -> list[bytes]:
    out: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del out[-1:]
        elif part not in (b"", b"."):
            out.append(part)
    return out


def _real(path: bytes, follow: bool) -> bytes:
    """Return *path* with symlinks resolved, except one at its end if that is not to be followed."""
    if follow:
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def shown_names(real: bytes) -> list[bytes]:
    """Return the names in the directory *real* of /proc or /sys that a step sees.

    Most of /sys, which is large, shows none: its files are found by their paths. Raises OSError.
    """
    if real.startswith(b"/sys/") and real.count(b"/") > 2 and not real.startswith(_SHOWN):
        return []
    hidden = _HIDDEN_OF_PROCESS if real.startswith(b"/proc/") else frozenset()
    out = []
    for name in os.listdir(real):
        path = real + b"/" + name
        if name not in hidden and path not in _HIDDEN_IN_SYS and os.path.lexists(path):
            out.append(name)
    return out


def is_directory(path: bytes) -> bool:
    """Return True if *path* of the machine is a directory. Raises OSError."""
    return stat.S_ISDIR(os.lstat(path).st_mode)
