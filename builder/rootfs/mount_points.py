"""Mount points in roots that are plain directories, and copies of what is bound into them.

The roots themselves are ``builder.rootfs.plain_trees``.
"""

from __future__ import annotations

import contextlib
import os
import stat

from builder.copy.place import copy_path
from cache.fs import real_folder, remove_devices
from cache.layer.merged_tree import Tree


def add_points(root: str, points: str) -> list[str]:
    """Make what the directory *points* holds and *root* does not; the paths made, parents first.

    Below a link of the image nothing is made, as overlayfs shows nothing of *points* there. To be called
    where nothing else can be written to.
    """
    made: list[str] = []

    def add(above: str, name: str, is_directory: bool) -> None:
        with real_folder(root, above) as fd:
            if is_directory:
                os.mkdir(name, 0o755, dir_fd=fd)
            else:
                os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=fd))
        made.append(os.path.join(above, name))

    for top, names, files in os.walk(points):
        above = os.path.relpath(top, points) if top != points else ""
        for name in (*names, *files):
            with contextlib.suppress(FileExistsError, FileNotFoundError, NotADirectoryError):
                add(above, name, name in names)
    return made


def take_points(root: str, made: list[str]) -> None:
    """Take back the mount points *made* in *root* that a step left empty."""
    for path in reversed(made):
        above, _, name = path.rpartition("/")
        with contextlib.suppress(OSError), real_folder(root, above) as folder:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                os.rmdir(name, dir_fd=folder)
            elif stat.S_ISREG(found.st_mode) and not found.st_size:
                os.unlink(name, dir_fd=folder)


def copy_bound(tree: Tree, path: str, folder: str) -> bytes:
    """Copy *path* of *tree* for a bind mount into the empty directory *folder*; return its name there."""
    copy_path(tree, path, folder, "/bound", links=False)
    remove_devices(folder)
    return b"/bound"
