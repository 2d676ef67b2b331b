"""Words about a path of this machine that leads to nothing."""

from __future__ import annotations

import os


def why_missing(path: str) -> str:
    """``: LINK is a link to TARGET, which is not there``, where that is why *path* is missing, else ""."""
    names = path.rstrip("/").split("/")
    for count in range(1, len(names) + 1):
        above = "/".join(names[:count])
        if os.path.islink(above) and not os.path.exists(above):
            return f": {above} is a link to {os.readlink(above)}, which is not there"
    return ""
