"""Where overlayfs cannot be mounted: a step's root is a plain copy of what is below it.

Slow, and it works on every file system. What overlayfs would have told is found out afterwards:
what is missing was removed, what is equal is taken out again by ``cache.diff``.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable

from builder.execute.files import copy_path, copy_tree
from cache.confine import confined
from cache.snapshots import Draft
from cache.tree import Node, Tree, merged_names
from cache.trees import is_whiteout, real_folder


def fill(draft: Draft) -> list[str]:
    """Copy what is below *draft* into it, with the mount points of every container; those made for it."""
    copy_tree(draft.lower(), draft.upper, links=False)
    return add_points(draft, draft.store.path("mounts"))


def add_points(draft: Draft, points: str) -> list[str]:
    """Make what the folder *points* holds and *draft* does not; the paths made, parents first.

    Below a link of the image nothing is made, as overlayfs shows nothing of *points* there.
    """
    made: list[str] = []

    def add(folder: str, name: str, is_folder: bool) -> None:
        with real_folder(draft.upper, folder) as above:
            if is_folder:
                os.mkdir(name, 0o755, dir_fd=above)
            else:
                os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=above))
        made.append(os.path.join(folder, name))

    def walk() -> None:
        for top, names, files in os.walk(points):
            folder = os.path.relpath(top, points) if top != points else ""
            for name in (*names, *files):
                with contextlib.suppress(FileExistsError, FileNotFoundError, NotADirectoryError):
                    add(folder, name, name in names)

    _confined(draft, walk)
    return made


def copy_bound(tree: Tree, path: str, folder: str) -> bytes:
    """Copy *path* of *tree* for a bind mount into the empty *folder*; what it is called there."""
    copy_path(tree, path, folder, "/bound", links=False)
    return b"/bound"


def settle(draft: Draft, made: list[str]) -> None:
    """After the step: take back mount points that it left empty, and say what it has removed."""

    def work() -> None:
        for path in reversed(made):
            above, _, name = path.rpartition("/")
            with contextlib.suppress(OSError), real_folder(draft.upper, above) as folder:
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    os.rmdir(name, dir_fd=folder)
                elif stat.S_ISREG(found.st_mode) and not found.st_size:
                    os.unlink(name, dir_fd=folder)
        lower = draft.lower()
        if lower.root is not None:
            _note_removed(draft.upper, lower.root, lower)

    _confined(draft, work)


def _confined(draft: Draft, work: Callable[[], None]) -> None:
    """Call *work* where it can write to *draft* alone: links of an image and of a step lead anywhere."""
    confined([draft.folder], work)


def _note_removed(upper: str, below: Node, lower: Tree) -> None:
    stack = [(upper, below)]
    while stack:
        folder, node = stack.pop()
        before = os.lstat(folder)
        for name in merged_names(node):
            under = lower.child(node, name)
            place = f"{folder}/{name}"
            try:
                found = os.lstat(place)
            except FileNotFoundError:
                if under is None or not under.found.st_rdev:  # devices may never have been there
                    os.mknod(place, stat.S_IFCHR, 0)
                continue
            if under is not None and under.is_dir and stat.S_ISDIR(found.st_mode) and not is_whiteout(found):
                stack.append((place, under))
        os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
