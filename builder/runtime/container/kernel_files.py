"""/proc, /sys and /dev of a container, with what is hidden or read-only in them.

The child of a step (``init.py``) mounts them in its own namespaces, at a place from which they are moved into
the image's root: what is the same for all steps does not have to wait for one.
"""

import contextlib
import os
import stat

from builder.runtime import syscalls as sc
from builder.runtime.container.devices import DEVICES, LINKS
from builder.runtime.spec import FrameSpec, StepError
from cache.kernel import keeps_owners

NO_EXEC = sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV | sc.MOUNT_ATTR_NOEXEC

_MASKED = (
    b"proc/acpi",
    b"proc/asound",
    b"proc/interrupts",
    b"proc/kcore",
    b"proc/keys",
    b"proc/latency_stats",
    b"proc/sched_debug",
    b"proc/scsi",
    b"proc/timer_list",
    b"proc/timer_stats",
    b"proc/tty/driver",  # only the machine's root may list it: `find /` of a step would fail
    b"sys/devices/virtual/powercap",
    b"sys/firmware",
    b"sys/fs/selinux",
)
# What only the machine's own root may read: hidden where root of a step has its number.
_OF_ROOT = (
    b"proc/kpagecgroup",
    b"proc/kpagecount",
    b"proc/kpageflags",
    b"proc/pagetypeinfo",
    b"proc/slabinfo",
    b"proc/vmallocinfo",
    b"sys/kernel/slab",
)
# What is mounted inside the host's own /sys.
_MOUNTED_IN_SYS = (
    b"sys/fs/bpf",
    b"sys/fs/cgroup",
    b"sys/fs/fuse/connections",
    b"sys/fs/pstore",
    b"sys/kernel/config",
    b"sys/kernel/debug",
    b"sys/kernel/security",
    b"sys/kernel/tracing",
)
_READ_ONLY = (b"proc/bus", b"proc/fs", b"proc/irq", b"proc/sys", b"proc/sysrq-trigger")


def mount_kernel_files(frame: FrameSpec, staging: int, spot: bytes, proc: int, nodes: list[int]) -> None:
    """Mount /proc, /sys and /dev in the directory *staging*, then what is masked or read-only in them.

    *proc* is a detached mount of /proc, *spot* is an empty directory to mount things on for a moment;
    *nodes* as ``init.wait_and_run`` has it. Raises StepError and OSError.
    """
    devices = {name: _host_device(name) for name in DEVICES}
    devices |= _given_devices(frame["devices"], spot, nodes)
    masked: tuple[bytes, ...] = _MASKED
    sysfs = -1
    if frame["network"] in ("none", "default"):
        with contextlib.suppress(PermissionError):  # in a container that hides parts of its own
            sysfs = sc.new_mount(b"sysfs", NO_EXEC | sc.MOUNT_ATTR_RDONLY, {})
    if sysfs < 0:
        # A sysfs of one's own needs a net namespace of one's own; take the host's, read-only.
        sysfs = sc.open_tree(sc.AT_FDCWD, b"/sys", recursive=True)
        sc.mount_setattr(sysfs, b"", NO_EXEC | sc.MOUNT_ATTR_RDONLY, recursive=True)
        masked = (*_MASKED, *_MOUNTED_IN_SYS)
    if os.fstat(proc).st_uid == 0:  # the machine's own root, who could change the modes of its devices
        masked = (*masked, *_OF_ROOT)
        for tree in devices.values():
            sc.mount_setattr(tree, b"", sc.MOUNT_ATTR_RDONLY)
    proc_fd = os.dup(proc)
    for name, tree in ((b"proc", proc), (b"sys", sysfs)):
        sc.move_mount(tree, staging, name)
        os.close(tree)
    if os.readlink(b"self", dir_fd=proc_fd) != b"%d" % os.getpid():
        for path in _foreign_processes(proc_fd):
            with contextlib.suppress(FileNotFoundError):  # it has just ended
                _mask(staging, path)
    os.close(proc_fd)
    _fill_dev(staging, devices, frame["shm_size"])
    if frame["masked"]:
        for path in (*masked, *_thermal_throttles(staging)):
            _mask(staging, path)
        for path in _READ_ONLY:
            _make_read_only(staging, path)


def _foreign_processes(proc: int) -> list[bytes]:
    """The folders, in a /proc of other namespaces, of processes that are there and are not the step's."""
    own = os.readlink(b"self", dir_fd=proc)
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc)
    try:
        names = map(os.fsencode, os.listdir(fd))
        return [b"proc/" + name for name in names if name.isdigit() and name != own]
    finally:
        os.close(fd)


def _host_device(name: bytes) -> int:
    """A detached mount of one host device node, checked to be the device it is named for."""
    tree = sc.open_tree(sc.AT_FDCWD, b"/dev/" + name)
    found = os.fstat(tree)
    device = (os.major(found.st_rdev), os.minor(found.st_rdev))
    if not stat.S_ISCHR(found.st_mode) or device != DEVICES[name]:
        raise StepError(f"/dev/{os.fsdecode(name)} of this machine is not the device of that name")
    return tree


def _given_devices(given: dict[bytes, bytes], spot: bytes, nodes: list[int]) -> dict[bytes, int]:
    """Detached mounts of the devices that the command line names, by their paths below /dev."""
    for fd in nodes:
        sc.move_mount(fd, sc.AT_FDCWD, spot)
    out = {}
    for number, (target, path) in enumerate(given.items()):
        name = target.removeprefix(b"/dev/")
        try:
            out[name] = sc.open_tree(nodes[0], b"%d" % number) if nodes else sc.open_tree(sc.AT_FDCWD, path)
        except OSError as error:
            raise StepError(f"the device {os.fsdecode(path)}: {os.strerror(error.errno or 0)}") from None
        if stat.S_IFMT(os.fstat(out[name]).st_mode) not in (stat.S_IFCHR, stat.S_IFBLK):
            raise StepError(f"{os.fsdecode(path)} of this machine is not a device")
    for fd in nodes:
        sc.umount2(spot, sc.MNT_DETACH)
        os.close(fd)
    return out


def _thermal_throttles(staging: int) -> list[bytes]:
    """Counters that tell what other work the machine does (RT-11), for each processor."""
    top = b"sys/devices/system/cpu"
    try:
        fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=staging)
    except OSError:
        return []
    names = [os.fsencode(name) for name in os.listdir(fd)]
    os.close(fd)
    return [top + b"/%s/thermal_throttle" % name for name in names if name[3:].isdigit()]


def _fill_dev(staging: int, devices: dict[bytes, int], shm_size: int) -> None:
    options: dict[bytes, bytes | None] = {b"mode": b"0755", b"size": b"64m"}
    dev = sc.new_mount(b"tmpfs", sc.MOUNT_ATTR_NOSUID, options)
    sc.move_mount(dev, staging, b"dev")
    for name, tree in devices.items():
        for end, byte in enumerate(name):
            if byte == ord("/"):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name[:end], 0o755, dir_fd=dev)
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=dev))
        sc.move_mount(tree, dev, name)
        os.close(tree)
    for name, target in LINKS.items():
        os.symlink(target, name, dir_fd=dev)
    plain: dict[bytes, bytes | None] = {}
    pts: dict[bytes, bytes | None] = {b"newinstance": None, b"ptmxmode": b"0666", b"mode": b"0620"}
    if keeps_owners():
        pts[b"gid"] = b"5"
    shm: dict[bytes, bytes | None] = {b"mode": b"1777", b"size": b"%d" % shm_size}
    for name, kind, attributes, mount_options in (
        (b"pts", b"devpts", sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NOEXEC, pts),
        (b"shm", b"tmpfs", NO_EXEC, shm),
        (b"mqueue", b"mqueue", NO_EXEC, plain),
    ):
        os.mkdir(name, 0o755, dir_fd=dev)
        tree = sc.new_mount(kind, attributes, mount_options)
        sc.move_mount(tree, dev, name)
        os.close(tree)
    os.close(dev)


def _mask(staging: int, path: bytes) -> None:
    """Hide *path*: an empty read-only directory over a directory, /dev/null over a file."""
    try:
        place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=staging)
    except OSError:
        return  # this kernel does not have it
    if stat.S_ISDIR(os.fstat(place).st_mode):
        tree = sc.open_tree(staging, b"empty")
        sc.mount_setattr(tree, b"", NO_EXEC | sc.MOUNT_ATTR_RDONLY)
    else:
        tree = sc.open_tree(staging, b"dev/null")
    sc.move_mount(tree, place, b"")
    os.close(tree)
    os.close(place)


def _make_read_only(staging: int, path: bytes) -> None:
    try:
        tree = sc.open_tree(staging, path)
    except FileNotFoundError:
        return
    sc.mount_setattr(tree, b"", sc.MOUNT_ATTR_RDONLY)
    sc.move_mount(tree, staging, path)
    os.close(tree)
