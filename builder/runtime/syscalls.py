"""System calls that Python 3.11 lacks: one function per call, named as the call.

Every function raises OSError on failure. The library is loaded with PyDLL, so the
interpreter lock is held across a call: required for clone3, whose child must not find the
lock taken by a thread that does not exist there.
"""

import ctypes
import errno
import os
import signal
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_libc = ctypes.PyDLL(None, use_errno=True)
_libc.mount.argtypes = [
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_libc.unshare.argtypes = [ctypes.c_int]
_libc.setns.argtypes = [ctypes.c_int, ctypes.c_int]
_libc.capset.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
_libc.syscall.restype = ctypes.c_long

AT_EMPTY_PATH = 0x1000
AT_FDCWD = -100
AT_RECURSIVE = 0x8000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWNET = 0x40000000
CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWUTS = 0x04000000
CLONE_PIDFD = 0x00001000
CLONE_INTO_CGROUP = 0x200000000
MNT_DETACH = 2
MOUNT_ATTR_IDMAP = 0x00100000
MOUNT_ATTR_NODEV = 0x00000004
MOUNT_ATTR_NOEXEC = 0x00000008
MOUNT_ATTR_NOSUID = 0x00000002
MOUNT_ATTR_RDONLY = 0x00000001
MOUNT_ATTR_NO_EXEC = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
MS_NODEV = 4
MS_PRIVATE = 1 << 18
MS_REC = 16384
OPEN_TREE_CLONE = 1
PR_CAPBSET_DROP = 24
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38
PR_GET_NO_NEW_PRIVS = 39
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

# Numbers from 424 on are the same on every architecture; some calls are older than that.
_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}
_KEYCTL_JOIN_SESSION_KEYRING = 1
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}
_SECCOMP = {"x86_64": 317, "aarch64": 277, "riscv64": 277, "ppc64le": 358, "s390x": 348}
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4
_SECCOMP_FILTER_FLAG_NEW_LISTENER = 8
_NEWFSTATAT = {"x86_64": 262, "aarch64": 79}
_STATX = {"x86_64": 332, "aarch64": 291}
_STAT_BYTES = {"x86_64": 144, "aarch64": 128}
_STATX_BYTES = 256
_OPEN_TREE = 428
_MOVE_MOUNT = 429
_FSOPEN = 430
_FSCONFIG = 431
_FSMOUNT = 432
_CLONE3 = 435
_CLOSE_RANGE = 436
_MOUNT_SETATTR = 442

_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_FSMOUNT_CLOEXEC = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 0x04
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
_CAPABILITY_VERSION_3 = 0x20080522


_MOST_DESCRIPTORS = 65536


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def clone3(flags: int, cgroup: int = -1) -> tuple[int, int]:
    """Fork into new namespaces; returns ``(pid, pidfd)``, in the child ``(0, -1)``.

    *cgroup* is the descriptor of a v2 cgroup to be born in. Only for a single-threaded process:
    none of libc's fork handlers run.
    """
    pidfd = ctypes.c_int(-1)
    flags |= CLONE_PIDFD | (CLONE_INTO_CGROUP if cgroup >= 0 else 0)
    place = max(cgroup, 0)
    args = struct.pack("=11Q", flags, ctypes.addressof(pidfd), 0, 0, 17, 0, 0, 0, 0, 0, place)  # 17: SIGCHLD
    pid = _libc.syscall(_CLONE3, args, ctypes.c_size_t(len(args)))
    _check(pid, "clone3")
    return pid, pidfd.value


def close_range(first: int) -> None:
    """Close every descriptor from *first* up."""
    if _libc.syscall(_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(0xFFFFFFFF), 0) < 0:
        if ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM):
            _check(-1, "close_range")
        os.closerange(first, _MOST_DESCRIPTORS)  # a filter older than the call


def wait_to_be_killed(parent: int) -> None:
    """Wait until the process *parent*, which forked this one, kills it or is gone itself; never returns."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent:
        signal.pause()
    os._exit(0)


def keep_only(fds: list[int]) -> list[int]:
    """Close every descriptor but 0, 1, 2 and *fds*; returns their new numbers, from 3 on.

    For a process forked from the builder: what it inherits would keep sockets and locks of
    the builder open after the builder has closed them.
    """
    high = [os.dup(fd) for fd in fds]
    kept = list(range(3, 3 + len(fds)))
    for source, number in zip(high, kept, strict=True):
        if source not in kept:
            os.dup2(source, number, inheritable=False)
    close_range(3 + len(fds))
    return kept


def mount(source: bytes, target: bytes, kind: bytes, flags: int, data: bytes) -> None:
    _check(_libc.mount(source, target, kind, flags, data), f"mount {os.fsdecode(kind)}")


def umount2(target: bytes, flags: int) -> None:
    _check(_libc.umount2(target, flags), f"umount {os.fsdecode(target)}")


def join_session_keyring() -> None:
    """Leave the session keyring inherited from the caller for an empty one of our own."""
    arguments = (_KEYCTL[os.uname().machine], _KEYCTL_JOIN_SESSION_KEYRING, None)
    # A kernel may have no keys, and the filter of a container that we are in may refuse them.
    if _libc.syscall(*arguments) < 0 and ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM):
        _check(-1, "keyctl")


def pivot_root(new: bytes, old: bytes) -> None:
    _check(_libc.syscall(_PIVOT_ROOT[os.uname().machine], new, old), "pivot_root")


def setns(fd: int, kind: int) -> None:
    _check(_libc.setns(fd, kind), "setns")


def set_seccomp_filter(program: bytes) -> None:
    """Filter the system calls of this process and its children by a BPF *program*.

    Without mitigations for speculative store bypass, which cost more than they help here, as runc has
    it where the kernel knows how.
    """
    buffer = ctypes.create_string_buffer(program, len(program))
    filter_ = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    number = _SECCOMP[os.uname().machine]
    if _libc.syscall(number, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_SPEC_ALLOW, filter_) < 0:
        _check(_libc.syscall(number, _SECCOMP_SET_MODE_FILTER, 0, filter_), "seccomp")


def set_seccomp_listener(program: bytes) -> int:
    """Add a BPF *program*; the calls that it leaves to a supervisor arrive on the descriptor returned.

    seccomp_unotify(2). Raises OSError, EBUSY if this process has such a filter already.
    """
    buffer = ctypes.create_string_buffer(program, len(program))
    filter_ = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    number, flags = _SECCOMP[os.uname().machine], _SECCOMP_FILTER_FLAG_NEW_LISTENER
    found = _libc.syscall(number, _SECCOMP_SET_MODE_FILTER, flags | _SECCOMP_FILTER_FLAG_SPEC_ALLOW, filter_)
    if found < 0:
        found = _libc.syscall(number, _SECCOMP_SET_MODE_FILTER, flags, filter_)
    return _check(found, "seccomp")


def raw_stat(directory: int, path: bytes, flags: int) -> bytes:
    """Return the bytes of struct stat, as newfstatat(2) of this machine's ABI gives them."""
    machine = os.uname().machine
    out = ctypes.create_string_buffer(_STAT_BYTES[machine])
    _check(_libc.syscall(_NEWFSTATAT[machine], directory, path, out, flags), "stat")
    return out.raw


def raw_statx(directory: int, path: bytes, flags: int, mask: int) -> bytes:
    """Return the bytes of struct statx, which is the same on every ABI."""
    out = ctypes.create_string_buffer(_STATX_BYTES)
    number = _STATX[os.uname().machine]
    _check(_libc.syscall(number, directory, path, flags, ctypes.c_uint(mask), out), "statx")
    return out.raw


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def prctl(option: int, argument: int) -> None:
    _check(_libc.prctl(option, argument, 0, 0, 0), "prctl")


def has_no_new_privileges() -> bool:
    """Return whether no_new_privs is set for this process."""
    return bool(_libc.prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1)


def open_tree(directory: int, path: bytes, recursive: bool = False) -> int:
    """Return a detached copy of the mount at *path*, with *path* as its root."""
    flags = OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    flags |= (0 if path else AT_EMPTY_PATH) | (AT_RECURSIVE if recursive else 0)
    return _check(
        _libc.syscall(_OPEN_TREE, directory, path, ctypes.c_uint(flags)), f"open_tree {os.fsdecode(path)}"
    )


def move_mount(mount_fd: int, directory: int, path: bytes) -> None:
    """Attach a detached mount at *path* (at *directory* itself when *path* is empty)."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | (0 if path else _MOVE_MOUNT_T_EMPTY_PATH)
    _check(_libc.syscall(_MOVE_MOUNT, mount_fd, b"", directory, path, ctypes.c_uint(flags)), "move_mount")


def mount_setattr(fd: int, path: bytes, attributes: int, userns: int = 0, recursive: bool = False) -> None:
    """Add *attributes* to a mount; *userns* is the descriptor for MOUNT_ATTR_IDMAP."""
    value = struct.pack("=QQQQ", attributes, 0, 0, userns)
    flags = (0 if path else AT_EMPTY_PATH) | (AT_RECURSIVE if recursive else 0)
    result = _libc.syscall(_MOUNT_SETATTR, fd, path, ctypes.c_uint(flags), value, ctypes.c_size_t(len(value)))
    _check(result, "mount_setattr")


def new_mount(kind: bytes, attributes: int, options: "Iterable[tuple[bytes, bytes | None]]" = ()) -> int:
    """Return a detached mount of a new file system: fsopen, fsconfig and fsmount in one.

    *options* are names with their values, None for a flag.
    """
    context = _check(_libc.syscall(_FSOPEN, kind, 1), f"fsopen {os.fsdecode(kind)}")
    try:
        for key, value in options:
            command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
            _check(_libc.syscall(_FSCONFIG, context, command, key, value, 0), f"fsconfig {os.fsdecode(key)}")
        create = _libc.syscall(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        _check(create, f"mount {os.fsdecode(kind)}")
        return _check(_libc.syscall(_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes), "fsmount")
    finally:
        os.close(context)


def capset(permitted: int, inheritable: int = 0) -> None:
    """Set the permitted and effective capabilities to the bit mask *permitted*."""
    header = struct.pack("=II", _CAPABILITY_VERSION_3, 0)
    low, high = permitted & 0xFFFFFFFF, permitted >> 32
    inh_low, inh_high = inheritable & 0xFFFFFFFF, inheritable >> 32
    data = struct.pack("=6I", low, low, inh_low, high, high, inh_high)
    _check(_libc.capset(header, data), "capset")


def drop_bounding(keep: int) -> None:
    """Drop from the bounding set every capability that *keep* does not hold."""
    for capability in range(64):
        if keep >> capability & 1:
            continue
        if _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            if ctypes.get_errno() == errno.EINVAL:
                return  # past the last capability of this kernel
            _check(-1, "prctl(PR_CAPBSET_DROP)")
