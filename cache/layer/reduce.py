"""Turn an upper directory that a step wrote into a layer that stands on its own.

What overlayfs leaves is reduced to what really changed, as BuildKit's differ does
(T77, T79, T80): whiteouts of nothing go, copied-up files and directories that
are as they were go, and opaque directories become explicit whiteouts. What remains is
immutable and can be packed without looking at any other layer.
"""

from __future__ import annotations

import contextlib
import os
import stat

from cache.errors import LayerError
from cache.fs import OPAQUE, image_xattrs, is_opaque, is_whiteout, make_whiteout
from cache.layer.merged_tree import Node, Tree, merged_names
from cache.layer.pack import WHITEOUT_PREFIX


def normalise(upper: str, lower: Tree) -> None:
    """Reduce the directory *upper* in place to its difference from *lower*.

    Raises LayerError for what no layer can say.
    """
    if lower.root is not None:
        _reduce(upper, lower.root, lower)


def check_name(name: str) -> None:
    """Raise LayerError for a name that a layer's tar would turn into something else."""
    if name.startswith(WHITEOUT_PREFIX):
        raise LayerError(
            f"a file is named {name!r}, which in a layer means that another one is deleted",
            "no image can hold a name that begins with .wh.",
        )


class _Folder:
    """A directory that exists on both sides, while what is in it is reduced."""

    def __init__(self, path: str, found: os.stat_result, below: Node, lower: Tree) -> None:
        self.path = path
        self.found = found
        self.below = below
        if is_opaque(path):
            _expand_opaque(path, below, lower)
        self.left = os.listdir(path)
        self.changed = False  # whether anything in it is left


def _reduce(upper: str, below: Node, lower: Tree) -> None:
    """Reduce a directory and those in it, however deep, children first."""
    stack = [_Folder(upper, os.lstat(upper), below, lower)]
    while stack:
        folder = stack[-1]
        if folder.left:
            inside = _entry(folder, folder.left.pop(), lower)
            if inside is not None:
                stack.append(inside)
            continue
        stack.pop()
        # Taking entries out has touched the directory: give it back the time the step left.
        os.utime(folder.path, ns=(folder.found.st_atime_ns, folder.found.st_mtime_ns))
        if not stack:
            return
        if not folder.changed and _same(folder.path, folder.found, folder.below):
            os.rmdir(folder.path)
        else:
            stack[-1].changed = True


def _entry(folder: _Folder, name: str, lower: Tree) -> _Folder | None:
    """Reduce one entry of a directory; one that is a directory on both sides is handed back instead."""
    check_name(name)
    path = f"{folder.path}/{name}"
    found = os.lstat(path)
    under = lower.child(folder.below, name)
    if is_whiteout(found):
        if under is None:
            os.unlink(path)
            return None
    elif stat.S_ISDIR(found.st_mode):
        if under is not None and under.is_dir:
            return _Folder(path, found, under, lower)
        _strip(path)
    elif under is not None and _same(path, found, under):
        os.unlink(path)
        return None
    folder.changed = True
    return None


def _expand_opaque(upper: str, below: Node, lower: Tree) -> None:
    """Say by whiteouts what the opaque mark says: nothing of the lower directory shows."""
    for name in merged_names(below):
        path = f"{upper}/{name}"
        under = lower.child(below, name)
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            make_whiteout(path)
            continue
        if stat.S_ISDIR(found.st_mode) and under is not None and under.is_dir:
            os.setxattr(path, OPAQUE, b"y")  # handled when the walk gets there
    os.removexattr(upper, OPAQUE)


def _strip(path: str) -> None:
    """A directory without a lower one needs no marks, nor do those in it; nor whiteouts."""
    stack = [path]
    while stack:
        folder = stack.pop()
        before = os.lstat(folder)
        with contextlib.suppress(OSError):
            os.removexattr(folder, OPAQUE)
        with os.scandir(folder) as entries:
            for entry in list(entries):
                check_name(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                elif is_whiteout(entry.stat(follow_symlinks=False)):
                    os.unlink(entry.path)
        os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))


def _same(path: str, found: os.stat_result, under: Node) -> bool:
    """Whether a copied-up entry is what it was: type, mode, owner, size, attributes and, but for that of a
    directory, time: it only tells that something was made or removed there.
    """
    old = under.found
    if (
        found.st_mode != old.st_mode
        or found.st_uid != old.st_uid
        or found.st_gid != old.st_gid
        or (found.st_mtime_ns != old.st_mtime_ns and not stat.S_ISDIR(found.st_mode))
        or found.st_rdev != old.st_rdev
    ):
        return False
    if stat.S_ISLNK(found.st_mode):
        return os.readlink(path) == os.readlink(under.real)
    if not stat.S_ISDIR(found.st_mode) and found.st_size != old.st_size:
        return False
    if image_xattrs(path) != image_xattrs(under.real):
        return False
    # A time proves nothing: touch -r sets it to the nanosecond.
    return not stat.S_ISREG(found.st_mode) or _same_content(path, under.real)


def _same_content(first: str, second: str) -> bool:
    with open(first, "rb") as one, open(second, "rb") as two:
        while True:
            data = one.read(1 << 16)
            if data != two.read(1 << 16):
                return False
            if not data:
                return True
