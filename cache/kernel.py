"""System calls that the store needs and the os module lacks: openat2, syncfs, Landlock.

Every path that an image, an archive or a Dockerfile chose is opened through ``open_in_root``.
Symlinks, absolute ones too, resolve inside the root as they would after chroot; ``..`` stops
at it. Refusing absolute links instead would break real images (`/var/run -> /run`).
"""

import ctypes
import errno
import functools
import os
import stat
import struct

from cache.errors import CacheError

_libc = ctypes.CDLL(None, use_errno=True)
_OPENAT2 = 437
_SYNC_FILE_RANGE_WRITE = 2
_RESOLVE_NO_XDEV = 0x01
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
# openat2 answers EAGAIN while anything on the machine renames or mounts and the path holds
# "..": with 128 tries a busy machine still fails about once in a thousand, then we walk.
_TRIES = 128
_MAX_LINKS = 40

# Whether openat2 works: the kernel has it and no seccomp filter hides it. The first call finds out.
_usable = [True]


def open_in_root(root: int, path: bytes, flags: int, mode: int = 0, one_mount: bool = False) -> int:
    """Open *path* relative to the directory *root*, never leaving it; returns a descriptor.

    O_CLOEXEC is always added. With *one_mount*, crossing a mount point is EXDEV. Raises
    OSError as open(2) does; ELOOP after 40 links.
    """
    flags |= os.O_CLOEXEC
    if _usable[0]:
        resolve = _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS | (_RESOLVE_NO_XDEV if one_mount else 0)
        how = struct.pack("=QQQ", flags, mode, resolve)
        for _ in range(_TRIES):
            fd: int = _libc.syscall(_OPENAT2, root, path or b".", how, ctypes.c_size_t(len(how)))
            if fd >= 0:
                return fd
            code = ctypes.get_errno()
            if code == errno.EAGAIN:
                continue
            if code == errno.ENOSYS:
                _usable[0] = False
                break
            raise OSError(code, os.strerror(code), os.fsdecode(path))
    return walk_in_root(root, path, flags, mode)


def read_regular(path: str, limit: int) -> bytes:
    """Return the bytes of a file, at most *limit* + 1. A link at its end resolves in its directory.

    Raises OSError, EINVAL if it is no regular file.
    """
    folder = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = open_in_root(folder, os.fsencode(os.path.basename(path)), os.O_RDONLY | os.O_NONBLOCK)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path)
    with open(fd, "rb") as file:
        return file.read(limit + 1)


ONE_ID = (
    "this user has one id: what steps chown, and what is copied of other owners, becomes root's "
    "(see pybuild doctor)"
)


@functools.cache
def keeps_owners() -> bool:
    """Return whether files can belong to other ids: not in a user namespace that maps a single one."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        rows = [line.split() for line in file]
    return len(rows) != 1 or rows[0][2] != "1"


def set_owner(path: "int | str | bytes", uid: int, gid: int, dir_fd: "int | None" = None) -> None:
    """Change an owner without following a link. Do nothing where owners cannot be kept.

    Raises OSError, and CacheError for ids that this user namespace does not have.
    """
    if not keeps_owners():
        return
    try:
        if isinstance(path, int):
            os.fchown(path, uid, gid)
        else:
            os.chown(path, uid, gid, dir_fd=dir_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise CacheError(
            f"owner {uid}:{gid} is not among the ids that this user has",
            "give the user more of them in /etc/subuid and /etc/subgid",
        ) from None


def write_all(fd: int, data: "bytes | memoryview") -> None:
    """Write all of *data*, and wait where *fd* does not block and is full. Raises OSError."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            import select  # standard output of some callers is such a pipe

            waiting = select.poll()
            waiting.register(fd, select.POLLOUT)
            waiting.poll()


def walk_in_root(root: int, path: bytes, flags: int, mode: int = 0) -> int:
    """Do what ``open_in_root`` does one component at a time, for kernels before 5.6."""
    todo = [part for part in path.split(b"/") if part not in (b"", b".")][::-1]
    trail = [os.dup(root)]
    links = 0
    try:
        while todo:
            part = todo.pop()
            if part == b"..":
                if len(trail) > 1:
                    os.close(trail.pop())
                continue
            try:
                target = os.readlink(part, dir_fd=trail[-1])
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOENT):
                    raise
                target = None
            if target is not None and (todo or not flags & os.O_NOFOLLOW):
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fsdecode(path))
                if target.startswith(b"/"):
                    while len(trail) > 1:
                        os.close(trail.pop())
                todo += [piece for piece in target.split(b"/") if piece not in (b"", b".")][::-1]
            elif todo:
                step = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                trail.append(os.open(part, step, dir_fd=trail[-1]))
            else:
                return os.open(part, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=trail[-1])
        return os.open(b".", flags | os.O_CLOEXEC, mode, dir_fd=trail[-1])
    finally:
        for fd in trail:
            os.close(fd)


def sync_file_system(path: str) -> None:
    """syncfs on the file system that holds the directory *path*. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
    finally:
        os.close(fd)


def start_writing(fd: int, offset: int, size: int) -> None:
    """Start writing *size* bytes of a file back to the disk, so that a later sync is short.

    sync_file_range(2). Errors are ignored: it is a hint.
    """
    _libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(size), _SYNC_FILE_RANGE_WRITE)


# -- Landlock (landlock(7)) ------------------------------------------------------------------

_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_RULE_PATH_BENEATH = 1
_LANDLOCK_VERSION_OF_SCOPES = 6
_LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET = 1
_LANDLOCK_ACCESS_FS_REFER = 1 << 13
_PR_SET_NO_NEW_PRIVS = 38


def landlock_version() -> int:
    """Return the version of Landlock that this kernel has enabled, 0 if none."""
    found: int = _libc.syscall(
        _LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_CREATE_RULESET_VERSION
    )
    return max(found, 0)


def landlock_ruleset(handled: int, network: int = 0, scopes: int = 0) -> int:
    """Return a descriptor of rules for the file system accesses *handled*: refused unless a rule allows them.

    The same holds for accesses of the *network* (from version 4) and *scopes* (from 6). Raises OSError.
    """
    fields = (handled, network, scopes)[: 3 if scopes else 2 if network else 1]
    rules = struct.pack(f"={len(fields)}Q", *fields)
    return _landlock(_LANDLOCK_CREATE_RULESET, rules, ctypes.c_size_t(len(rules)), 0)


def landlock_allow(ruleset: int, allowed: int, place: int) -> None:
    """Allow the accesses *allowed* below the directory, or to the file, open as *place*."""
    rule = struct.pack("=Qi", allowed, place)
    _landlock(_LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_RULE_PATH_BENEATH, rule, 0)


def hide_abstract_sockets() -> None:
    """Deny this process and its children the abstract sockets of others, from kernel 6.12 on.

    No file's mode protects such sockets (CVE-2020-15257). Raises OSError.
    """
    if landlock_version() < _LANDLOCK_VERSION_OF_SCOPES:
        return
    landlock_scopes(_LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET)


def landlock_scopes(scopes: int) -> None:
    """Restrict this thread and its children to *scopes* and nothing else, from version 6. Raises OSError.

    Every ruleset refuses moves and links between directories unless a rule allows them, so one does.
    """
    ruleset = landlock_ruleset(_LANDLOCK_ACCESS_FS_REFER, 0, scopes)
    place = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        landlock_allow(ruleset, _LANDLOCK_ACCESS_FS_REFER, place)
        _landlock(_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(place)
        os.close(ruleset)


def landlock_restrict(ruleset: int) -> None:
    """Restrict this thread and its children to the rules, for good; they get no new privileges."""
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    _landlock(_LANDLOCK_RESTRICT_SELF, ruleset, 0)


def _landlock(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"landlock: {os.strerror(code)}")
    return result
