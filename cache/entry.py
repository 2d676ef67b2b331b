"""Entry: one member of a layer, as pack, COPY and manifests share it."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from cache.fs import is_whiteout

FILE = "f"
DIRECTORY = "d"
SYMLINK = "l"
HARDLINK = "h"
CHARACTER = "c"
BLOCK = "b"
FIFO = "p"
WHITEOUT = "w"

_KINDS = {
    stat.S_IFREG: FILE,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFLNK: SYMLINK,
    stat.S_IFCHR: CHARACTER,
    stat.S_IFBLK: BLOCK,
    stat.S_IFIFO: FIFO,
}


class Entry(NamedTuple):
    """One member. ``path`` is relative to the layer's root, without slashes at its ends.

    ``mode`` holds the 12 permission bits. ``mtime`` is in nanoseconds. ``size`` is in bytes, 0 for all
    but files. ``link`` is a symlink's text or a hard link's target path in the layer. ``digest`` is the
    sha256 hex of a file's content, "" if it is not known.
    """

    path: str
    kind: str
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    link: str = ""
    rdev: int = 0
    xattrs: tuple[tuple[str, bytes], ...] = ()
    digest: str = ""


def kind_of(found: os.stat_result) -> str:
    """Return the entry kind of a stat result; "" for a socket, which no layer holds."""
    if is_whiteout(found):
        return WHITEOUT
    return _KINDS.get(stat.S_IFMT(found.st_mode), "")


def entry_of(path: str, found: os.stat_result) -> Entry:
    """Return the entry that a stat result describes, without link text, attributes and digest."""
    kind = kind_of(found)
    size = found.st_size if kind == FILE else 0
    rdev = found.st_rdev if kind in (CHARACTER, BLOCK) else 0
    mode = stat.S_IMODE(found.st_mode)
    return Entry(path, kind, mode, found.st_uid, found.st_gid, size, found.st_mtime_ns, rdev=rdev)
