"""/proc, /sys and /dev of a step as plain files in its root, for calls that the supervisor does not answer.

Device nodes are made if that is allowed. The entries of a directory are made when a step opens it. All is
made by descriptors, and no symlink of a step is followed. Nothing here reaches a layer.
"""

import contextlib
import os
import stat
from collections.abc import Iterator

from builder.runtime.chroot.files import MOUNTS, WITH_CONTENT, shown_names
from builder.runtime.container.devices import DEVICES, LINKS
from cache.kernel import write_all

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEV_DIRECTORIES = {b"pts": 0o755, b"shm": 0o1777, b"mqueue": 0o1777, b"pipes": 0o755}
_PROC_FILES = (
    *(b"cpuinfo", b"filesystems", b"loadavg", b"meminfo", b"stat", b"uptime", b"version"),
    *(b"cgroups", b"devices", b"diskstats", b"misc", b"modules", b"partitions", b"swaps", b"vmstat"),
)
_PROCESS_FILES = (b"comm", b"stat", b"statm", b"status")  # what anybody may read
_LARGEST = 1 << 16  # bytes of a copied file


def prepare(root: int) -> bool:
    """Fill the empty /proc and /dev below the directory *root*; False if its devices cannot be opened.

    One of them that is not a directory of the root itself is left as it is. Raises OSError.
    """
    with _directory(root, b"proc") as proc:
        if proc >= 0:
            for name in _PROC_FILES:
                _copy(b"/proc/" + name, proc, name)
            for name in (b"self", b"sys", b"fs", b"irq", b"bus", b"tty"):
                with contextlib.suppress(OSError):
                    os.mkdir(name, 0o555, dir_fd=proc)
            with contextlib.suppress(OSError):
                os.symlink(b"self/mounts", b"mounts", dir_fd=proc)
                os.symlink(b"self/net", b"net", dir_fd=proc)
            with _directory(proc, b"self") as self:
                if self >= 0:
                    lines = [f"{source} {place} {kind} rw 0 0\n" for source, place, kind in MOUNTS]
                    _write(self, b"mounts", "".join(lines).encode())
                    for name in (b"fd", b"net", b"task", b"ns"):
                        os.mkdir(name, 0o555, dir_fd=self)
    return _fill_dev(root)


def _fill_dev(root: int) -> bool:
    usable = True
    with _directory(root, b"dev") as dev:
        if dev < 0:
            return True
        for name, mode in _DEV_DIRECTORIES.items():
            os.mkdir(name, mode, dir_fd=dev)
            os.chmod(name, mode, dir_fd=dev)
        for name, target in LINKS.items():
            os.symlink(target, name, dir_fd=dev)
        for name, (major, minor) in DEVICES.items():
            try:
                os.mknod(name, stat.S_IFCHR, os.makedev(major, minor), dir_fd=dev)
            except PermissionError:
                _write(dev, name, b"")
            os.chmod(name, 0o666, dir_fd=dev)
        try:
            os.close(os.open(b"null", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dev))
            usable = stat.S_ISCHR(os.stat(b"null", dir_fd=dev, follow_symlinks=False).st_mode)
        except OSError:  # no device of this file system can be opened
            usable = False
    return usable


def write_scripts(root: int, scripts: dict[bytes, bytes]) -> None:
    """Make the executable files of /dev/pipes. Raises OSError."""
    with _directory(root, b"dev") as dev, _directory(dev, b"pipes") as pipes:
        if pipes < 0:
            return
        for old in os.listdir(pipes):
            os.unlink(old, dir_fd=pipes)
        for name, content in scripts.items():
            _write(pipes, name, content, 0o755)


def list_directory(root: int, real: bytes, links: dict[bytes, bytes] | None = None) -> int:
    """Make the directory *real* of /proc or /sys in the root show the entries of the machine's.

    *links* are the targets of the symlinks in it that differ. Returns a descriptor of it. Raises OSError.
    """
    here = os.dup(root)
    for part in real.strip(b"/").split(b"/"):
        above = here
        try:
            try:
                os.mkdir(part, 0o755, dir_fd=above)
            except FileExistsError:
                pass
            here = os.open(part, _DIRECTORY, dir_fd=above)
        finally:
            os.close(above)
    found = {name: os.lstat(real + b"/" + name).st_mode for name in shown_names(real)}
    for name in set(map(os.fsencode, os.listdir(here))) - found.keys():
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=here)
    for name, mode in found.items():
        source = real + b"/" + name
        with contextlib.suppress(OSError):
            if stat.S_ISDIR(mode):
                os.mkdir(name, 0o755, dir_fd=here)
            elif stat.S_ISLNK(mode):
                if links is not None:  # of a process, whose descriptors change
                    with contextlib.suppress(OSError):
                        os.unlink(name, dir_fd=here)
                os.symlink((links or {}).get(name) or os.readlink(source), name, dir_fd=here)
            elif real.startswith(WITH_CONTENT) or (name in _PROCESS_FILES and links is not None):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=here)
                _copy(source, here, name)
            else:
                _write(here, name, b"")
    return here


def list_processes(root: int, pids: list[int]) -> None:
    """Make /proc show a directory for each of *pids*. Raises OSError."""
    with _directory(root, b"proc") as proc:
        if proc < 0:
            return
        wanted = {b"%d" % pid for pid in pids}
        there = {name for name in map(os.fsencode, os.listdir(proc)) if name.isdigit()}
        for name in wanted - there:
            with contextlib.suppress(OSError):
                os.mkdir(name, 0o555, dir_fd=proc)
        for name in there - wanted:
            _remove(proc, name)


def link(root: int, directory: bytes, name: bytes, target: bytes) -> None:
    """Make the symlink *name* in the *directory* of /proc lead to *target*. Raises OSError."""
    with _directory(root, b"proc") as proc:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o755, dir_fd=proc)
        with _directory(proc, directory) as here:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=here)
            os.symlink(target, name, dir_fd=here)


@contextlib.contextmanager
def _directory(above: int, name: bytes) -> Iterator[int]:
    """Provide a descriptor of a directory, -1 if there is none."""
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=above)
    except OSError:
        yield -1
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _copy(source: bytes, directory: int, name: bytes) -> None:
    """Copy a small file of the kernel; an unreadable one becomes empty."""
    data = b""
    try:
        if not os.lstat(source).st_mode & 0o004:
            return  # not for everybody
    except OSError:
        return
    try:
        fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            data = os.read(fd, _LARGEST)
        finally:
            os.close(fd)
    except OSError:
        pass
    with contextlib.suppress(OSError):
        _write(directory, name, data)


def _write(directory: int, name: bytes, data: bytes, mode: int = 0o444) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=directory)
    try:
        write_all(fd, data)
    finally:
        os.close(fd)


def _remove(directory: int, name: bytes) -> None:
    """Remove a directory of two levels at most."""
    with contextlib.suppress(OSError), _directory(directory, name) as here:
        for entry in os.listdir(here):
            try:
                os.unlink(entry, dir_fd=here)
            except OSError:
                with _directory(here, os.fsencode(entry)) as inner:
                    for last in os.listdir(inner) if inner >= 0 else ():
                        with contextlib.suppress(OSError):
                            os.unlink(last, dir_fd=inner)
                with contextlib.suppress(OSError):
                    os.rmdir(entry, dir_fd=here)
        os.rmdir(name, dir_fd=directory)
