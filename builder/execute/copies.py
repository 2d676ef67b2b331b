"""Where overlayfs cannot be mounted: a step's root is a plain copy of what is below it.

Slow, and it works on every file system. What overlayfs would have told is found out afterwards:
what is missing was removed, what is equal is taken out again by ``cache.diff``.
"""

from __future__ import annotations

import os
import stat

from builder.execute.files import copy_path, copy_tree
from cache.snapshots import Draft
from cache.tree import Node, Tree, merged_names
from cache.trees import is_whiteout


def fill(draft: Draft) -> list[str]:
    """Copy what is below *draft* into it, with the mount points of every container; those made for it."""
    copy_tree(draft.lower(), draft.upper)
    return add_points(draft, draft.store.path("mounts"))


def add_points(draft: Draft, points: str) -> list[str]:
    """Make what the folder *points* holds and *draft* does not; the paths made, parents first."""
    made = []
    for folder, names, files in os.walk(points):
        for name in (*names, *files):
            path = os.path.relpath(os.path.join(folder, name), points)
            place = os.path.join(draft.upper, path)
            if os.path.lexists(place):
                continue
            above = os.lstat(os.path.dirname(place))
            if name in names:
                os.mkdir(place, 0o755)
            else:
                os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
            os.utime(os.path.dirname(place), ns=(above.st_atime_ns, above.st_mtime_ns))
            made.append(path)
    return made


def copy_bound(tree: Tree, path: str, folder: str) -> bytes:
    """Copy *path* of *tree* for a bind mount into the empty *folder*; what it is called there."""
    copy_path(tree, path, folder, "/bound")
    return b"/bound"


def settle(draft: Draft, made: list[str]) -> None:
    """After the step: take back mount points that it left empty, and say what it has removed."""
    for path in reversed(made):
        place = os.path.join(draft.upper, path)
        try:
            above, found = os.lstat(os.path.dirname(place)), os.lstat(place)
            if stat.S_ISDIR(found.st_mode):
                os.rmdir(place)
            elif not found.st_size:
                os.unlink(place)
        except OSError:
            continue  # the step has put something there, or taken it away
        os.utime(os.path.dirname(place), ns=(above.st_atime_ns, above.st_mtime_ns))
    lower = draft.lower()
    if lower.root is not None:
        _note_removed(draft.upper, lower.root, lower)


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
                os.mknod(place, stat.S_IFCHR, 0)
                continue
            if under is not None and under.is_dir and stat.S_ISDIR(found.st_mode) and not is_whiteout(found):
                stack.append((place, under))
        os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
