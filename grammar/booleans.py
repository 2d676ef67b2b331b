"""The words for true and false that options take."""

from __future__ import annotations

_TRUE = frozenset(("1", "t", "T", "TRUE", "true", "True"))
_FALSE = frozenset(("0", "f", "F", "FALSE", "false", "False"))


def truth(text: str) -> bool | None:
    """Return the truth of *text* as docker reads it (Go's strconv.ParseBool); None if it is neither."""
    return True if text in _TRUE else False if text in _FALSE else None
