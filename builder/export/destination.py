"""The directory and the name that the path of an archive leads to, with links followed safely.

A link that another user has put into a world-writable directory such as /tmp may be an attack: it makes
root overwrite a file. The kernel can refuse such links (protected_symlinks of proc(5)). Here none is
followed in any case, and each directory is opened once, so that nothing can be replaced in between.
"""

from __future__ import annotations

import errno
import os
import stat

from builder.errors import OutputError

_MOST_LINKS = 40
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_place(path: str) -> tuple[int, str, os.stat_result | None]:
    """Return the directory of *path*, open, the name in it, and the stat of that if it exists.

    The name is no link. Raises OSError, and BuildError where an untrusted link is on the way.
    """
    folders = [os.open("/", _FOLDER)]
    todo = os.path.join(os.getcwd(), path).split("/")[::-1]
    links = 0
    try:
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                if len(folders) > 1:
                    os.close(folders.pop())
                continue
            found = _look(folders[-1], name)
            if found is not None and stat.S_ISLNK(found.st_mode):
                _check(folders[-1], found, path)
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                target = os.readlink(name, dir_fd=folders[-1])
                if target.startswith("/"):
                    while len(folders) > 1:
                        os.close(folders.pop())
                todo += target.split("/")[::-1]
            elif any(part not in ("", ".") for part in todo):
                folders.append(os.open(name, _FOLDER, dir_fd=folders[-1]))
            else:
                if found is not None and not stat.S_ISREG(found.st_mode):
                    _check(folders[-1], found, path)
                return os.dup(folders[-1]), name, found
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    finally:
        for fd in folders:
            os.close(fd)


def _look(folder: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _check(folder: int, found: os.stat_result, path: str) -> None:
    """Check that a file in a world-writable directory belongs to us or to the directory's owner."""
    above = os.fstat(folder)
    everybodys = stat.S_ISVTX | stat.S_IWOTH
    if above.st_mode & everybodys == everybodys and found.st_uid not in (os.geteuid(), above.st_uid):
        what = "a link" if stat.S_ISLNK(found.st_mode) else "no plain file, and"
        raise OutputError(
            f"writing {path}: on the way is {what} of another user (uid {found.st_uid}), in a directory "
            "where everybody writes",
            "write it to a directory of your own",
        )
