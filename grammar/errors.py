"""Errors about text: Dockerfiles, image references, ignore files.

GrammarError            root
    DockerfileError     the Dockerfile is wrong; carries a Span
    ExpansionError      a word with ``${...}`` cannot be expanded; the caller knows the position
    ReferenceError_     a text is not an image reference
    IgnoreError         a line of an ignore file is malformed
    GlobError           a pattern is malformed
"""

from __future__ import annotations

from grammar.redact import redacted
from grammar.span import Span


class GrammarError(Exception):
    """A text does not follow its grammar."""

    code = "E-DOCKERFILE-SYNTAX"


class DockerfileError(GrammarError):
    """A Dockerfile cannot be built; ``span`` is the position of the error, None if it has none.

    ``message`` says what is wrong, ``hint`` what to do ("" if there is nothing useful to say).
    """

    def __init__(self, message: str, span: Span | None = None, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.span = span
        self.hint = hint


class ExpansionError(GrammarError):
    """The quoting or a ``${...}`` of a word is malformed, or its ``${x:?}`` has no value."""


class ReferenceError_(GrammarError, ValueError):
    """A text is not an image reference (distribution/reference grammar)."""


class IgnoreError(GrammarError, ValueError):
    """A pattern of an ignore file is malformed; ``line`` counts from 1."""

    code = "E-IGNORE"

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


class GlobError(GrammarError, ValueError):
    """A pattern is malformed: an open ``[``, a trailing backslash, or an unknown letter after one."""


_WIDEST = 240  # characters of a line that an excerpt shows


def excerpt(source: str, text: str | list[str], span: Span, context: int = 2) -> str:
    """Return the lines around *span* with line numbers, ``>>>`` marks and a line of carets.

    *source* is the name to print ("Dockerfile"), *text* the whole file, or its lines. Carets are under the
    columns of the span, or under its whole first line if it has no columns. Credentials of URLs are removed.
    """
    lines = file_lines(text) if isinstance(text, str) else text
    first = max(1, span.first - context)
    last = min(len(lines), span.last + context)
    width = len(str(last))
    out = [f"{source}:{span.first}"]
    for number in range(first, last + 1):
        whole = lines[number - 1].rstrip("\r")
        line = redacted(whole)
        mark = ">>>" if span.first <= number <= span.last else "   "
        shown = line if len(line) <= _WIDEST else line[: _WIDEST - 1] + "…"
        out.append(f" {number:>{width}} | {mark} {shown}".rstrip())
        start, length = span.column - 1, span.width - len(whole) + len(line)
        if number == span.first and not span.column:
            start, length = len(line) - len(line.lstrip()), len(line.strip())
        if number == span.first and start < _WIDEST:
            lead = "".join(c if c == "\t" else " " for c in line[:start])
            out.append(f" {'':>{width}} |     {lead}{'^' * max(1, min(length, _WIDEST - start))}")
    return "\n".join(out)


def file_lines(text: str) -> list[str]:
    """Return the lines of a file, for excerpts."""
    return text.removesuffix("\n").split("\n")
