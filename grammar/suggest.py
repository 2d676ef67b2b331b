"""What a misspelt word may have been meant to be."""

from __future__ import annotations

from collections.abc import Iterable

_MOST_NAMES = 200
_LONGEST = 100


def closest(word: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """The name nearest to *word*, "" where none is near; *cutoff* is how alike they have to be (0 to 1).

    Looks at no more than some hundred names, so that it costs milliseconds whatever a file holds.
    """
    import difflib  # only where something is wrong

    if not word or len(word) > _LONGEST:
        return ""
    alike = [name for name in names if abs(len(name) - len(word)) <= len(word)]
    close = difflib.get_close_matches(word, sorted(alike)[:_MOST_NAMES], 1, cutoff)
    return close[0] if close else ""


def suggestion(word: str, names: Iterable[str], cutoff: float = 0.6, mark: str = "") -> str:
    """`` (did you mean x?)`` for the nearest of *names*, else nothing; *mark* stands before it."""
    name = closest(word, names, cutoff)
    return f" (did you mean {mark}{name}?)" if name else ""
