"""Read through a stack of layer directories as overlayfs would merge them, without mounting.

Layers are immutable and private to the store, so plain paths are safe here: each component
is looked up by name in each layer, and links resolve against the stack, never the host.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from cache.fs import is_opaque, is_whiteout

_MAX_LINKS = 40


class Node(NamedTuple):
    """One existing path of the merged tree.

    ``real`` is the path in the layer that provides it. ``folders`` are the directories that a directory
    merges, top layer first.
    """

    path: str
    real: str
    found: os.stat_result
    folders: tuple[str, ...] = ()

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.found.st_mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.found.st_mode)


class Tree:
    """The merged view of *layers*, directories given from the top layer down."""

    def __init__(self, layers: tuple[str, ...]) -> None:
        folders = []
        for layer in layers:
            folders.append(layer)
            if is_opaque(layer):
                break
        self.followed = False  # True once a link was followed
        self.root = Node("", folders[0], os.lstat(folders[0]), tuple(folders)) if folders else None

    def child(self, parent: Node, name: str) -> Node | None:
        """Return the entry *name* of a directory, without following a link."""
        return _child(parent, name)

    def names(self, parent: Node) -> list[str]:
        """Return the sorted names in a directory."""
        return merged_names(parent)

    def lookup(self, path: str, follow: bool = True) -> Node | None:
        """Return the node at *path*; links on the way (and at the end, with *follow*) resolve in the tree.

        None when there is nothing. Raises OSError ELOOP.
        """
        resolved, node = self.resolve(path, follow)
        return node if resolved is not None else None

    def resolve(self, path: str, follow: bool = True) -> tuple[str, Node | None]:
        """Return where *path* leads after following links, and the node there, if any.

        What does not exist is kept literally, so the result is where it would be created.
        """
        if self.root is None:
            return _normal(path), None
        return self._walk([self.root], path, follow)

    def resolve_below(self, top: str, path: str) -> str:
        """Return where *path* leads from the directory *top*, which absolute links take for the root.

        What does not exist is kept literally.
        """
        start, node = self.resolve(top)
        if node is None:
            return _normal(f"{start}/{_normal(path)}")
        return self._walk([node], path, True)[0]

    def _walk(self, trail: list[Node], path: str, follow: bool) -> tuple[str, Node | None]:
        """Follow *path* from the last of *trail*. Its first is the root, for links and for ``..``."""
        todo = [part for part in path.split("/") if part not in ("", ".")][::-1]
        links, top = 0, trail[0].path
        while todo:
            part = todo.pop()
            if part == "..":
                if len(trail) > 1:
                    trail.pop()
                continue
            node = self.child(trail[-1], part) if trail[-1].is_dir else None
            if node is None:
                inside = trail[-1].path[len(top) :]
                return _normal(f"{top}/{_normal('/'.join([inside, part, *reversed(todo)]))}"), None
            if node.is_link and (todo or follow):
                links += 1
                self.followed = True
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = os.readlink(node.real)
                if target.startswith("/"):
                    del trail[1:]
                todo += [piece for piece in target.split("/") if piece not in ("", ".")][::-1]
                continue
            trail.append(node)
        return trail[-1].path, trail[-1]


def _normal(path: str) -> str:
    """Return a relative path without dots; ``..`` stops at the root."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _child(parent: Node, name: str) -> Node | None:
    folders: list[str] = []
    first: Node | None = None
    path = f"{parent.path}/{name}" if parent.path else name
    for folder in parent.folders:
        real = f"{folder}/{name}"
        try:
            found = os.lstat(real)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
                continue
            raise
        if is_whiteout(found):
            break
        if not stat.S_ISDIR(found.st_mode):
            if first is None:
                return Node(path, real, found)
            break
        folders.append(real)
        if first is None:
            first = Node(path, real, found)
        if is_opaque(real):
            break
    if first is None:
        return None
    return Node(path, first.real, first.found, tuple(folders))


def merged_names(parent: Node) -> list[str]:
    """Return the sorted names that exist in a merged directory."""
    names: set[str] = set()
    hidden: set[str] = set()
    for folder in parent.folders:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name in hidden or entry.name in names:
                    continue
                if is_whiteout(entry.stat(follow_symlinks=False)):
                    hidden.add(entry.name)
                else:
                    names.add(entry.name)
    return sorted(names)
