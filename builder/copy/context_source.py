"""The build context as a source of COPY: a directory of this machine, without owners and ignored files."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from builder.copy.filters import Selector, selector_name
from builder.copy.sources import (
    Selected,
    filter_of,
    has_wildcard,
    not_found,
    nothing_kept,
    required_path,
    select_named,
)
from builder.errors import BuildError, CopyError
from builder.events import Meter, Sink
from builder.plan.ops import Inline, Picked
from cache.context_scan import (
    GONE,
    Content,
    ScannedFiles,
    Stat,
    StatIndex,
    changed,
    content_digest,
    read_link,
    scan,
)
from cache.entry import DIRECTORY, FILE, SYMLINK, Entry
from cache.errors import CacheError
from cache.fs import CAPABILITY
from cache.layer.merged_tree import Node, Tree
from grammar.ignore import Ignore, State
from grammar.structs import replace


class _VisibleTree(Tree):
    """A context without its ignored files, as if they did not exist."""

    def __init__(self, folder: str, ignore: Ignore) -> None:
        super().__init__((folder,))
        self._ignore = ignore
        self._states: dict[str, State | None] = {"": None}

    def child(self, parent: Node, name: str) -> Node | None:
        node = super().child(parent, name)
        if node is None or self._ignore.empty or not self.ignored(node.path):
            return node
        return node if node.is_dir and self._ignore.may_reinclude(node.path) else None

    def ignored(self, path: str) -> bool:
        """Return whether *path* itself is ignored."""
        if path not in self._states:
            above = path.rpartition("/")[0]
            if above not in self._states:
                self.ignored(above)
            self._states[path] = self._ignore.match(path, self._states[above])
        state = self._states[path]
        return state is not None and state.excluded


class IgnoreRules(NamedTuple):
    """The rules of an ignore file, and what messages call it."""

    rules: Ignore
    name: str


class ContextSource:
    """The build context: a directory of the host, owners ignored, ignore rules applied.

    ``name`` identifies the context, its stat index and its last layers. *scanned* are scans that were
    made already.
    """

    def __init__(
        self,
        folder: str,
        name: str,
        index: StatIndex,
        scanned: dict[Selector, list[Stat]],
        ignore: IgnoreRules,
        sink: Sink,
    ) -> None:
        try:
            self._root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise CopyError(f"reading the build context {folder}: {error.strerror}") from None
        self._folder = os.path.realpath(folder)  # a link may be given as the context
        self._tree = _VisibleTree(self._folder, ignore.rules)
        self.name = name
        self.index = index
        self._ignore = ignore.rules
        self._ignore_name = ignore.name
        self._sink = sink
        self._scanned = scanned
        # What the build took from the context, for replay: digest by path, listed directories.
        self.digests: dict[Selector, str] = {}
        self.listed: set[str] = set()

    def close(self) -> None:
        os.close(self._root)

    @property
    def followed(self) -> bool:
        """Whether links decided what was selected."""
        return self._tree.followed

    def real(self, path: str) -> str:
        """Return the host path of a context path."""
        return os.path.join(self._folder, path)

    def select(self, item: Picked | Inline, exclude: tuple[str, ...]) -> list[Selected]:
        assert isinstance(item, Picked)
        try:
            found = select_named(self._tree, item, exclude, "the build context", self.listed)
            kept = [chosen for chosen, node in found if not (node.is_dir and self._emptied(chosen))]
            if not kept and found and not has_wildcard(item.pattern):
                raise not_found(item.pattern, self._tree, "the build context")
            if required_path(item) and not any(len(self.scanned(one)) > 1 for one in kept):
                raise nothing_kept(item, self._tree, "the build context")
        except BuildError as error:
            path, line = self._excluded(required_path(item) or item.pattern)
            if line:
                error.hint = f"{path or 'it'} is excluded by {self._ignore_name} line {line}"
            raise
        return kept

    def _emptied(self, selected: Selected) -> bool:
        """Return whether a directory is ignored and no exception keeps a file in it."""
        path = selected.path
        return bool(path) and self._tree.ignored(path) and len(self.scanned(Selected("", path))) <= 1

    def _excluded(self, pattern: str) -> tuple[str, int]:
        """Return the ignored path that a link led to, if any, and the line that ignores it, 0 for none."""
        tree = Tree((self._folder,))
        for follow in (False, True):
            try:
                path, node = tree.resolve(pattern, follow)
            except OSError:  # links that lead to each other: the error is of that
                continue
            if node is not None and path and (line := self._ignore.why(path)):
                return f"/{path}" if follow else "", line
        return "", 0

    def scanned(self, selected: Selected) -> list[Stat]:
        """Return the stats of everything selected, taken once per build."""
        if selected.selector not in self._scanned:
            keep = filter_of(self._ignore, selected)
            try:
                self._scanned[selected.selector] = scan(self._root, selected.path, keep)
            except OSError as error:
                raise _unreadable(error, selected.path) from None
        return self._scanned[selected.selector]

    def digest(self, selected: Selected) -> str:
        entries = self.scanned(selected)
        value = self.index.known(selector_name(selected.selector), entries) or self._read(selected, entries)
        self.digests[selected.selector] = value
        return value

    def _read(self, selected: Selected, entries: list[Stat]) -> str:
        meter = Meter("reading the build context", len(entries), self._sink, "files")
        try:
            with contextlib.closing(ScannedFiles(self._root)) as files:
                value = content_digest(files, entries, self.index, selected.path, meter.add)
        except OSError as error:
            raise _unreadable(error, selected.path) from None
        self.index.remember(selector_name(selected.selector), entries, value)
        meter.finish()
        return value

    def entries(self, selected: Selected) -> Iterator[tuple[Entry, object]]:
        with contextlib.closing(ScannedFiles(self._root)) as files:
            yield from self._entries(selected, files)

    def _entries(self, selected: Selected, files: ScannedFiles) -> Iterator[tuple[Entry, object]]:
        skip = len(selected.path) + 1 if selected.path else 0
        first_of: dict[tuple[int, int], str] = {}
        chosen = filter_of(Ignore([]), replace(selected, path=""))
        for item in self.scanned(selected):
            path, mode, size, mtime = item[0], item[1], item[2], item[3]
            inside = path[skip:]
            kind = _kind(mode, item[8])
            link = digest = ""
            xattrs: tuple[tuple[str, bytes], ...] = ()
            if kind == FILE and stat.S_ISREG(mode):
                digest, xattrs = self._content(files, item)
                if xattrs:  # chown(2) clears capabilities
                    xattrs = tuple(pair for pair in xattrs if pair[0] != CAPABILITY)
                if item[7] > 1:
                    first = first_of.setdefault((item[5], item[6]), inside)
                    link = first if first != inside else ""
            elif kind == FILE:
                size = 0
            elif kind == SYMLINK:
                link = read_link(self._root, path)
            length = size if kind == FILE else 0
            entry = Entry(inside, kind, mode & 0o7777, 0, 0, length, mtime, link, item[8], xattrs, digest)
            implied = chosen is not None and inside and chosen(inside, kind == DIRECTORY) == 1
            yield entry, None if implied else (files, item)

    def _content(self, files: ScannedFiles, item: Stat) -> Content:
        try:
            return self.index.content(files, item)
        except OSError as error:  # in the words of what was read, not of the layer that is written
            raise _unreadable(error, item[0]) from None

    def open(self, handle: object) -> int:
        assert isinstance(handle, tuple)
        files, item = handle
        try:
            fd: int = files.open(item)
        except OSError as error:
            raise _unreadable(error, item[0]) from None
        return fd


def _unreadable(error: OSError, path: str) -> BuildError | CacheError:
    """Return the error for a file at or below *path* that cannot be read."""
    name = os.fsdecode(error.filename) if error.filename and error.filename != "." else path or "."
    if error.errno in GONE:
        return changed(name)
    return CopyError(
        f"reading the build context: {error.strerror}: {name!r}",
        "make it readable, or exclude it in .dockerignore",
    )


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
