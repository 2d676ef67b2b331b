"""Files of a layer: written with their metadata, and put into the order that a tar needs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

from cache.entry import DIRECTORY, HARDLINK, SYMLINK, Entry
from cache.errors import CacheError
from cache.kernel import set_owner, write_all


def write_file(root: int, entry: Entry, content: Iterator[bytes]) -> str:
    """Write the regular file *entry* below the directory open as *root*; return its SHA-256 in hex.

    Raises CacheError where *content* differs from the size or the digest of the entry: the file changed
    after it was digested for the cache key.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    target = os.open(entry.path, flags, 0o600, dir_fd=root)
    try:
        sha, left = hashlib.sha256(), entry.size
        for data in content if left else ():
            sha.update(data)
            left -= len(data)
            write_all(target, data)
        if left:
            raise CacheError("a file changed its size while the build was reading it", "build again")
        digest = sha.hexdigest()
        if entry.digest and digest != entry.digest:
            raise CacheError(f"/{entry.path} changed while the build was reading it", "build again")
        _finish(target, entry)
        return digest
    finally:
        os.close(target)


def _finish(fd: int, entry: Entry) -> None:
    """Set owner, then attributes, then mode: chown clears setuid bits and capabilities."""
    if entry.uid or entry.gid:
        set_owner(fd, entry.uid, entry.gid)
    for name, value in entry.xattrs:
        os.setxattr(fd, name, value)
    os.fchmod(fd, entry.mode)
    os.utime(fd, ns=(entry.mtime, entry.mtime))


def set_metadata(root: int, entry: Entry) -> None:
    """Set owner, mode and time of what exists at the entry's path below *root*. Links are not followed."""
    set_owner(entry.path, entry.uid, entry.gid, dir_fd=root)
    if entry.kind != SYMLINK:
        os.chmod(entry.path, entry.mode, dir_fd=root)
    os.utime(entry.path, ns=(entry.mtime, entry.mtime), dir_fd=root, follow_symlinks=False)


def digest_of_file(path: str) -> str:
    """Return the SHA-256 of a file in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_first(entries: list[Entry]) -> list[Entry]:
    """Return *entries* in their order, with the first name of each file as the file, the others as links."""
    known = {entry.path: entry for entry in entries}

    def file_of(entry: Entry) -> Entry:
        while entry.kind == HARDLINK:
            entry = known[entry.link]
        return entry

    first: dict[str, str] = {}  # the first name of each file, by the name that it was written under
    out = []
    for entry in entries:
        if entry.kind == DIRECTORY:
            out.append(entry)
            continue
        file = file_of(entry)
        name = first.setdefault(file.path, entry.path)
        if name == entry.path:
            out.append(file._replace(path=name))
        else:
            out.append(file._replace(path=entry.path, kind=HARDLINK, link=name, size=0))
    return out
