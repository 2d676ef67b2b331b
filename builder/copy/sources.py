"""What a COPY reads: files of the build context, of another stage's root, or of the Dockerfile.

The first two select paths as BuildKit does (links on the way are followed inside the source,
wildcards match one level each, ``..`` stops at the root). All digest what they selected for
the cache key, and yield it for copying.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from itertools import islice
from typing import Protocol

from builder.copy.filters import Keeper, Selector, keeper, selector_name
from builder.errors import BuildError
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
    hash_xattrs,
    read_link,
    scan,
)
from cache.entry import DIRECTORY, FILE, SYMLINK, Entry, kind_of
from cache.errors import CacheError
from cache.fs import CAPABILITY, image_xattrs
from cache.layer.merged_tree import Node, Tree
from grammar.errors import IgnoreError
from grammar.ignore import GlobError, Ignore, State, match_glob
from grammar.structs import replace, struct
from grammar.suggest import closest

_CHUNK = 1 << 20


# The time of what the builder itself makes (missing parents, WORKDIR, here-documents): fixed, so
# that equal builds give equal layers, and in 1980 because zip files cannot say less.
MADE_TIME = 315_619_200 * 1_000_000_000


@struct
class Selected:
    """One source after wildcards: ``name`` is what it is called in a directory it is copied into.

    Of what is below ``path``, only what matches ``include`` (if there is any) and does not
    match ``exclude`` is meant.
    """

    name: str
    path: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def selector(self) -> Selector:
        return self.path, self.include, self.exclude


class Source(Protocol):
    """Files to copy from."""

    def select(self, item: Picked | Inline, exclude: tuple[str, ...]) -> list[Selected]:
        """What one source of a COPY means; empty for a wildcard that matches nothing (T6).

        Raises BuildError for a literal path that is not there.
        """
        ...

    def digest(self, selected: Selected) -> str:
        """The digest of everything selected: the content part of the cache key."""
        ...

    def entries(self, selected: Selected) -> Iterator[tuple[Entry, object]]:
        """Each member with what ``open`` needs; paths count from the selected one, "" first.

        A directory that was not selected itself, only something in it, comes with None.
        """
        ...

    def open(self, handle: object) -> int:
        """Open a regular file for reading."""
        ...


@struct
class Selection:
    """What one item of a COPY reads, resolved once: for the key and for the copy."""

    item: Picked | Inline
    source: Source
    chosen: list[Selected]


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


def select_in(tree: Tree, item: Picked, listed: set[str] | None = None) -> list[tuple[str, Node]]:
    """Resolve a pattern in *tree*: wildcards per component, links in literal parts followed.

    Gives names with nodes. The directories whose names decided are added to *listed*. Raises
    GlobError, and FileNotFoundError for a matched link that leads nowhere.
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


def _select(
    tree: Tree, item: Picked, exclude: tuple[str, ...], what: str, listed: set[str] | None
) -> list[tuple[Selected, Node]]:
    """``select_in`` with errors in words; what has to be there is."""
    try:
        found = select_in(tree, item, listed)
    except GlobError as error:
        raise BuildError(f"COPY {item.pattern!r}: {error}", "a literal [ is written [[]") from None
    except FileNotFoundError as error:
        raise not_found(error.filename, tree, what) from None
    except OSError as error:
        raise BuildError(f"reading {item.pattern!r} in {what}: {error.strerror}") from None
    if not found and (item.literal or not has_wildcard(item.pattern)):
        raise not_found(item.pattern, tree, what)
    return [(Selected(name, node.path, item.parents, exclude), node) for name, node in found]


def _required(item: Picked) -> str:
    """The path that ``--parents`` without wildcards has to find something at; "" for any other source."""
    literal = item.parents and not any(map(has_wildcard, (item.pattern, *item.parents)))
    return f"{item.pattern}/{item.parents[0]}" if literal else ""


def _keeper(ignore: Ignore, selected: Selected) -> Keeper | None:
    try:
        return keeper(ignore, selected.selector)
    except IgnoreError as error:
        raise BuildError(f"the pattern {error}", "patterns of --exclude are those of .dockerignore") from None


def _broken_link(path: str, tree: Tree) -> str:
    """What link the absolute *path* fails at, "" where it fails at none."""
    names = path.split("/")
    for count in range(2, len(names) + 1):
        above = "/".join(names[:count])
        node = tree.lookup(above, follow=False)
        if node is not None and node.is_link and tree.lookup(above) is None:
            return f"{above} is a link to {os.readlink(node.real)}, which is not there"
    return ""


def not_found(pattern: str, tree: Tree, what: str) -> BuildError:
    """The error for a source that is not there, with the name it may have been meant to be."""
    shown = "/" + os.path.normpath("/" + pattern).lstrip("/")
    above, _, name = shown.rpartition("/")
    parent = tree.lookup(above)
    near = closest(name, tree.names(parent)) if parent and parent.is_dir else ""
    suggestion = f"did you mean {above}/{near}?" if near not in ("", name) else ""
    hint = _broken_link(shown, tree) or suggestion
    return BuildError(f'failed to calculate checksum of {what}: "{shown}": not found', hint)


def _nothing_kept(item: Picked, tree: Tree, what: str) -> BuildError:
    """The error for a path of ``--parents`` that gives no file: not there, or not reached as written."""
    required = _required(item)
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


class _VisibleTree(Tree):
    """A context without what its ignore file takes away, as if that were not there."""

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
        """Whether *path* itself is ignored; its directory was looked at before."""
        if path not in self._states:
            above = path.rpartition("/")[0]
            if above not in self._states:
                self.ignored(above)
            self._states[path] = self._ignore.match(path, self._states[above])
        state = self._states[path]
        return state is not None and state.excluded


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
        scanned: dict[Selector, list[Stat]],
        ignore: Ignore,
        ignore_name: str,
        sink: Sink,
    ) -> None:
        try:
            self._root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise BuildError(f"reading the build context {folder}: {error.strerror}") from None
        self._folder = os.path.realpath(folder)  # a link may be given as the context
        self._tree = _VisibleTree(self._folder, ignore)
        self.name = name
        self.index = index
        self._ignore = ignore
        self._ignore_name = ignore_name
        self._sink = sink
        self._scanned = scanned
        # What the build took from the context, for replay: digest by path, listed folders.
        self.digests: dict[Selector, str] = {}
        self.listed: set[str] = set()

    def close(self) -> None:
        os.close(self._root)

    @property
    def followed(self) -> bool:
        """Whether links decided what was selected."""
        return self._tree.followed

    def real(self, path: str) -> str:
        """The host path of a context path."""
        return os.path.join(self._folder, path)

    def select(self, item: Picked | Inline, exclude: tuple[str, ...]) -> list[Selected]:
        assert isinstance(item, Picked)
        try:
            found = _select(self._tree, item, exclude, "the build context", self.listed)
            kept = [chosen for chosen, node in found if not (node.is_dir and self._emptied(chosen))]
            if not kept and found and not has_wildcard(item.pattern):
                raise not_found(item.pattern, self._tree, "the build context")
            if _required(item) and not any(len(self.scanned(one)) > 1 for one in kept):
                raise _nothing_kept(item, self._tree, "the build context")
        except BuildError as error:
            path, line = self._excluded(_required(item) or item.pattern)
            if line:
                error.hint = f"{path or 'it'} is excluded by {self._ignore_name} line {line}"
            raise
        return kept

    def _emptied(self, selected: Selected) -> bool:
        """Whether a directory is ignored with all that is in it, although exceptions might have left some."""
        path = selected.path
        return bool(path) and self._tree.ignored(path) and len(self.scanned(Selected("", path))) <= 1

    def _excluded(self, pattern: str) -> tuple[str, int]:
        """The line of the ignore file that takes a path away which is there, 0 if none does; and where a
        link led to that path, what it is.
        """
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
        """The stats of everything selected, taken once per build."""
        if selected.selector not in self._scanned:
            keep = _keeper(self._ignore, selected)
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
        chosen = _keeper(Ignore([]), replace(selected, path=""))
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
    """The error for what cannot be read at or below *path* of the build context."""
    name = os.fsdecode(error.filename) if error.filename and error.filename != "." else path or "."
    if error.errno in GONE:
        return changed(name)
    return BuildError(
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


class TreeSource:
    """The root of another stage or image, read through its layers; without *links*, none is a hard link."""

    def __init__(self, tree: Tree, links: bool = True) -> None:
        self._tree = tree
        self._links = links

    def select(self, item: Picked | Inline, exclude: tuple[str, ...]) -> list[Selected]:
        assert isinstance(item, Picked)
        found = [selected for selected, _node in _select(self._tree, item, exclude, "the stage", None)]
        if _required(item) and not any(len(list(islice(self.entries(one), 2))) > 1 for one in found):
            raise _nothing_kept(item, self._tree, "the stage")
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
        keep = _keeper(Ignore([]), replace(selected, path=""))
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

    def _walk(self, path: str, keep: Keeper | None) -> Iterator[tuple[Entry, object]]:
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
    """A file whose content stands in the Dockerfile; *epoch* is its time in seconds, if not 0."""

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
