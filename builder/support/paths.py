"""Paths of this machine: those in the home directory, and reasons why one does not exist."""

from __future__ import annotations

import os


def in_home(path: str) -> str:
    """Return the absolute path of *path* below the home directory; below ``/~`` if that is unknown."""
    return os.path.join("/", os.path.expanduser(f"~/{path}"))


def why_missing(path: str) -> str:
    """Return ``: LINK is a link to TARGET, which is not there`` if *path* has a broken link, else ""."""
    names = path.rstrip("/").split("/")
    for count in range(1, len(names) + 1):
        above = "/".join(names[:count])
        if os.path.islink(above) and not os.path.exists(above):
            return f": {above} is a link to {os.readlink(above)}, which is not there"
    return ""


def read_text(path: str) -> str:
    """Return the text of a small file of this machine (its first 64 KiB), empty if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 16)
    except OSError:
        return ""
