"""Copy single entries of a tree: content, owner, mode, attributes, time."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from cache.fs import image_xattrs
from cache.kernel import set_owner

_FICLONE = 0x40049409  # linux/fs.h: share the blocks of a file, where the file system can
_MOST = 1 << 30  # bytes of one copy_file_range
_LARGE = 1 << 16  # bytes of a file that may have holes, or be worth to share


def replicate(source: int, path: str, target: int, name: str, found: os.stat_result) -> bool:
    """Copy the entry *path*, not a directory, of *source* to the new entry *name* of *target*.

    *found* is its stat. Return False for a device that only real root can make. Raises OSError.
    """
    mode = found.st_mode
    if stat.S_ISREG(mode):
        _file(source, path, target, name, found)
        return True
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink(path, dir_fd=source), name, dir_fd=target)
    else:
        try:
            os.mknod(name, stat.S_IFMT(mode) | 0o600, found.st_rdev, dir_fd=target)
        except PermissionError:
            return False
    set_owner(name, found.st_uid, found.st_gid, dir_fd=target)
    if not stat.S_ISLNK(mode):
        os.chmod(name, stat.S_IMODE(mode), dir_fd=target)
    os.utime(name, ns=(found.st_mtime_ns, found.st_mtime_ns), dir_fd=target, follow_symlinks=False)
    return True


def _file(source: int, path: str, target: int, name: str, found: os.stat_result) -> None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    there = os.open(path, flags, dir_fd=source)
    try:
        here = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
        try:
            if found.st_size:
                _content(there, here, found.st_size)
            set_owner(here, found.st_uid, found.st_gid)  # a setgid directory has handed down its group
            for key, value in image_xattrs(there):
                os.setxattr(here, key, value)
            os.fchmod(here, stat.S_IMODE(found.st_mode))
            os.utime(here, ns=(found.st_mtime_ns, found.st_mtime_ns))
        finally:
            os.close(here)
    finally:
        os.close(there)


def _content(there: int, here: int, size: int) -> None:
    """Copy the bytes of a file but not its holes."""
    if size <= _LARGE:
        data = os.read(there, size)
        if len(data) == size:
            os.write(here, data)
            return
        os.lseek(there, 0, os.SEEK_SET)
    else:
        try:
            fcntl.ioctl(here, _FICLONE, there)
            return
        except OSError:
            pass
    place = 0
    while place < size:
        try:
            place = os.lseek(there, place, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break  # the rest is a hole
        end = os.lseek(there, place, os.SEEK_HOLE)
        while place < end:
            place += _some(there, here, place, min(end - place, _MOST))
    os.ftruncate(here, size)


def _some(there: int, here: int, place: int, size: int) -> int:
    """Copy up to *size* bytes at *place* and return their number."""
    try:
        done = os.copy_file_range(there, here, size, place, place)
        if done:
            return done
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM):
            raise
    data = os.pread(there, min(size, 1 << 20), place)
    if not data:
        raise OSError(errno.EIO, "a file became shorter while it was copied")
    return os.pwrite(here, data, place)
