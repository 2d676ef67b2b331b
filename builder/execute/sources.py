"""What a COPY reads: files of the build context, or of another stage's root.

Both kinds select paths as BuildKit does (links on the way are followed inside the source,
wildcards match one level each, ``..`` stops at the root), digest what they selected for the
cache key, and yield it for copying.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from builder.errors import BuildError
from builder.events import Meter, Sink
from builder.execute.keeper import keeper
from cache.entries import DIRECTORY, FILE, SYMLINK, Entry, kind_of
from cache.scan import Stat, StatIndex, content_digest, hash_xattrs, open_file, scan
from cache.tree import Node, Tree
from cache.trees import image_xattrs
from grammar.ignore import GlobError, Ignore, State, match_glob

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Selected:
    """One source after wildcards: ``name`` is what it is called in a directory it is copied into."""

    name: str
    path: str


class Source(Protocol):
    """Files to copy from."""

    def select(self, pattern: str) -> list[Selected]:
        """What one source of a COPY means; empty for a wildcard that matches nothing (T6).

        Raises BuildError for a literal path that is not there.
        """
        ...

    def digest(self, selected: Selected) -> str:
        """The digest of everything selected: the content part of the cache key."""
        ...

    def entries(self, selected: Selected) -> Iterator[tuple[Entry, object]]:
        """Each member with what ``open`` needs; paths count from the selected one, "" first."""
        ...

    def open(self, handle: object) -> int:
        """Open a regular file for reading."""
        ...


def has_wildcard(text: str) -> bool:
    """Whether Go's filepath.Match would see a pattern; a lone backslash is a literal (T23)."""
    escaped = False
    for char in text:
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
        elif char in "*?[":
            return True
    return False


def select_in(tree: Tree, pattern: str, listed: set[str] | None = None) -> list[tuple[Selected, Node]]:
    """Resolve *pattern* in *tree*: wildcards per component, links in literal parts followed.

    The directories whose names decided are added to *listed*. Raises GlobError, and
    FileNotFoundError for a matched link that leads nowhere.
    """
    parts = [part for part in os.path.normpath("/" + pattern).split("/") if part]
    fixed = 0
    while fixed < len(parts) and not has_wildcard(parts[fixed]):
        fixed += 1
    start = tree.lookup("/".join(parts[:fixed]))
    if start is None:
        return []
    if fixed == len(parts):
        return [(Selected(parts[-1] if parts else "", start.path), start)]
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
        out.append((Selected(node.path.rpartition("/")[2], followed.path), followed))
    return out


def _select(tree: Tree, pattern: str, what: str, listed: set[str] | None) -> list[tuple[Selected, Node]]:
    """``select_in`` with errors in words."""
    try:
        return select_in(tree, pattern, listed)
    except GlobError as error:
        raise BuildError(f"COPY {pattern!r}: {error}", "a literal [ is written [[]") from None
    except FileNotFoundError as error:
        raise not_found(error.filename, tree, what) from None
    except OSError as error:
        raise BuildError(f"reading {pattern!r} in {what}: {error.strerror}") from None


def not_found(pattern: str, tree: Tree, what: str) -> BuildError:
    """The error for a source that is not there, with the name it may have been meant to be."""
    import difflib

    shown = "/" + os.path.normpath("/" + pattern).lstrip("/")
    above, _, name = shown.rpartition("/")
    parent = tree.lookup(above)
    close = difflib.get_close_matches(name, tree.names(parent), 1) if parent and parent.is_dir else []
    hint = f"did you mean {above}/{close[0]}?" if close else ""
    return BuildError(f'failed to calculate checksum of {what}: "{shown}": not found', hint)


class ContextSource:
    """The build context: a directory of the host, owners ignored, ignore rules applied.

    ``name`` tells contexts apart, so that each finds its stat index and last layers again.
    *scanned* is what is known of it already, by selected path.
    """

    def __init__(
        self,
        folder: str,
        name: str,
        index: StatIndex,
        scanned: dict[str, list[Stat]],
        ignore: Ignore,
        ignore_name: str,
        sink: Sink,
    ) -> None:
        try:
            self._root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise BuildError(f"reading the build context {folder}: {error.strerror}") from None
        self._tree = Tree((folder,))
        self._folder = folder
        self.name = name
        self.index = index
        self._ignore = ignore
        self._ignore_name = ignore_name
        self._sink = sink
        self._scanned = scanned
        # What the build took from the context, for replay: digest by path, listed folders.
        self.digests: dict[str, str] = {}
        self.listed: set[str] = set()

    def close(self) -> None:
        os.close(self._root)

    def real(self, path: str) -> str:
        """The host path of a context path."""
        return os.path.join(self._folder, path)

    def select(self, pattern: str) -> list[Selected]:
        found = _select(self._tree, pattern, "the build context", self.listed)
        kept = [selected for selected, node in found if not self._hidden(selected.path, node.is_dir)]
        if kept or has_wildcard(pattern):
            return kept
        missing = not_found(pattern, self._tree, "the build context")
        if found and (line := self._ignore.why(found[0][0].path)):
            missing = BuildError(missing.message, f"it is excluded by {self._ignore_name} line {line}")
        raise missing

    def _hidden(self, path: str, is_dir: bool) -> bool:
        """Whether the ignore file takes a selected path away entirely."""
        if self._ignore.empty or not path:
            return False
        state: State | None = None
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            state = self._ignore.match("/".join(parts[:depth]), state)
        assert state is not None
        return state.excluded and not (is_dir and self._ignore.may_reinclude(path))

    def scanned(self, selected: Selected) -> list[Stat]:
        """The stats of everything selected, taken once per build."""
        if selected.path not in self._scanned:
            try:
                self._scanned[selected.path] = scan(
                    self._root, selected.path, keeper(self._ignore, selected.path)
                )
            except OSError as error:
                raise BuildError(
                    f"reading the build context: {error.strerror}: {error.filename!r}",
                    "make it readable, or exclude it in .dockerignore",
                ) from None
        return self._scanned[selected.path]

    def digest(self, selected: Selected) -> str:
        entries = self.scanned(selected)
        value = self.index.known(selected.path, entries) or self._read(selected, entries)
        self.digests[selected.path] = value
        return value

    def _read(self, selected: Selected, entries: list[Stat]) -> str:
        meter = Meter("reading the build context", len(entries), self._sink, "files")
        try:
            value = content_digest(self._root, entries, self.index, selected.path, meter.add)
        except OSError as error:
            raise BuildError(
                f"reading the build context: {error.strerror}: {error.filename!r}",
                "make it readable, or exclude it in .dockerignore",
            ) from None
        self.index.remember(selected.path, entries, value)
        meter.finish()
        return value

    def entries(self, selected: Selected) -> Iterator[tuple[Entry, object]]:
        skip = len(selected.path) + 1 if selected.path else 0
        first_of: dict[tuple[int, int], str] = {}
        for item in self.scanned(selected):
            path, mode, size, mtime = item[0], item[1], item[2], item[3]
            inside = path[skip:]
            kind = _kind(mode, item[8])
            link = digest = ""
            xattrs: tuple[tuple[str, bytes], ...] = ()
            if kind == FILE and stat.S_ISREG(mode):
                digest, xattrs = self.index.content(self._root, item)
                if item[7] > 1:
                    first = first_of.setdefault((item[5], item[6]), inside)
                    link = first if first != inside else ""
            elif kind == FILE:
                size = 0
            elif kind == SYMLINK:
                link = os.readlink(path, dir_fd=self._root)
            length = size if kind == FILE else 0
            yield Entry(inside, kind, mode & 0o7777, 0, 0, length, mtime, link, item[8], xattrs, digest), item

    def open(self, handle: object) -> int:
        assert isinstance(handle, tuple)
        return open_file(self._root, handle[0], handle)


def _kind(mode: int, rdev: int) -> str:
    if stat.S_ISSOCK(mode):
        return FILE  # a socket arrives as an empty file (T21)
    return {
        stat.S_IFREG: FILE,
        stat.S_IFDIR: DIRECTORY,
        stat.S_IFLNK: SYMLINK,
        stat.S_IFCHR: "c",
        stat.S_IFBLK: "b",
        stat.S_IFIFO: "p",
    }[stat.S_IFMT(mode)]


class TreeSource:
    """The root of another stage or image, read through its layers."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def select(self, pattern: str) -> list[Selected]:
        found = _select(self._tree, pattern, "the stage", None)
        if not found and not has_wildcard(pattern):
            raise not_found(pattern, self._tree, "the stage")
        return [selected for selected, _node in found]

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
        start = self._tree.lookup(selected.path)
        assert start is not None  # it was selected from this tree
        first_of: dict[tuple[int, int], str] = {}
        stack = [("", start)]
        while stack:
            inside, node = stack.pop()
            found = node.found
            kind = kind_of(found)
            if not kind:
                continue
            link = os.readlink(node.real) if kind == SYMLINK else ""
            if kind == FILE and found.st_nlink > 1:
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
