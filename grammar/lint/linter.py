"""The linter: which checks a file asks for, and the findings about it.

Rules that only the syntax decides are in grammar.lint.syntax. Those that need the values of variables or
the base image are checked while the file is planned.
"""

from __future__ import annotations

import bisect
import posixpath
from collections.abc import Iterable

from grammar import ast
from grammar.ignore import Ignore
from grammar.lint import rules
from grammar.lint.rules import Rule
from grammar.span import Span
from grammar.structs import struct
from grammar.suggest import suggestion

_MOST_GUESSES = 50


@struct
class Finding:
    """A place in the file that does not follow a rule."""

    rule: Rule
    message: str
    span: Span


@struct
class Checks:
    """The checks that a file asks for: ``# check=skip=...;experimental=...;error=true``."""

    skip: frozenset[str] = frozenset()
    experimental: frozenset[str] = frozenset()
    error: bool = False

    def wants(self, rule: Rule) -> bool:
        """Return whether *rule* is to be checked."""
        names = {"all", rule.name}
        return bool(names & self.experimental) if rule.experimental else not names & self.skip

    def with_(self, other: Checks) -> Checks:
        """Return these checks and, for one instruction, the *other* ones."""
        return Checks(self.skip | other.skip, self.experimental | other.experimental, self.error)


def parse_checks(text: str) -> Checks:
    """Parse the value of a check directive. Raises ValueError."""
    found: dict[str, str] = {}
    for part in text.split(";") if text.strip() else ():
        key, equals, value = part.strip().partition("=")
        if not equals or key not in ("skip", "experimental", "error"):
            raise ValueError(f'invalid check option "{key if equals else part}"')
        found[key] = value.strip()
    error = found.get("error", "false").lower()
    if error not in ("1", "t", "true", "0", "f", "false"):
        raise ValueError(f'failed to parse check option "error={found["error"]}"')
    names = {key: found.get(key, "").split(",") for key in ("skip", "experimental")}
    # "all" is special only if it stands alone.
    skip, experimental = (
        frozenset(name.strip() for name in items) - ({"all"} if len(items) > 1 else set())
        for items in names.values()
    )
    return Checks(skip, experimental, error in ("1", "t", "true"))


class Linter:
    """Collects the findings about one file.

    *checks* are those that the file asks for; a ``# check=`` comment right before an instruction adds to
    them for that one. *ignore* is the ignore file of the context, None if there is none.
    """

    def __init__(self, file: ast.Dockerfile, checks: Checks, ignore: Ignore | None = None) -> None:
        self.checks = checks
        self._found: dict[Finding, None] = {}
        self._guesses: dict[str, str] = {}
        self._comments = file.comments
        self._starts = sorted(file.sources)
        self._ignore = ignore

    def warn(self, rule: Rule, span: Span, *values: str) -> None:
        """Record that *span* does not follow *rule*, whose message is filled with *values*."""
        if self._checks_at(span.first).wants(rule):
            self._found[Finding(rule, rule.message.format(*values), span)] = None

    def undefined(self, names: set[str], known: Iterable[str], span: Span) -> None:
        """Record the use of variables that are not set; *known* are those that are."""
        for name in sorted(names):
            self.warn(rules.UNDEFINED_VAR, span, name, self.guess(name, known, "$"))

    def guess(self, name: str, known: Iterable[str], mark: str = "") -> str:
        """Return a suggestion for *name*; "" after some names, as a file may misspell thousands."""
        if name not in self._guesses:
            few = len(self._guesses) < _MOST_GUESSES
            self._guesses[name] = suggestion(name, known, 0.75, mark) if few else ""
        return self._guesses[name]

    def copied(self, keyword: str, source: str, span: Span) -> None:
        """Record a COPY source that the ignore file excludes.

        An ignore file with exceptions is skipped: only the files themselves would tell.
        """
        path = posixpath.normpath(source).lstrip("/")
        if self._ignore is None or self._ignore.has_exceptions:
            return
        hides_all = path in ("", ".") and self._ignore.why("x") and self._ignore.why(".x")
        if hides_all or (path not in ("", ".") and self._ignore.why(path)):
            self.warn(rules.COPY_IGNORED_FILE, span, keyword.capitalize(), path or ".")

    def _checks_at(self, line: int) -> Checks:
        """Return the checks for the instruction that *line* belongs to."""
        place = bisect.bisect_right(self._starts, line)
        for comment in self._comments.get(self._starts[place - 1], ()) if place else ():
            key, equals, value = comment.partition("=")
            if equals and key.strip().lower() == "check":
                try:
                    return self.checks.with_(parse_checks(value.strip().partition(" ")[0]))
                except ValueError:
                    return self.checks
        return self.checks

    @property
    def findings(self) -> list[Finding]:
        """The findings, by line."""
        return sorted(self._found, key=lambda finding: finding.span.first)


def describing(file: ast.Dockerfile, span: Span, name: str) -> str:
    """Return what a comment before an instruction says of *name*: ``# name description``."""
    for comment in file.comments.get(span.first, ()):
        if comment.startswith(name + " "):
            return comment[len(name) + 1 :]
    return ""
