"""How long servers may take, and how many bytes they may send besides what was asked for.

These limits hold for everything that other machines serve: pulls, pushes, logins, shared caches, ADD and
build contexts, git too.
"""

from __future__ import annotations

import re

_LONGEST_TIMEOUT = 86400.0
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)?", re.ASCII)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}

SLOWEST = 1024  # bytes a second, averaged over the longest silence
HEAD = 1 << 20  # bytes of a status line and its headers
INTERIM = 10  # answers (100 to 199) before the final one
CHUNK_LINE = 4096  # bytes of a line between chunks
ASIDE = 1 << 16  # bytes of chunk extensions and trailers of one answer


def seconds(text: str) -> float:
    """Return the seconds of a duration such as ``90``, ``90s``, ``1.5m`` or ``1h``.

    Raises ValueError, also for more than a day.
    """
    match = _DURATION.fullmatch(text)
    found = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < found <= _LONGEST_TIMEOUT:
        raise ValueError(f"{text!r} is not a time such as 90s or 5m, up to 24h")
    return found
