"""Apply the operations of a frame: what is mounted, masked and set up before the step is known.

All of it is mounted in the staging directory, a tmpfs on /proc of the step's own mount namespace. From there
/proc, /sys and /dev are moved into the image's root.
"""

import contextlib
import os
import stat
from typing import assert_never

from builder.runtime import syscalls as sc
from builder.runtime.container import operations as op
from builder.runtime.container.interfaces import raise_loopback
from builder.runtime.container.process import set_groups
from builder.runtime.errors import SetupError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from builder.runtime.container.operations import FrameOperation

# /proc exists wherever a user namespace can be set up, and the machine's own is not needed again.
STAGING = b"/proc"
ROOT, STORE, SPOT, NODES = b"/proc/root", b"/proc/store", b"/proc/spot", b"/proc/nodes"


class Frame:
    """A prepared container. ``staging`` is a descriptor of its staging directory, -1 before there is one."""

    def __init__(self, nodes: int) -> None:
        """*nodes* is a detached mount with the step's own device nodes, -1 for none; it is consumed."""
        self.staging = -1
        self._nodes = nodes
        self._proc = -1
        self._machines_root = False
        self._outer_sysfs = False

    def apply(self, operations: "list[FrameOperation]") -> None:
        """Apply *operations* in order. Raises SetupError and OSError."""
        for operation in operations:
            self._apply(operation)

    def _apply(self, operation: "FrameOperation") -> None:
        match operation:
            case op.Mask(path, when):
                if (
                    when == "always"
                    or (when == "machine root" and self._machines_root)
                    or (when == "outer sysfs" and self._outer_sysfs)
                ):
                    _mask(self.staging, path)
            case op.Device(target, source, number):
                self._attach_device(target, _open_device(source, number))
            case op.ReadOnly(path):
                _make_read_only(self.staging, path)
            case op.Link(path, target):
                os.symlink(target, path, dir_fd=self.staging)
            case op.FileSystem(target, kind, attributes, options):
                os.mkdir(target, 0o755, dir_fd=self.staging)
                self._attach(target, sc.new_mount(kind, attributes, options))
            case op.Isolate():
                _isolate()
            case op.NewProc():
                self._proc = _new_proc()
                # The machine's own root, which could change the modes of the machine's devices.
                self._machines_root = os.fstat(self._proc).st_uid == 0
            case op.Staging(size):
                self._make_staging(size)
            case op.Sysfs(own):
                self._mount_sysfs(own)
            case op.MaskForeignProcesses():
                self._mask_foreign_processes()
            case op.GivenDevice(target, source, index):
                self._attach_device(target, self._open_given(source, index), create_parents=True)
            case op.MaskEach(directory, name):
                for path in _numbered(self.staging, directory):
                    _mask(self.staging, path + b"/" + name)
            case op.Loopback():
                raise_loopback()
            case _:
                assert_never(operation)

    def _attach(self, target: bytes, tree: int) -> None:
        sc.move_mount(tree, self.staging, target)
        os.close(tree)

    def _make_staging(self, size: bytes) -> None:
        self.staging = sc.new_mount(b"tmpfs", sc.MOUNT_ATTR_NO_EXEC, ((b"mode", b"0755"), (b"size", size)))
        sc.move_mount(self.staging, sc.AT_FDCWD, STAGING)
        for path in (ROOT, STORE, SPOT):
            os.mkdir(path)
        for name in (b"proc", b"sys", b"empty"):
            os.mkdir(name, 0o555, dir_fd=self.staging)
        if self._nodes >= 0:
            os.mkdir(NODES)
            sc.move_mount(self._nodes, sc.AT_FDCWD, NODES)
        sc.move_mount(self._proc, self.staging, b"proc")

    def _mount_sysfs(self, own: bool) -> None:
        sysfs = -1
        read_only = sc.MOUNT_ATTR_NO_EXEC | sc.MOUNT_ATTR_RDONLY
        if own:
            with contextlib.suppress(PermissionError):  # a container that masks parts of its own forbids it
                sysfs = sc.new_mount(b"sysfs", read_only, ())
        if sysfs < 0:
            sysfs = sc.open_tree(sc.AT_FDCWD, b"/sys", recursive=True)
            sc.mount_setattr(sysfs, b"", read_only, recursive=True)
            self._outer_sysfs = True
        self._attach(b"sys", sysfs)

    def _mask_foreign_processes(self) -> None:
        if os.readlink(b"self", dir_fd=self._proc) != b"%d" % os.getpid():
            for path in _foreign_processes(self._proc):
                with contextlib.suppress(FileNotFoundError):  # it has just ended
                    _mask(self.staging, path)
        os.close(self._proc)

    def _open_given(self, source: bytes, index: int) -> int:
        try:
            if self._nodes >= 0:
                tree = sc.open_tree(self._nodes, b"%d" % index)
            else:
                tree = sc.open_tree(sc.AT_FDCWD, source)
        except OSError as error:
            raise SetupError(f"the device {os.fsdecode(source)}: {os.strerror(error.errno or 0)}") from None
        if stat.S_IFMT(os.fstat(tree).st_mode) not in (stat.S_IFCHR, stat.S_IFBLK):
            raise SetupError(f"{os.fsdecode(source)} of this machine is not a device")
        return tree

    def _attach_device(self, target: bytes, tree: int, create_parents: bool = False) -> None:
        if self._machines_root:
            sc.mount_setattr(tree, b"", sc.MOUNT_ATTR_RDONLY)
        if create_parents:
            for end in range(len(b"dev/"), len(target)):
                if target[end : end + 1] == b"/":
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(target[:end], 0o755, dir_fd=self.staging)
        flags = os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        os.close(os.open(target, flags, 0o666, dir_fd=self.staging))
        self._attach(target, tree)


def _isolate() -> None:
    set_groups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.setsid()
    sc.join_session_keyring()
    os.umask(0o022)
    sc.mount(b"", b"/", b"", sc.MS_REC | sc.MS_PRIVATE, b"")


def _new_proc() -> int:
    """Return a detached /proc of these namespaces.

    Where mounting one is forbidden, because parts of the outer /proc are masked, it is the outer one. There
    /proc/self is right, and of processes that start later only the names are visible.
    """
    try:
        return sc.new_mount(b"proc", sc.MOUNT_ATTR_NO_EXEC, ())
    except PermissionError:
        outer = sc.open_tree(sc.AT_FDCWD, b"/proc", recursive=True)
        sc.mount_setattr(outer, b"", sc.MOUNT_ATTR_NO_EXEC, recursive=True)
        return outer


def _foreign_processes(proc: int) -> list[bytes]:
    """Return the directories of other processes than this one in a /proc of other namespaces."""
    own = os.readlink(b"self", dir_fd=proc)
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc)
    try:
        names = map(os.fsencode, os.listdir(fd))
        return [b"proc/" + name for name in names if name.isdigit() and name != own]
    finally:
        os.close(fd)


def _open_device(source: bytes, number: tuple[int, int] | None) -> int:
    """Return a detached mount of a device node of the machine, checked to be the device of that name."""
    tree = sc.open_tree(sc.AT_FDCWD, source)
    found = os.fstat(tree)
    if not stat.S_ISCHR(found.st_mode) or (os.major(found.st_rdev), os.minor(found.st_rdev)) != number:
        raise SetupError(f"{os.fsdecode(source)} of this machine is not the device of that name")
    return tree


def _numbered(staging: int, directory: bytes) -> list[bytes]:
    """Return the paths of entries like cpu0 in *directory*; none where it does not exist."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=staging)
    except OSError:
        return []
    names = [os.fsencode(name) for name in os.listdir(fd)]
    os.close(fd)
    return [b"%s/%s" % (directory, name) for name in names if name[3:].isdigit()]


def _mask(staging: int, path: bytes) -> None:
    """Hide *path*: an empty read-only directory over a directory, /dev/null over a file."""
    try:
        place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=staging)
    except OSError:
        return  # this kernel does not have it
    if stat.S_ISDIR(os.fstat(place).st_mode):
        tree = sc.open_tree(staging, b"empty")
        sc.mount_setattr(tree, b"", sc.MOUNT_ATTR_NO_EXEC | sc.MOUNT_ATTR_RDONLY)
    else:
        tree = sc.open_tree(staging, b"dev/null")
    sc.move_mount(tree, place, b"")
    os.close(tree)
    os.close(place)


def _make_read_only(staging: int, path: bytes) -> None:
    try:
        tree = sc.open_tree(staging, path)
    except FileNotFoundError:
        return  # this kernel does not have it
    sc.mount_setattr(tree, b"", sc.MOUNT_ATTR_RDONLY)
    sc.move_mount(tree, staging, path)
    os.close(tree)
