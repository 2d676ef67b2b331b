"""Decide whether an entry equals the one below it, so that a layer need not hold it again.

The one rule for RUN and COPY. Type, mode, owner, device number, link text and image attributes must be
equal, and so must the times, to the nanosecond. A time in whole seconds is no exception: it may come from
a tar, but a file that a step wrote within that second is another. A directory's time does not count, as it
only tells that something in it was made or removed. BuildKit's differ (util/overlay) takes a file of equal
size and times as unchanged and reads it only where both times are in whole seconds. We always compare the
content: ``touch -r`` sets equal times.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from cache.entry import DIRECTORY, FILE, SYMLINK, Entry, kind_of
from cache.fs import image_xattrs

if TYPE_CHECKING:
    from collections.abc import Callable

    from cache.layer.merged_tree import Node

_CHUNK = 1 << 16


def same_metadata(entry: Entry, below: Node) -> bool:
    """Return whether kind, mode, owner and time (but of directories) of *entry* are those of *below*."""
    found = below.found
    if entry.kind != DIRECTORY and entry.mtime != found.st_mtime_ns:
        return False
    theirs = (kind_of(found), stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)
    return (entry.kind, entry.mode, entry.uid, entry.gid) == theirs


def same_entry(entry: Entry, below: Node, same_content: Callable[[], bool]) -> bool:
    """Return whether *entry* is what *below* is. *same_content* compares two files of equal size."""
    if not same_metadata(entry, below):
        return False
    if entry.kind == SYMLINK:
        return os.readlink(below.real) == entry.link
    if entry.kind in (FILE, DIRECTORY) and image_xattrs(below.real) != entry.xattrs:
        return False
    if entry.kind == FILE:
        return below.found.st_size == entry.size and same_content()
    return entry.kind == DIRECTORY or below.found.st_rdev == entry.rdev


def same_files(first: str, second: str) -> bool:
    """Return whether two files hold the same bytes. Raises OSError."""
    with open(first, "rb") as one, open(second, "rb") as two:
        while True:
            data = one.read(_CHUNK)
            if data != two.read(_CHUNK):
                return False
            if not data:
                return True
