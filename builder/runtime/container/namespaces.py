"""Apply the operations of a step in namespaces: its root file system, its mounts, and the way into it."""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, assert_never

from builder.runtime import syscalls as sc
from builder.runtime.container import operations as op
from builder.runtime.container.frame import ROOT, SPOT, STORE
from builder.runtime.container.interfaces import set_address
from builder.runtime.container.overlays import mount_overlay
from builder.runtime.container.process import Process, set_owner
from builder.runtime.errors import SetupError
from cache.kernel import open_in_root, write_all

if TYPE_CHECKING:
    from builder.runtime.container.operations import ProcessOperation, RootOperation


class NamespacedStep:
    """A step whose root is made of mounts, in namespaces that are already its own."""

    def __init__(self, process: Process, staging: int, store: int, volumes: list[int]) -> None:
        """*store* and *volumes* are detached mounts, the volumes in the order of the spec."""
        self._process = process
        self._staging = staging
        self._store = store
        self._volumes: Iterator[int] = iter(volumes)
        self._covered = 0

    def apply(self, operations: "list[RootOperation | ProcessOperation]") -> None:
        """Apply *operations* in order; the last executes the command. Raises SetupError and OSError."""
        for operation in operations:
            match operation:
                case (
                    op.FindUser()
                    | op.ReadFilter()
                    | op.InstallFilter()
                    | op.Descriptors()
                    | op.WorkingDirectory()
                    | op.Limit()
                    | op.HideAbstractSockets()
                    | op.NoNewPrivileges()
                    | op.Identity()
                    | op.WaitForClock()
                    | op.Execute()
                ):
                    self._process.apply(operation)
                case _:
                    self._apply(operation)

    def _apply(self, operation: "RootOperation") -> None:
        match operation:
            case op.Undumpable():
                sc.prctl(sc.PR_SET_DUMPABLE, 0)
            case op.EnterStore():
                sc.move_mount(self._store, sc.AT_FDCWD, STORE)
                os.fchdir(self._store)
            case op.Root(lowers, upper, work):
                self._process.root = _mount_root(lowers, upper, work)
            case op.Cover(path, content):
                self._cover(path, content)
            case op.MoveIn(name):
                _move_in(self._staging, self._process.root, name)
            case op.Script(name, content):
                _write_script(self._process.root, name, content)
            case op.Address(address, mask, gateway):
                set_address(address, mask, gateway)
            case op.Overlay() | op.Bind() | op.Tmpfs() | op.File():
                _attach(self._process.root, operation.target, _open_tree(operation))
            case op.Volume(target):
                _attach(self._process.root, target, next(self._volumes))
            case op.Hostname(name):
                with contextlib.suppress(PermissionError):  # the filter of an outer container may forbid it
                    socket.sethostname(name.decode("ascii"))
            case op.PivotRoot():
                os.fchdir(self._process.root)
                sc.pivot_root(b".", b".")
                sc.umount2(b".", sc.MNT_DETACH)
                os.chdir(b"/")
            case _:
                assert_never(operation)

    def _cover(self, path: bytes, content: bytes) -> None:
        name = b"%d" % self._covered
        self._covered += 1
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644, dir_fd=self._staging)
        write_all(fd, content)
        os.close(fd)
        tree = sc.open_tree(self._staging, name)
        sc.mount_setattr(tree, b"", sc.MOUNT_ATTR_NO_EXEC | sc.MOUNT_ATTR_RDONLY)
        try:
            try:
                place = open_in_root(self._process.root, path, os.O_PATH)
            except FileNotFoundError:  # a dangling symlink: cover the symlink itself
                place = open_in_root(self._process.root, path, os.O_PATH | os.O_NOFOLLOW)
        except OSError as error:
            raise SetupError(f"mounting at {os.fsdecode(path)} of the image: {error.strerror}") from None
        if stat.S_ISDIR(os.fstat(place).st_mode):
            raise SetupError(f"{os.fsdecode(path)} in the image is a directory")
        sc.move_mount(tree, place, b"")
        os.close(place)
        os.close(tree)


# -- the root --------------------------------------------------------------------------------


def _mount_root(lowers: list[bytes], upper: bytes, work: bytes) -> int:
    """Mount the root in the staging directory; a descriptor of it."""
    if lowers:
        return mount_overlay(ROOT, lowers, upper, work)
    top = os.open(upper, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    root = _clone(top, b"/", False)
    sc.move_mount(root, sc.AT_FDCWD, ROOT)
    os.close(top)
    return root


def _move_in(staging: int, root: int, name: bytes) -> None:
    """Move /proc, /sys or /dev into the image, which must have a real directory of that name.

    An image whose /proc or /dev is a symlink or a file is refused (RT-05, RT-06).
    """
    try:
        place = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    except OSError as error:
        raise SetupError(f"/{os.fsdecode(name)} in the image: {error.strerror}") from None
    if not stat.S_ISDIR(os.fstat(place).st_mode):
        raise SetupError(f"/{os.fsdecode(name)} in the image is not a directory, so nothing can run in it")
    tree = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=staging)
    sc.move_mount(tree, place, b"")
    os.close(tree)
    os.close(place)


def _write_script(root: int, name: bytes, content: bytes) -> None:
    """Write a here-document that names its interpreter."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(b"dev/pipes", 0o755, dir_fd=root)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(b"dev/pipes/" + name, flags, 0o755, dir_fd=root)
    write_all(fd, content)
    os.fchmod(fd, 0o755)
    os.close(fd)


# -- mounts ----------------------------------------------------------------------------------


def _open_tree(mount: op.Overlay | op.Bind | op.Tmpfs | op.File) -> int:
    """Return a detached mount.

    Its source is attached for a moment, as only an attached mount can be cloned.
    """
    match mount:
        case op.Tmpfs(_, size, read_only):
            options: list[tuple[bytes, bytes | None]] = [(b"mode", b"1777")]
            if size:
                options.append((b"size", b"%d" % size))
            flags = sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV | (sc.MOUNT_ATTR_RDONLY if read_only else 0)
            return sc.new_mount(b"tmpfs", flags, options)
        case op.Bind(_, path, source, read_only):
            top = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            tree = _clone(top, source, read_only)
            os.close(top)
            return tree
        case op.Overlay(_, source, lowers, upper, work, read_only):
            top = mount_overlay(SPOT, lowers, upper, work)
            tree = _clone(top, source, read_only)
        case op.File():
            top = _file_system_of(mount)
            tree = _clone(top, b"file", True)
        case _:
            assert_never(mount)
    os.close(top)
    sc.umount2(SPOT, sc.MNT_DETACH)
    return tree


def _file_system_of(file: op.File) -> int:
    """Attach a tmpfs that holds the file ``file``."""
    flags = sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV
    top = sc.new_mount(b"tmpfs", flags if file.mode & 0o111 else sc.MOUNT_ATTR_NO_EXEC, ((b"mode", b"0700"),))
    sc.move_mount(top, sc.AT_FDCWD, SPOT)
    fd = os.open(b"file", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=top)
    write_all(fd, file.content)
    set_owner(fd, file.uid, file.gid)
    os.fchmod(fd, file.mode)
    os.close(fd)
    return top


def _clone(top: int, source: bytes, read_only: bool) -> int:
    """Return a detached mount of *source*, which resolves inside *top* (SRC-01, SRC-04)."""
    try:
        place = open_in_root(top, source, os.O_PATH)
    except OSError as error:
        raise SetupError(f"the source {os.fsdecode(source)} of a mount: {error.strerror}") from None
    tree = sc.open_tree(place, b"")
    sc.mount_setattr(tree, b"", sc.MOUNT_ATTR_NODEV | (sc.MOUNT_ATTR_RDONLY if read_only else 0))
    os.close(place)
    return tree


def _attach(root: int, target: bytes, tree: int) -> None:
    """Mount *tree* at *target*; symlinks resolve inside the image."""
    try:
        place = _mount_point(root, target, stat.S_ISDIR(os.fstat(tree).st_mode))
        sc.move_mount(tree, place, b"")
    except OSError as error:
        kinds = _kind(root, target), _kind(tree, b".")
        reason = error.strerror
        if target.startswith(b"/sys/") and kinds[0] == "link":
            reason = "nothing can be made in /sys, only what is there be mounted over"
        elif error.errno == errno.EROFS:
            reason = "there is no such place, and none can be made in what is mounted read-only above it"
        elif kinds[0] == "link":
            reason = "the image has a link to nowhere there"
        elif error.errno == errno.EINVAL and kinds[0] != kinds[1]:
            reason = f"the image has a {kinds[0]} there, what is mounted is a {kinds[1]}"
        raise SetupError(f"mounting at {os.fsdecode(target)}: {reason}") from None
    os.close(place)
    os.close(tree)


def _kind(root: int, path: bytes) -> str:
    try:
        fd = os.dup(root) if path == b"." else open_in_root(root, path, os.O_PATH)
    except OSError:
        return "link"
    kind = "directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"
    os.close(fd)
    return kind


def _mount_point(root: int, target: bytes, is_dir: bool) -> int:
    """Open *target*. If it is missing, which it can be only inside another mount, make it there.

    Other steps may write to that mount, if it is a cache. So the new directory is not looked up by its path
    again.
    """
    try:
        return open_in_root(root, target, os.O_PATH)
    except FileNotFoundError:
        pass
    parent, _, name = target.rpartition(b"/")
    directory = _mount_point(root, parent or b"/", True)
    with contextlib.suppress(FileExistsError):
        if is_dir:
            os.mkdir(name, 0o755, dir_fd=directory)
        else:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=directory))
    place = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    os.close(directory)
    return place
