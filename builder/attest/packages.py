"""Find the packages in the files of an image: Debian's, Alpine's, Python's and npm's.

The files are untrusted: none is run, symlinks are resolved inside the image, only regular files are opened,
and sizes, directory entries and packages are limited. Each unreadable file is reported: a list of packages
with an unknown gap is worth little.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator

from builder.attest.databases import (
    JSON_LIMIT,
    Package,
    read_alpine,
    read_debian,
    read_npm,
    read_os_release,
    read_python,
)
from builder.errors import BuildError
from builder.support.json_strict import valid_text
from cache.kernel import read_regular
from cache.layer.merged_tree import Node, Tree
from grammar.structs import field, struct

_DATABASE_LIMIT = 32 << 20  # bytes of a database of many packages
_HEADER_LIMIT = 256 << 10  # bytes that are read of a file with a description at its end
_OS_RELEASE_LIMIT = 64 << 10
_BYTES = 1 << 30  # read in total
_ENTRIES = 5_000_000  # of all directories
_PACKAGES = 200_000
_GAPS = 50  # reported one by one

_DEBIAN, _DEBIAN_FOLDER = "var/lib/dpkg/status", "var/lib/dpkg/status.d"
_ALPINE = ("lib/apk/db/installed", "usr/lib/apk/db/installed")
_OS_RELEASES = ("etc/os-release", "usr/lib/os-release")
_PYTHON = ("site-packages", "dist-packages")
_NPM = "node_modules"

_Reader = Callable[[bytes], Iterator[Package | None]]


@struct
class Distribution:
    """The distribution of an image: ``id`` like "debian", ``version`` like "12", "" if unknown."""

    id: str = ""
    version: str = ""
    name: str = ""


@struct
class Found:
    """The packages of an image, sorted, each with the files that list it (from the root, sorted).

    ``gaps`` are messages about unreadable files.
    """

    distribution: Distribution
    packages: dict[Package, tuple[str, ...]]
    gaps: tuple[str, ...]


class _Enough(Exception):
    """A limit was reached."""


@struct(frozen=False)
class _Search:
    """The results of one search, and its remaining limits."""

    tree: Tree
    bytes_left: int
    entries_left: int
    packages: dict[Package, set[str]] = field(factory=dict)
    gaps: list[str] = field(factory=list)
    more_gaps: int = 0
    seen: set[str] = field(factory=set)

    def gap(self, path: str, why: str) -> None:
        if len(self.gaps) < _GAPS:
            text = f"/{_shown(path)}: {why}"  # it is printed, and the path is untrusted
            self.gaps.append("".join(char if char.isprintable() else "?" for char in text))
        else:
            self.more_gaps += 1


def find(tree: Tree) -> Found:
    """Return the packages in the merged files of an image."""
    search = _Search(tree, _BYTES, _ENTRIES)
    distribution = _distribution(search)
    try:
        _databases(search)
        _walk(search)
    except _Enough as error:
        search.gaps.append(f"the search ended early: {error}")
    if search.more_gaps:
        search.gaps.append(f"{search.more_gaps} more files could not be read")
    packages = {item: tuple(sorted(search.packages[item])) for item in sorted(search.packages)}
    return Found(distribution, packages, tuple(search.gaps))


# -- files that have one place -------------------------------------------------------------


def _distribution(search: _Search) -> Distribution:
    for path in _OS_RELEASES:
        node = _regular(search, path)
        data = _read(search, node, _OS_RELEASE_LIMIT) if node is not None else None
        if data is None:
            continue
        fields = read_os_release(data)
        version = _plain(fields.get("VERSION_ID", "")) or _plain(fields.get("VERSION_CODENAME", ""))
        name = "".join(char for char in fields.get("PRETTY_NAME", "") if char.isprintable())[:200]
        return Distribution(_plain(fields.get("ID", "")), version, name)
    return Distribution()


def _plain(text: str) -> str:
    """Return *text* as a lower-case word of os-release, "" if it is not one."""
    allowed = text.isascii() and text.replace(".", "").replace("-", "").replace("_", "").isalnum()
    return text.lower() if allowed and len(text) <= 64 else ""


def _databases(search: _Search) -> None:
    for path, reader in ((_DEBIAN, read_debian), *((path, read_alpine) for path in _ALPINE)):
        node = _regular(search, path)
        if node is not None and node.path not in search.seen:
            search.seen.add(node.path)  # a link may make two paths one file
            _take(search, node, reader, _DATABASE_LIMIT, whole=True)
    folder = _lookup(search, _DEBIAN_FOLDER)
    if folder is None or not folder.is_dir:
        return
    for name, kind in _entries(search, folder):
        node = search.tree.child(folder, name) if kind == "file" and not name.endswith(".md5sums") else None
        if node is not None:
            _take(search, node, read_debian, JSON_LIMIT, whole=True)


def _lookup(search: _Search, path: str) -> Node | None:
    try:
        return search.tree.lookup(path)
    except OSError as error:
        search.gap(path, error.strerror or str(error))
        return None


def _regular(search: _Search, path: str) -> Node | None:
    node = _lookup(search, path)
    if node is not None and not stat.S_ISREG(node.found.st_mode):
        search.gap(path, "it is not a regular file")
        return None
    return node


# -- files that may be anywhere ------------------------------------------------------------


def _walk(search: _Search) -> None:
    """Search all directories for files that list packages, without following symlinks."""
    if search.tree.root is None:
        return
    todo = [(search.tree.root, False, False)]
    while todo:
        folder, python, npm = todo.pop()
        own = folder.path.rpartition("/")[2]
        python, npm = python or own in _PYTHON, npm or own == _NPM
        for name, kind in _entries(search, folder):
            if kind == "folder":
                below = search.tree.child(folder, name)
                if below is None:  # its path is longer than the kernel takes
                    search.gap(f"{folder.path}/{name}", "it is nested too deeply")
                else:
                    todo.append((below, python, npm))
            elif kind == "file":
                _look(search, folder, own, name, python, npm)


def _look(search: _Search, folder: Node, own: str, name: str, python: bool, npm: bool) -> None:
    """Read a file if its name says that it lists packages; *own* is the name of its directory."""
    if npm and name == "package.json":
        reader, limit, whole = read_npm, JSON_LIMIT, True
    elif python and (
        (name == "METADATA" and own.endswith(".dist-info"))
        or (name == "PKG-INFO" and (own.endswith(".egg-info") or own == "EGG-INFO"))
        or name.endswith(".egg-info")
    ):
        reader, limit, whole = read_python, _HEADER_LIMIT, False
    else:
        return
    node = search.tree.child(folder, name)
    if node is None:
        search.gap(f"{folder.path}/{name}", "it is nested too deeply")
    else:
        _take(search, node, reader, limit, whole)


def _entries(search: _Search, folder: Node) -> list[tuple[str, str]]:
    """Return the sorted names in a merged directory, each with "file", "folder" or "" (anything else)."""
    kinds: dict[str, str] = {}
    try:
        for layer in folder.folders:  # from the top: an upper layer hides entries of a lower one
            with os.scandir(layer) as entries:
                for entry in entries:
                    search.entries_left -= 1
                    if search.entries_left < 0:
                        raise _Enough(f"the image has more than {_ENTRIES} files")
                    kinds.setdefault(entry.name, _kind(entry))
    except OSError as error:
        search.gap(folder.path, error.strerror or str(error))
    return sorted(kinds.items())


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    return "file" if entry.is_file(follow_symlinks=False) else ""


# -- reading -------------------------------------------------------------------------------


def _take(search: _Search, node: Node, reader: _Reader, limit: int, whole: bool) -> None:
    """Add the packages that *reader* finds in a file. With *whole*, a file above *limit* bytes is a gap."""
    data = _read(search, node, limit, whole)
    if data is None:
        return
    known = wrong = 0
    try:
        for package in reader(data):
            if package is None:
                wrong += 1
                continue
            known += 1
            search.packages.setdefault(package, set()).add(_shown(node.path))
            if len(search.packages) >= _PACKAGES:
                raise _Enough(f"the image has {_PACKAGES} packages or more")
    except BuildError as error:
        search.gap(node.path, error.message)
        return
    if wrong:
        search.gap(node.path, f"{wrong} of its packages have no name or no version")
    elif not known and data.strip() and reader is not read_npm:
        search.gap(node.path, "it names no package")


def _read(search: _Search, node: Node, limit: int, whole: bool = True) -> bytes | None:
    """Return the bytes of a file, the first *limit* unless *whole*; None if it is unreadable."""
    try:
        data = read_regular(node.real, limit)
    except OSError as error:
        search.gap(node.path, error.strerror or str(error))
        return None
    search.bytes_left -= len(data)
    if search.bytes_left < 0:
        raise _Enough(f"its databases are larger than {_BYTES >> 20} MiB together")
    if len(data) > limit and whole:
        search.gap(node.path, f"it is larger than {limit} bytes")
        return None
    return data[:limit]


def _shown(path: str) -> str:
    return valid_text(path)
