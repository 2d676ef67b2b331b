"""What a COPY reads: files of the build context, of another stage's root, or of the Dockerfile.

The first two select paths as BuildKit does (links on the way are followed inside the source,
wildcards match one level each, ``..`` stops at the root). All digest what they selected for
the cache key, and yield it for copying.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from itertools import islice
from typing import Protocol

from builder.copy.filters import ScanFilter, Selector, scan_filter
from builder.errors import BuildError, CopyError
from builder.plan.ops import Inline, Picked
from cache.context_scan import (
    hash_xattrs,
)
from cache.entry import DIRECTORY, FILE, SYMLINK, Entry, kind_of
from cache.fs import image_xattrs
from cache.layer.merged_tree import Node, Tree
from grammar.errors import GlobError, IgnoreError
from grammar.ignore import Ignore, match_glob
from grammar.structs import replace, struct
from grammar.suggest import closest

_CHUNK = 1 << 20


# The time of what the builder itself makes (missing parents, WORKDIR, here-documents): fixed, so
# that equal builds give equal layers, and in 1980 because zip files cannot say less.
MADE_TIME = 315_619_200 * 1_000_000_000


@struct
class Selected:
    """One source after wildcards. ``name`` is its name in a directory that it is copied into.

    Below ``path``, files that match ``include`` (if not empty) and do not match ``exclude`` are selected.
    """

    name: str
    path: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def selector(self) -> Selector:
        return self.path, self.include, self.exclude


class Source(Protocol):
    """A place that COPY reads files from."""

    def select(self, item: Picked | Inline, exclude: tuple[str, ...]) -> list[Selected]:
        """Return what one source of a COPY selects; nothing for a wildcard without a match (T6).

        Raises BuildError for a missing literal path.
        """
        ...

    def digest(self, selected: Selected) -> str:
        """Return the digest of everything selected: the content part of the cache key."""
        ...

    def entries(self, selected: Selected) -> Iterator[tuple[Entry, object]]:
        """Yield each member with a handle for ``open``. Paths are relative to the selected one, which is "".

        A directory that is only a parent of selected files has the handle None.
        """
        ...

    def open(self, handle: object) -> int:
        """Open a regular file for reading."""
        ...


@struct
class Selection:
    """The files of one item of a COPY, resolved once for both the cache key and the copy."""

    item: Picked | Inline
    source: Source
    chosen: list[Selected]


def has_wildcard(text: str) -> bool:
    """Return whether Go's filepath.Match sees a pattern. A lone backslash is a literal (T23)."""
    escaped = False
    for char in text:
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
        elif char in "*?[":
            return True
    return False


def select_in(tree: Tree, item: Picked, listed: set[str] | None = None) -> list[tuple[str, Node]]:
    """Resolve a pattern in *tree*: wildcards per component, links in literal parts followed.

    Return names with nodes. Directories that were listed are added to *listed*. Raises GlobError, and
    FileNotFoundError for a matched link that is broken.
    """
    parts = [part for part in os.path.normpath("/" + item.pattern).split("/") if part]
    fixed = 0
    while fixed < len(parts) and (item.literal or not has_wildcard(parts[fixed])):
        fixed += 1
    start = tree.lookup("/".join(parts[:fixed]))
    if start is None:
        if fixed < len(parts):  # wildcards may find nothing, but not nowhere
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/".join(parts[:fixed]))
        return []
    if fixed == len(parts):
        return [(parts[-1] if parts else "", start)]
    found = [start]
    for depth, part in enumerate(parts[fixed:], fixed):
        last = depth == len(parts) - 1
        matched = []
        for node in found:
            if not node.is_dir:
                continue
            if listed is not None:
                listed.add(node.path)
            for name in tree.names(node):
                if match_glob(part, name):
                    child = tree.child(node, name)
                    if child is not None and (last or child.is_dir):
                        matched.append(child)
        found = matched
    out = []
    for node in found:
        followed = tree.lookup(node.path) if node.is_link else node
        if followed is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), tree.resolve(node.path)[0])
        out.append((node.path.rpartition("/")[2], followed))
    return out


def select_named(
    tree: Tree, item: Picked, exclude: tuple[str, ...], what: str, listed: set[str] | None
) -> list[tuple[Selected, Node]]:
    """Return what ``select_in`` finds. Raises BuildError, also for a missing literal path."""
    try:
        found = select_in(tree, item, listed)
    except GlobError as error:
        raise CopyError(f"COPY {item.pattern!r}: {error}", "a literal [ is written [[]") from None
    except FileNotFoundError as error:
        raise not_found(error.filename, tree, what) from None
    except OSError as error:
        raise CopyError(f"reading {item.pattern!r} in {what}: {error.strerror}") from None
    if not found and (item.literal or not has_wildcard(item.pattern)):
        raise not_found(item.pattern, tree, what)
    return [(Selected(name, node.path, item.parents, exclude), node) for name, node in found]


def required_path(item: Picked) -> str:
    """Return the path that a literal source of ``--parents`` must find files at; "" for other sources."""
    literal = item.parents and not any(map(has_wildcard, (item.pattern, *item.parents)))
    return f"{item.pattern}/{item.parents[0]}" if literal else ""


def filter_of(ignore: Ignore, selected: Selected) -> ScanFilter | None:
    """Return the filter of a scan of what is selected. Raises BuildError for a malformed pattern."""
    try:
        return scan_filter(ignore, selected.selector)
    except IgnoreError as error:
        raise CopyError(f"the pattern {error}", "write patterns of --exclude as in .dockerignore") from None


def _broken_link(path: str, tree: Tree) -> str:
    """Return which broken link is in the absolute *path*, "" for none."""
    names = path.split("/")
    for count in range(2, len(names) + 1):
        above = "/".join(names[:count])
        node = tree.lookup(above, follow=False)
        if node is not None and node.is_link and tree.lookup(above) is None:
            return f"{above} is a link to {os.readlink(node.real)}, which is not there"
    return ""


def not_found(pattern: str, tree: Tree, what: str) -> BuildError:
    """Return the error for a missing source, with a hint at a similar name."""
    shown = "/" + os.path.normpath("/" + pattern).lstrip("/")
    above, _, name = shown.rpartition("/")
    parent = tree.lookup(above)
    near = closest(name, tree.names(parent)) if parent and parent.is_dir else ""
    suggestion = f"did you mean {above}/{near}?" if near not in ("", name) else ""
    hint = _broken_link(shown, tree) or suggestion
    return CopyError(
        f'failed to calculate checksum of {what}: "{shown}": not found', hint, code="E-COPY-NOT-FOUND"
    )


def nothing_kept(item: Picked, tree: Tree, what: str) -> BuildError:
    """Return the error for a path of ``--parents`` that selects no file, with the reason as a hint."""
    required = required_path(item)
    error = not_found(required, tree, what)
    path, node = tree.resolve(required)
    if node is None:
        return error
    if not item.parents[0]:
        error.hint = "--parents needs a path below the folder; without it the folder's files are copied"
    elif path != os.path.normpath("/" + required).lstrip("/"):
        error.hint = f"--parents follows no links: name /{path}"
    else:
        error.hint = "--exclude leaves out all of it"
    return error


class TreeSource:
    """The root of another stage or image, read through its layers; without *links*, none is a hard link."""

    def __init__(self, tree: Tree, links: bool = True) -> None:
        self._tree = tree
        self._links = links

    def select(self, item: Picked | Inline, exclude: tuple[str, ...]) -> list[Selected]:
        assert isinstance(item, Picked)
        found = [selected for selected, _node in select_named(self._tree, item, exclude, "the stage", None)]
        if required_path(item) and not any(len(list(islice(self.entries(one), 2))) > 1 for one in found):
            raise nothing_kept(item, self._tree, "the stage")
        return found

    def digest(self, selected: Selected) -> str:
        sha = hashlib.sha256()
        for entry, handle in self.entries(selected):
            content = self._content(handle) if entry.kind == FILE and not entry.link else ""
            fields = (
                entry.path,
                entry.kind,
                f"{entry.mode:o} {entry.uid} {entry.gid} {entry.size}",
                entry.link,
                f"{entry.rdev} {content}{hash_xattrs(entry.xattrs)}",
            )
            sha.update(("\0".join(fields) + "\0").encode("utf-8", "surrogateescape"))
        return sha.hexdigest()

    def _content(self, handle: object) -> str:
        fd = self.open(handle)
        try:
            sha = hashlib.sha256()
            while data := os.read(fd, _CHUNK):
                sha.update(data)
            return sha.hexdigest()
        finally:
            os.close(fd)

    def entries(self, selected: Selected) -> Iterator[tuple[Entry, object]]:
        keep = filter_of(Ignore([]), replace(selected, path=""))
        if keep is None:
            yield from self._walk(selected.path, None)
            return
        waiting: dict[str, tuple[Entry, object]] = {}  # directories that only count if something below does
        for pair in self._walk(selected.path, keep):
            path = pair[0].path
            if path and pair[0].kind == DIRECTORY and keep(path, True) == 1:
                waiting[path] = pair
                continue
            above = path.split("/")[:-1]
            for depth in range(1, len(above) + 1):
                if parent := waiting.pop("/".join(above[:depth]), None):
                    yield parent[0], None
            yield pair

    def _walk(self, path: str, keep: ScanFilter | None) -> Iterator[tuple[Entry, object]]:
        start = self._tree.lookup(path)
        assert start is not None  # it was selected from this tree
        first_of: dict[tuple[int, int], str] = {}
        stack = [("", start)]
        while stack:
            inside, node = stack.pop()
            if keep is not None and inside and not keep(inside, node.is_dir):
                continue
            found = node.found
            kind = kind_of(found)
            if not kind:
                continue
            link = os.readlink(node.real) if kind == SYMLINK else ""
            if self._links and kind == FILE and found.st_nlink > 1:
                first = first_of.setdefault((found.st_dev, found.st_ino), inside)
                link = first if first != inside else ""
            yield (
                Entry(
                    inside,
                    kind,
                    found.st_mode & 0o7777,
                    found.st_uid,
                    found.st_gid,
                    found.st_size if kind == FILE else 0,
                    found.st_mtime_ns,
                    link,
                    found.st_rdev,
                    image_xattrs(node.real) if kind in (FILE, DIRECTORY) else (),
                ),
                node,
            )
            if kind == DIRECTORY:
                below = [(name, self._tree.child(node, name)) for name in self._tree.names(node)]
                prefix = inside + "/" if inside else ""
                stack += [(prefix + name, child) for name, child in reversed(below) if child is not None]

    def open(self, handle: object) -> int:
        assert isinstance(handle, Node)
        return os.open(handle.real, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


class InlineSource:
    """A here-document as a file. *epoch* is its time in seconds; 0 is the fixed default."""

    def __init__(self, item: Inline, epoch: int) -> None:
        self._item = item
        self._time = epoch * 10**9 or MADE_TIME
        self._data = item.content.encode("utf-8", "surrogateescape")

    def select(self, item: Picked | Inline, exclude: tuple[str, ...]) -> list[Selected]:
        return [Selected(self._item.name, self._item.name)]

    def digest(self, selected: Selected) -> str:
        return hashlib.sha256(self._data).hexdigest()

    def entries(self, selected: Selected) -> Iterator[tuple[Entry, object]]:
        digest = self.digest(selected)
        yield (
            Entry("", FILE, self._item.mode, size=len(self._data), mtime=self._time, digest=digest),
            None,
        )

    def open(self, handle: object) -> int:
        fd = os.memfd_create("here-document", os.MFD_CLOEXEC)
        os.write(fd, self._data)
        os.lseek(fd, 0, os.SEEK_SET)
        return fd
