"""How long servers are waited for, and how much they may say besides what they were asked for.

One place for all that is asked of others: pulls, pushes, logins, caches, ADD and contexts, git too.
"""

from __future__ import annotations

import re

TIMEOUT = 120.0  # seconds, if nobody says something else
_LONGEST_SILENCE = 60.0
_LONGEST = 86400.0
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)?", re.ASCII)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}

SLOWEST = 1024  # bytes a second, as the mean of the time that a silence may take
HEAD = 1 << 20  # bytes of a status line and its headers
INTERIM = 10  # answers (100 to 199) before the one that counts
CHUNK_LINE = 4096  # bytes of one line between chunks
ASIDE = 1 << 16  # bytes of chunk extensions and trailers, in all

_timeout = TIMEOUT


def timeout() -> float:
    """The seconds that a server may take for one thing without getting on, all tries together."""
    return _timeout


def silence() -> float:
    """The seconds that it may take to answer, or say nothing, in one try."""
    return min(_LONGEST_SILENCE, _timeout / 2)


def set_timeout(seconds: float) -> None:
    """What ``--timeout`` says, for this process."""
    global _timeout  # noqa: PLW0603
    _timeout = seconds


def seconds(text: str) -> float:
    """A time such as ``90``, ``90s``, ``1.5m`` or ``1h``. Raises ValueError; a day is the most."""
    match = _DURATION.fullmatch(text)
    found = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < found <= _LONGEST:
        raise ValueError(f"{text!r} is not a time such as 90s or 5m, up to 24h")
    return found
