"""Files and directory trees of the store: marks of layers, atomic writes, exact reads, removal.

Trees are handled by descriptor, and no link is followed.
"""

import contextlib
import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

# Only these attributes are part of an image. Those of overlayfs must never be taken from one (UNP-10).
CAPABILITY = "security.capability"
_OVERLAY_PREFIX = "user.overlay."
OPAQUE = "user.overlay.opaque"


def is_image_xattr(name: str) -> bool:
    """Return whether an extended attribute belongs in a layer (T82)."""
    return name == CAPABILITY or (name.startswith("user.") and not name.startswith(_OVERLAY_PREFIX))


def image_xattrs(target: "int | str") -> "tuple[tuple[str, bytes], ...]":
    """Return the attributes of *target* that belong in a layer, sorted. A link is not followed."""
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError:
        return ()
    return tuple((name, _read_xattr(target, name, follow)) for name in sorted(names) if is_image_xattr(name))


def _read_xattr(target: "int | str", name: str, follow: bool) -> bytes:
    value = os.getxattr(target, name, follow_symlinks=follow)
    if name == "security.capability" and len(value) == 24 and value[20:] == b"\0\0\0\0":
        # Set inside a user namespace: version 3 with the namespace's root, which is our 0.
        # Images carry version 2, the same without the root id.
        return value[:3] + b"\x02" + value[4:20]
    return value


# The time of a socket that marks a removed name: no clock gives it.
_REMOVED_TIME = 0x2E77682E  # in nanoseconds since 1970


def is_whiteout(found: os.stat_result) -> bool:
    """Return whether a stat result is the mark for a removed name, as ``make_whiteout`` made it."""
    if stat.S_ISCHR(found.st_mode):
        return found.st_rdev == 0
    return found.st_mode == stat.S_IFSOCK and found.st_mtime_ns == _REMOVED_TIME


def make_whiteout(name: "str | bytes", dir_fd: int | None = None) -> None:
    """Mark *name* as removed: a character device 0:0, which is what overlayfs knows.

    A file system that is an overlay itself (a container's root) refuses that device. There the mark is a
    socket of mode 0 with a fixed time; layers hold no sockets, so none is mistaken for it. Raises OSError,
    FileExistsError if the name exists.
    """
    try:
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=dir_fd)
    except PermissionError:
        os.mknod(name, stat.S_IFSOCK, dir_fd=dir_fd)
        os.chmod(name, 0, dir_fd=dir_fd)
        os.utime(name, ns=(_REMOVED_TIME, _REMOVED_TIME), dir_fd=dir_fd, follow_symlinks=False)


def is_opaque(path: "str | int") -> bool:
    """Return whether a directory hides the same directory of lower layers."""
    try:
        return os.getxattr(path, OPAQUE) == b"y"
    except OSError:
        return False


@contextlib.contextmanager
def real_folder(top: str, path: str) -> "Iterator[int]":
    """Provide a descriptor of the directory *path* below *top*; restore its times at the end of the block.

    No link in *path* is followed. Raises OSError.
    """
    with contextlib.ExitStack() as stack:
        folder = -1
        for step in (top, *(piece for piece in path.split("/") if piece)):
            folder = os.open(step, _FOLDER, dir_fd=folder if folder >= 0 else None)
            stack.callback(os.close, folder)
        times = os.fstat(folder)
        yield folder
        os.utime(folder, ns=(times.st_atime_ns, times.st_mtime_ns))


_SIGKILL = 9  # the signal module takes 2 ms to import, on the path of a cached build


def kill_inside(folder: str) -> None:
    """Kill the processes whose root lies in *folder*: steps that outlived their build."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{name}/root").startswith(folder + "/"):
                    os.kill(int(name), _SIGKILL)


def move_entries(source: int, target: int) -> None:
    """Move all entries of the directory *source* to *target*, replacing those there. Raises OSError."""
    for name in os.listdir(source):
        try:
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY):
                raise
            remove_tree(name, dir_fd=target)
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)


def remove_devices(folder: str) -> None:
    """Remove the device nodes below *folder*: nothing of an image may open one. Raises OSError."""
    for _top, _folders, names, fd in os.fwalk(folder, follow_symlinks=False):
        for name in names:
            mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
            if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
                os.unlink(name, dir_fd=fd)


_BUFFER = 1 << 20


@contextlib.contextmanager
def atomic_file(
    final: str, temporary: str, mode: int = 0o600, durable: bool = True, dir_fd: int | None = None
) -> "Iterator[BinaryIO]":
    """Provide a new file, called *temporary* until the end of the block, then *final*.

    Both names are below *dir_fd*, if given. If *durable*, the content is on disk before the file gets its
    name; for the name itself see ``sync_directory``. After an error nothing is left. Raises OSError.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, mode, dir_fd=dir_fd)
    try:
        with open(fd, "wb", buffering=_BUFFER) as file:
            yield file
            file.flush()
            if durable:
                os.fsync(fd)
        os.rename(temporary, final, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=dir_fd)
        raise


def write_atomically(final: str, data: bytes, temporary: str, durable: bool = True) -> None:
    """Write *data* to a file that appears whole or not at all. Raises OSError."""
    with atomic_file(final, temporary, durable=durable) as file:
        file.write(data)


def sync_directory(path: str) -> None:
    """Make the names in a directory durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_exactly(read: "Callable[[int], bytes]", count: int) -> bytes:
    """Return *count* bytes of the stream *read*, fewer only where it ends before."""
    data = read(count)
    while len(data) < count and (more := read(count - len(data))):
        data += more
    return data


_DEEPEST = 64  # directories open at once while a tree is removed


def remove_tree(name: str, dir_fd: int | None = None) -> None:
    """Remove *name* and all below it; a missing one is no error. Never follow a link or leave the device.

    The time is linear in the entries, and few descriptors are open whatever the depth: directories that
    lie too deep are first moved to the top. Raises OSError.
    """
    try:
        os.unlink(name, dir_fd=dir_fd)
        return
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        pass
    top = os.open(name, _FOLDER, dir_fd=dir_fd)
    try:
        device = os.fstat(top).st_dev
        moved = 0
        todo = _empty(top)
        while todo:
            below = todo.pop()
            for deep, folder in _remove_below(top, below, device):
                moved += 1
                shelf = f"pybuild-removed-{moved}"
                os.rename(folder, shelf, src_dir_fd=deep, dst_dir_fd=top)
                todo.append(shelf)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=dir_fd)


_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def _remove_below(top: int, name: str, device: int) -> "Iterator[tuple[int, str]]":
    """Remove the directory *name* of *top*; yield directories that lie too deep, to be moved."""
    stack: list[tuple[int, str, list[str]]] = []

    def enter(parent: int, folder: str) -> None:
        fd = os.open(folder, _FOLDER, dir_fd=parent)
        stack.append((fd, folder, []))
        if os.fstat(fd).st_dev != device:
            raise OSError(errno.EXDEV, "refusing to remove across a mount point", folder)
        stack[-1][2].extend(_empty(fd))

    try:
        enter(top, name)
        while stack:
            fd, own, left = stack[-1]
            if not left:
                stack.pop()
                os.close(fd)
                os.rmdir(own, dir_fd=stack[-1][0] if stack else top)
            elif len(stack) < _DEEPEST:
                enter(fd, left.pop())
            else:
                yield fd, left.pop()
    finally:
        for fd, _own, _left in stack:
            os.close(fd)


def _empty(fd: int) -> list[str]:
    """Unlink every entry of *fd* but directories; return the names of those."""
    left = []
    with os.scandir(fd) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                left.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=fd)
    return left
