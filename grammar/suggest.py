"""Suggestions for misspelt words."""

from __future__ import annotations

from collections.abc import Iterable

_MOST_NAMES = 200
_LONGEST = 100


def closest(word: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the name nearest to *word*, "" if none is near; *cutoff* is the least similarity (0 to 1).

    It compares at most some hundred names, so that it takes milliseconds whatever a file holds.
    """
    import difflib  # only where something is wrong

    if not word or len(word) > _LONGEST:
        return ""
    alike = [name for name in names if abs(len(name) - len(word)) <= len(word)]
    close = difflib.get_close_matches(word, sorted(alike)[:_MOST_NAMES], 1, cutoff)
    return close[0] if close else ""


def suggestion(word: str, names: Iterable[str], cutoff: float = 0.6, mark: str = "") -> str:
    """Return `` (did you mean x?)`` for the nearest of *names*, else ""; *mark* precedes the name."""
    name = closest(word, names, cutoff)
    return f" (did you mean {mark}{name}?)" if name else ""
