"""Scan a build context and digest the files a step names, reading only what changed.

``scan`` stats a subtree in one pass; ``StatIndex`` remembers the digest of every file by
``(device, inode, ctime, mtime, size)``. All five must match: builders that trust size and
mtime alone serve wrong files (T100). A file whose ctime is too close to the moment it was read is not
remembered, since it may change again within the clock's tick.
"""

import errno
import hashlib
import marshal
import os
import stat
import time

from cache.errors import CacheError
from cache.fs import image_xattrs
from cache.kernel import open_in_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# One scanned entry: path below the context, mode with type bits, size, mtime, ctime, device,
# inode, number of links, rdev. Plain tuples: twenty thousand of them are made per build.
Stat = tuple[str, int, int, int, int, int, int, int, int]

# What a regular file brings to a layer: the sha256 hex of its bytes, its image xattrs.
Content = tuple[str, tuple[tuple[str, bytes], ...]]

_SETTLED = 50_000_000  # ns: coarse clocks tick every 4 to 10 ms
_FORMAT = 1
_CHUNK = 1 << 20
# Errors of opening a file that was removed or replaced, or whose directory was.
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.ENXIO)
_BATCH = 500  # entries between two reports of progress


def stat_entry(path: str, found: os.stat_result) -> Stat:
    return (
        path,
        found.st_mode,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
        found.st_dev,
        found.st_ino,
        found.st_nlink,
        found.st_rdev,
    )


def scan(root: int, path: str, keep: "Callable[[str, bool], int] | None" = None) -> list[Stat]:
    """Return all entries at and below *path* of the directory open as *root*, in lexical walk order.

    *path* is relative and must not pass through a link. *keep(path, is_dir)* returns 2 to take an entry, 0
    to leave it out, and 1 to read a directory without taking it; it is taken after all if something below
    it is. Raises OSError with the path that failed, and CacheError for a directory that is removed meanwhile.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    found = os.stat(path or ".", dir_fd=root, follow_symlinks=False)
    out = [stat_entry(path, found)]
    if not stat.S_ISDIR(found.st_mode):
        return out
    folders = [path]
    tentative: dict[str, Stat] = {}
    while folders:
        folder = folders.pop()
        prefix = folder + "/" if folder else ""
        try:
            fd = os.open(folder or ".", flags, dir_fd=root)
        except (FileNotFoundError, NotADirectoryError):
            raise changed(folder) from None
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    is_dir = entry.is_dir(follow_symlinks=False)
                    verdict = 2 if keep is None else keep(name, is_dir)
                    if not verdict:
                        continue
                    try:
                        item = stat_entry(name, entry.stat(follow_symlinks=False))
                    except OSError as error:  # it names the entry without its directory
                        raise OSError(error.errno, error.strerror, name) from None
                    if is_dir:
                        folders.append(name)
                    if verdict == 1:
                        if is_dir:
                            tentative[name] = item
                        continue
                    out.append(item)
        finally:
            os.close(fd)
    if tentative:
        _add_needed(out, tentative)
    # "/" sorts below every other character, so children follow their directory at once.
    out.sort(key=lambda item: item[0].replace("/", "\0"))
    return out


def _add_needed(out: "list[Stat]", tentative: "dict[str, Stat]") -> None:
    """Take the directories that were only read but hold something taken."""
    for item in list(out):
        parent = item[0].rpartition("/")[0]
        while parent in tentative:
            out.append(tentative.pop(parent))
            parent = parent.rpartition("/")[0]


class StatIndex:
    """Digests of a context's files, kept between builds in one file of the store.

    For each whole selection it also keeps the digest that an identical set of stats had: a build in which
    nothing changed needs no more.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._files: dict[str, tuple[int, int, int, int, int, Content]] = {}
        self._signatures: dict[str, tuple[str, str]] = {}
        self._signed: tuple[list[Stat], str] = ([], "")
        self._changed = False
        self._load()

    def _load(self) -> None:
        """Read the index; ignore one that is damaged or of another format."""
        try:
            with open(self._path, "rb") as file:
                check = file.read(32)
                body = file.read()
        except FileNotFoundError:
            return
        if hashlib.sha256(body).digest() != check:
            return
        version, files, signatures = marshal.loads(body)
        if version == _FORMAT:
            self._files, self._signatures = files, signatures

    def save(self, write: "Callable[[str, bytes], None]") -> None:
        """Store the index through *write(path, data)* if it has changed."""
        if not self._changed:
            return
        body = marshal.dumps((_FORMAT, self._files, self._signatures))
        write(self._path, hashlib.sha256(body).digest() + body)
        self._changed = False

    def known(self, selector: str, entries: "list[Stat]") -> str:
        """Return the digest remembered for *selector* if its entries have the same stats, else ""."""
        remembered = self._signatures.get(selector)
        if remembered is None or remembered[0] != self._sign(entries):
            return ""
        return remembered[1]

    def _sign(self, entries: "list[Stat]") -> str:
        """Return the ``signature`` of a list, computed once for the same list."""
        if self._signed[0] is not entries:
            self._signed = (entries, signature(entries))
        return self._signed[1]

    def remember(self, selector: str, entries: "list[Stat]", digest: str) -> None:
        """Remember *digest* for these stats if all of them are old enough."""
        newest = max((item[4] for item in entries), default=0)
        if newest < time.time_ns() - _SETTLED:
            value = (self._sign(entries), digest)
            if self._signatures.get(selector) != value:
                self._signatures[selector] = value
                self._changed = True

    def content(self, files: "ScannedFiles", item: Stat) -> Content:
        """Return the content of a regular file, from the index or by reading it.

        Raises CacheError if it changes while it is read.
        """
        path, _mode, size, mtime, ctime, device, inode = item[:7]
        known = self._files.get(path)
        if known is not None and known[:5] == (device, inode, ctime, mtime, size):
            return known[5]
        content = files.read(item)
        if ctime < time.time_ns() - _SETTLED:
            self._files[path] = (device, inode, ctime, mtime, size, content)
            self._changed = True
        elif known is not None:
            del self._files[path]
            self._changed = True
        return content


def signature(entries: "list[Stat]") -> str:
    """Return a digest of the stats themselves."""
    # Format 2: later ones write an object that is shared as a reference, so equal lists differ.
    return hashlib.sha256(marshal.dumps(entries, 2)).hexdigest()


def read_link(root: int, path: str) -> str:
    """Return the text of a scanned link. Raises CacheError if it is no link any more."""
    try:
        return os.readlink(path, dir_fd=root)
    except OSError as error:
        if error.errno in (*GONE, errno.EINVAL):
            raise changed(path) from None
        raise


def changed(path: str) -> CacheError:
    """Return the error for a file of the build context that changed during the build."""
    return CacheError(f"{path} changed while the build was reading it", "build again")


class ScannedFiles:
    """Opens the files of a scan below the directory open as *root*; no link leads out of it.

    The directory of the last file stays open until ``close``, as the next file is mostly in it. For one
    thread.
    """

    def __init__(self, root: int) -> None:
        self.root = root
        self._name = ""
        self._folder = -1
        self._keeps = True

    def close(self) -> None:
        self._keeps = False
        self._leave()

    def _leave(self) -> None:
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def open(self, item: Stat) -> int:
        """Open a regular file for reading. Raises OSError, and CacheError if it is not the scanned one."""
        path = item[0]
        folder, _, name = path.rpartition("/")
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            if self._folder < 0 or folder != self._name:
                self._leave()
                self._folder = open_in_root(self.root, os.fsencode(folder), os.O_PATH | os.O_DIRECTORY)
                self._name = folder
            fd = os.open(name, flags, dir_fd=self._folder)
        except OSError as error:
            if error.errno in GONE:
                raise changed(path) from None
            raise OSError(error.errno, error.strerror, path) from None
        finally:
            if not self._keeps:
                self._leave()
        now = os.fstat(fd)
        if (now.st_ino, now.st_dev, now.st_size, now.st_mtime_ns) != (item[6], item[5], item[2], item[3]):
            os.close(fd)
            raise changed(path)
        return fd

    def read(self, item: Stat) -> Content:
        """Digest a file. Raises OSError, and CacheError if it changes meanwhile."""
        fd = self.open(item)
        try:
            xattrs = image_xattrs(fd)
            size = item[2]
            if size <= _CHUNK:
                data = os.read(fd, size + 1)
                total, sha = len(data), hashlib.sha256(data)
            else:
                total, sha = 0, hashlib.sha256()
                buffer = memoryview(bytearray(_CHUNK))
                while count := os.readv(fd, [buffer]):
                    sha.update(buffer[:count])
                    total += count
            if total != size:
                raise changed(item[0])
            return sha.hexdigest(), xattrs
        finally:
            os.close(fd)


def content_digest(
    files: ScannedFiles,
    entries: "Iterable[Stat]",
    index: StatIndex,
    base: str,
    progress: "Callable[[int], None]",
) -> str:
    """Return the digest that decides a COPY's cache key: names, modes, sizes, links and contents.

    Owners (a context's are always 0:0) and times do not count (T94). Names count from *base*, the selected
    path, so that equal trees elsewhere are equal. *progress* is called with the size of each batch.
    """
    sha = hashlib.sha256()
    first_of: dict[tuple[int, int], str] = {}
    for number, item in enumerate(entries, 1):
        if number % _BATCH == 0:
            progress(_BATCH)
        path, mode, size = item[0], item[1], item[2]
        name = path[len(base) :]
        kind = stat.S_IFMT(mode)
        detail = ""
        if kind == stat.S_IFREG:
            if item[7] > 1:
                first = first_of.setdefault((item[5], item[6]), name)
                detail = f"link {first}" if first != name else ""
            content, xattrs = index.content(files, item)
            detail += content + hash_xattrs(xattrs)
        elif kind == stat.S_IFLNK:
            detail, mode = read_link(files.root, path), 0o777
        elif kind == stat.S_IFSOCK:
            kind, size = stat.S_IFREG, 0  # arrives as an empty file (T21)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            detail = str(item[8])
        shown = size if kind == stat.S_IFREG else 0
        # Five fields that cannot hold a NUL, each ended by one, so no two trees give the same text.
        line = f"{name}\0{kind:o}\0{mode & 0o7777:o}\0{shown}\0{detail}\0"
        sha.update(line.encode("utf-8", "surrogateescape"))
    return sha.hexdigest()


def hash_xattrs(xattrs: "tuple[tuple[str, bytes], ...]") -> str:
    """Return a digest of attributes, "" for none."""
    return hashlib.sha256(marshal.dumps(xattrs, 2)).hexdigest() if xattrs else ""
