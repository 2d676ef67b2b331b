"""Turn an upper directory that a step wrote into a layer that stands on its own.

What overlayfs leaves is reduced to what really changed, as BuildKit's differ does (T77, T79, T80).
Whiteouts that hide nothing are removed, and so are copied-up files and directories that did not change
(cache.layer.same). Opaque directories become explicit whiteouts. The rest can be packed without reading
any other layer.
"""

from __future__ import annotations

import contextlib
import os
import stat

from cache.entry import DIRECTORY, FILE, SYMLINK, entry_of
from cache.errors import LayerError
from cache.fs import OPAQUE, image_xattrs, is_opaque, is_whiteout, make_whiteout
from cache.layer.merged_tree import Node, Tree, merged_names
from cache.layer.pack import WHITEOUT_PREFIX
from cache.layer.same import same_entry, same_files, same_metadata


def normalise(upper: str, lower: Tree) -> None:
    """Reduce the directory *upper* in place to its difference from *lower*.

    Raises LayerError for what no layer can hold.
    """
    if lower.root is not None:
        _reduce(upper, lower.root, lower)


def check_name(name: str) -> None:
    """Raise LayerError for a name that means a whiteout in a layer's tar."""
    if name.startswith(WHITEOUT_PREFIX):
        raise LayerError(
            f"a file is named {name!r}, which in a layer means that another one is deleted",
            "rename it: no image can hold a name that begins with .wh.",
        )


class _Directory:
    """A directory that exists on both sides, while its entries are reduced."""

    def __init__(self, path: str, found: os.stat_result, below: Node, lower: Tree) -> None:
        self.path = path
        self.found = found
        self.below = below
        if is_opaque(path):
            _expand_opaque(path, below, lower)
        self.left = os.listdir(path)
        self.changed = False  # True once an entry stays


def _reduce(upper: str, below: Node, lower: Tree) -> None:
    """Reduce a directory and those in it, however deep, children first."""
    stack = [_Directory(upper, os.lstat(upper), below, lower)]
    while stack:
        folder = stack[-1]
        if folder.left:
            inside = _entry(folder, folder.left.pop(), lower)
            if inside is not None:
                stack.append(inside)
            continue
        stack.pop()
        # Removing entries has changed the time of the directory: restore the one that the step left.
        os.utime(folder.path, ns=(folder.found.st_atime_ns, folder.found.st_mtime_ns))
        if not stack:
            return
        if not folder.changed and _same(folder.path, folder.found, folder.below):
            os.rmdir(folder.path)
        else:
            stack[-1].changed = True


def _entry(folder: _Directory, name: str, lower: Tree) -> _Directory | None:
    """Reduce one entry of a directory; return it instead if it is a directory on both sides."""
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
            return _Directory(path, found, under, lower)
        _strip(path)
    elif under is not None and _same(path, found, under):
        os.unlink(path)
        return None
    folder.changed = True
    return None


def _expand_opaque(upper: str, below: Node, lower: Tree) -> None:
    """Replace the opaque mark of a directory by whiteouts of all that it hides."""
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
    """Remove marks and whiteouts from a directory that has nothing below it, and from those in it."""
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


def _same(path: str, found: os.stat_result, below: Node) -> bool:
    """Return whether a copied-up entry is what it was below."""
    if found.st_mode != below.found.st_mode:
        return False
    entry = entry_of("", found)
    if not same_metadata(entry, below):
        return False
    link = os.readlink(path) if entry.kind == SYMLINK else ""
    entry = entry._replace(link=link, xattrs=image_xattrs(path) if entry.kind in (FILE, DIRECTORY) else ())
    return same_entry(entry, below, lambda: same_files(path, below.real))
