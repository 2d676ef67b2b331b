"""List a directory, and apply a layer to it."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from cache.fs import image_xattrs, is_opaque, is_whiteout, remove_tree
from cache.layer.replicate import replicate

if TYPE_CHECKING:
    from collections.abc import Iterator

# An entry as a scan sees it: mode, owner, group, size, mtime, ctime, inode, links, device. A plain tuple
# for speed: there is one per file of a root.
Seen = tuple[int, int, int, int, int, int, int, int, int]
MODE, MTIME, CTIME, INODE, LINKS = 0, 4, 5, 6, 7  # indexes into ``Seen``

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC  # flags to open one


def seen(found: os.stat_result) -> Seen:
    """Return the metadata that tells whether a file was changed."""
    return (
        found.st_mode, found.st_uid, found.st_gid, found.st_size, found.st_mtime_ns,
        found.st_ctime_ns, found.st_ino, found.st_nlink, found.st_rdev,
    )  # fmt: skip


def scan(root: str, skipped: tuple[str, ...] = ()) -> dict[str, Seen]:
    """Return everything below *root* by its path; the contents of the directories *skipped* are left out.

    Raises OSError.
    """
    top = os.open(root, DIRECTORY)
    try:
        return {path: seen(found) for path, found in _walk(top, skipped)}
    finally:
        os.close(top)


def _walk(top: int, skipped: tuple[str, ...]) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the path and metadata of everything below the directory *top*, parents first. Raises OSError.

    Directories of *skipped* are not entered.
    """
    todo = [""]
    while todo:
        directory = todo.pop()
        prefix = directory + "/" if directory else ""
        fd = os.open(directory or ".", DIRECTORY, dir_fd=top)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    path, found = prefix + entry.name, entry.stat(follow_symlinks=False)
                    yield path, found
                    if stat.S_ISDIR(found.st_mode) and path not in skipped:
                        todo.append(path)
        finally:
            os.close(fd)


def apply_layer(layer: str, root: str, skipped: tuple[str, ...] = ()) -> None:
    """Put the directory *layer*, except its devices, on top of what is in *root*. Raises OSError."""
    source, target = os.open(layer, DIRECTORY), os.open(root, DIRECTORY)
    directories: list[str] = []
    try:
        if is_opaque(source):
            for name in os.listdir(target):
                if name not in skipped:
                    remove_tree(name, dir_fd=target)
        for path, found in _walk(source, skipped):
            if is_whiteout(found):
                remove_tree(path, dir_fd=target)
            elif stat.S_ISDIR(found.st_mode):
                _make_directory(layer, path, target)
                directories.append(path)
            elif not stat.S_ISBLK(found.st_mode) and not stat.S_ISCHR(found.st_mode):
                replace(source, path, target, path, found)
    finally:
        os.close(source)
        os.close(target)
    for path in reversed(directories):  # parents last: making entries in them changes their times
        copy_metadata(layer, path, root)
        found = os.lstat(os.path.join(layer, path))
        os.utime(os.path.join(root, path), ns=(found.st_mtime_ns, found.st_mtime_ns))


def _make_directory(layer: str, path: str, target: int) -> None:
    """Make *path* a directory. It keeps its contents, unless *layer* hides them."""
    try:
        there = stat.S_ISDIR(os.stat(path, dir_fd=target, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        os.mkdir(path, 0o700, dir_fd=target)
        return
    if not there or is_opaque(os.path.join(layer, path)):
        remove_tree(path, dir_fd=target)
        os.mkdir(path, 0o700, dir_fd=target)


def copy_metadata(root: str, path: str, upper: str) -> None:
    """Copy owner, mode and xattrs, but not the time, of the directory *path* from *root* to *upper*."""
    source, target = os.path.join(root, path), os.path.join(upper, path)
    found = os.lstat(source)
    os.chown(target, found.st_uid, found.st_gid, follow_symlinks=False)
    for name, value in image_xattrs(source):
        os.setxattr(target, name, value, follow_symlinks=False)
    os.chmod(target, stat.S_IMODE(found.st_mode))


def replace(source: int, path: str, target: int, name: str, found: os.stat_result) -> None:
    """Copy the file *path* of the directory *source* to *name* of *target*, in place of what is there."""
    try:
        replicate(source, path, target, name, found)
    except FileExistsError:
        remove_tree(name, dir_fd=target)
        replicate(source, path, target, name, found)
