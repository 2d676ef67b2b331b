""".dockerignore files and their glob patterns, in linear time.

Python's ``re`` backtracks: a pattern with a few ``**/`` could stop a build for hours. So patterns are
matched component by component, with sets of positions. The rules are those of moby's patternmatcher.
"""

from __future__ import annotations

import posixpath

from grammar.errors import GlobError, IgnoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_MAX_PATTERNS = 100_000


# -- one component -------------------------------------------------------------------------

_Class = tuple[bool, tuple[tuple[str, str], ...]]  # negated, ranges
_Token = tuple[str, str, "_Class | None"]  # kind, literal, class
_LITERAL, _ONE, _STAR, _SET = "literal", "one", "star", "set"

# Letters with a meaning after a backslash in moby, which converts patterns to regular expressions.
_DIGITS = (("0", "9"),)
_BLANKS = (("\t", "\n"), ("\f", "\r"), (" ", " "))
_WORDS = (("0", "9"), ("A", "Z"), ("_", "_"), ("a", "z"))
_LETTERS = {
    **{letter: ((char, char),) for letter, char in zip("afnrtv", "\a\f\n\r\t\v", strict=True)},
    **{"d": _DIGITS, "s": _BLANKS, "w": _WORDS},
}


def _others(ranges: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Return the ranges of all characters that are not in *ranges*."""
    ends = ["\0"]
    for low, high in ranges:
        ends += [chr(ord(low) - 1), chr(ord(high) + 1)]
    ends.append("\U0010ffff")
    return tuple(zip(ends[::2], ends[1::2], strict=True))


_LETTERS |= {letter.upper(): _others(_LETTERS[letter]) for letter in "dsw"}


def _escaped(char: str) -> tuple[tuple[str, str], ...]:
    """Return the token of *char* after a backslash in an ignore file. Raises GlobError."""
    if char in _LETTERS:
        return _LETTERS[char]
    if char.isascii() and not char.isalnum():
        return ((char, char),)
    raise GlobError(f"syntax error in pattern: \\{char} means nothing")


def has_glob(text: str) -> bool:
    """Return True if *text* has a wildcard."""
    return any(char in text for char in "*?[\\")


def match_glob(pattern: str, path: str) -> bool:
    """Return True if *text* matches, as in Go's filepath.Match: ``*`` and ``?`` match no slash.

    Raises GlobError.
    """
    patterns, parts = pattern.split("/"), path.split("/")
    compiled = [_compile(item) for item in patterns]
    if len(patterns) != len(parts):
        return False
    return all(_match(tokens, part) for tokens, part in zip(compiled, parts, strict=True))


def _compile(pattern: str, letters: bool = False) -> list[_Token]:
    """Return the tokens of a component. With *letters* escaped letters have the meaning of _LETTERS."""
    tokens: list[_Token] = []
    place = 0
    while place < len(pattern):
        char = pattern[place]
        place += 1
        if char == "*":
            if not tokens or tokens[-1][0] != _STAR:
                tokens.append((_STAR, "", None))
        elif char == "?":
            tokens.append((_ONE, "", None))
        elif char == "[":
            parsed, place = _class(pattern, place, letters)
            tokens.append((_SET, "", parsed))
        else:
            if char == "\\":
                if place >= len(pattern):
                    raise GlobError("syntax error in pattern: it ends in a backslash")
                char = pattern[place]
                place += 1
                if letters:
                    tokens.append((_SET, "", (False, _escaped(char))))
                    continue
            tokens.append((_LITERAL, char, None))
    return tokens


def _class(pattern: str, place: int, letters: bool) -> tuple[_Class, int]:
    """Parse ``[^a-z]`` from after its bracket; return the class and its end."""
    negated = pattern[place : place + 1] == "^"
    place += negated
    ranges: list[tuple[str, str]] = []
    while True:
        if pattern[place : place + 1] == "]" and ranges:
            return (negated, tuple(ranges)), place + 1
        if letters and pattern[place : place + 1] == "\\" and place + 1 < len(pattern):
            found = _escaped(pattern[place + 1])
            if len(found) > 1 or found[0][0] != found[0][1]:
                ranges += found
                place += 2
                continue
        low, place = _class_char(pattern, place, letters)
        high = low
        if pattern[place : place + 1] == "-":
            high, place = _class_char(pattern, place + 1, letters)
        ranges.append((low, high))


def _class_char(pattern: str, place: int, letters: bool) -> tuple[str, int]:
    char = pattern[place : place + 1]
    if char == "\\":
        place += 1
        char = pattern[place : place + 1]
        if letters and char:
            char = _escaped(char)[0][0]
    elif char in ("-", "]"):
        raise GlobError("syntax error in pattern: a misplaced - or ] in [...]")
    if not char:
        raise GlobError("syntax error in pattern: [ is not closed")
    return char, place + 1


def _match(tokens: Sequence[_Token], text: str) -> bool:
    """Match a whole component. It goes back only to the last star: time is the product of the lengths."""
    at = place = 0
    star = star_place = -1
    while place < len(text):
        if at < len(tokens) and tokens[at][0] == _STAR:
            star, star_place = at, place
            at += 1
        elif at < len(tokens) and _accepts(tokens[at], text[place]):
            at += 1
            place += 1
        elif star >= 0:
            star_place += 1
            at, place = star + 1, star_place
        else:
            return False
    while at < len(tokens) and tokens[at][0] == _STAR:
        at += 1
    return at == len(tokens)


def _accepts(token: _Token, char: str) -> bool:
    kind, literal, parsed = token
    if kind == _LITERAL:
        return literal == char
    if kind == _ONE:
        return char != "/"
    assert parsed is not None
    negated, ranges = parsed
    return any(low <= char <= high for low, high in ranges) != negated


# -- "**" glued to other characters ---------------------------------------------------------
#
# It has a special meaning in moby: at the start it matches any characters before, at the end any after,
# and in the middle any whole components. It is rare, so the whole path is matched by characters.

_BEFORE, _COMPONENTS, _AFTER = "before", "components", "after"


def _has_glued_stars(pattern: str) -> bool:
    """Return True if an unescaped ``**`` shares a component with other characters."""
    place = _find_stars(pattern, 0)
    while place >= 0:
        if pattern[max(place - 1, 0) : place] not in ("", "/") or pattern[place + 2 : place + 3] not in (
            "",
            "/",
        ):
            return True
        place = _find_stars(pattern, place + 2)
    return False


def _compile_deep(pattern: str) -> list[_Token]:
    """Return the tokens of a whole pattern. Raises GlobError."""
    tokens: list[_Token] = []
    place = 0
    while (stars := _find_stars(pattern, place)) >= 0:
        tokens += _compile(pattern[place:stars], letters=True)
        place = stars + 2
        place += pattern[place : place + 1] == "/"
        plain_after = not any(char in pattern[place:] for char in "*?[\\")
        if place >= len(pattern):
            tokens.append((_AFTER, "", None))
        elif stars == 0 and plain_after and pattern[place - 1] != "/":
            tokens.append((_BEFORE, "", None))
        else:
            tokens.append((_COMPONENTS, "", None))
    return tokens + _compile(pattern[place:], letters=True)


def _find_stars(pattern: str, place: int) -> int:
    """Return the index of the next unescaped ``**``, -1 for none."""
    while place < len(pattern):
        if pattern.startswith("**", place):
            return place
        place += 2 if pattern[place] == "\\" else 1
    return -1


def _match_deep(tokens: Sequence[_Token], path: str) -> bool:
    """Match with a set of states: ``2 * n`` before token n, ``2 * n + 1`` inside it."""
    states = _reachable(tokens, {0})
    for char in path:
        after: set[int] = set()
        for state in states:
            number, inside = divmod(state, 2)
            if number == len(tokens):
                continue
            token = tokens[number]
            if token[0] in (_BEFORE, _AFTER) or (token[0] == _STAR and char != "/"):
                after.add(state)
            elif token[0] == _COMPONENTS:
                after.add(2 * number + 1)
                if char == "/":
                    after.add(2 * number + 2)
            elif token[0] != _STAR and not inside and _accepts(token, char):
                after.add(2 * number + 2)
        states = _reachable(tokens, after)
    return 2 * len(tokens) in states


def _reachable(tokens: Sequence[_Token], states: set[int]) -> set[int]:
    """Return *states* with those reachable without a character."""
    stack = list(states)
    while stack:
        number, inside = divmod(stack.pop(), 2)
        skips = number < len(tokens) and tokens[number][0] in (_BEFORE, _AFTER, _STAR, _COMPONENTS)
        if skips and not inside and 2 * number + 2 not in states:
            states.add(2 * number + 2)
            stack.append(2 * number + 2)
    return states


# -- patterns of an ignore file ------------------------------------------------------------


class Pattern:
    """One line as components, of which ``**`` matches any number."""

    def __init__(self, text: str, negated: bool, line: int) -> None:
        self.negated = negated
        self.line = line
        self._deep = _compile_deep(text) if _has_glued_stars(text) else None
        self._parts: list[str | list[_Token] | None] = []
        for part in text.split("/"):
            if part == "**":
                if not self._parts or self._parts[-1] is not None:
                    self._parts.append(None)
            elif has_glob(part):
                self._parts.append(_compile(part, letters=True))
            else:
                self._parts.append(part)
        self.literal = text if all(isinstance(part, str) for part in self._parts) else ""
        first = text.split("/")[0]
        self.first = "" if has_glob(first) else first

    def matches(self, path: str) -> bool:
        """Return True if the pattern matches the path itself."""
        if self.literal:
            return self.literal == path
        if self._deep is not None:
            return _match_deep(self._deep, path)
        parts = path.split("/")
        if self.first and self.first != parts[0]:
            return False
        positions = self._skip({0})
        for part in parts:
            after = set()
            for place in positions:
                if place >= len(self._parts):
                    continue
                wanted = self._parts[place]
                if wanted is None:
                    after.add(place)
                    if place == len(self._parts) - 1:
                        after.add(place + 1)
                elif wanted == part if isinstance(wanted, str) else _match(wanted, part):
                    after.add(place + 1)
            if not after:
                return False
            positions = self._skip(after)
        return len(self._parts) in positions

    def _skip(self, positions: set[int]) -> set[int]:
        """Return *positions* with those after a ``**``, which may match nothing unless it is the last one."""
        last = len(self._parts) - 1
        return positions | {p + 1 for p in positions if p < last and self._parts[p] is None}


class State:
    """The verdict on one path, and the patterns that match it or a parent of it."""

    __slots__ = ("excluded", "matched")

    def __init__(self, excluded: bool, matched: tuple[bool, ...]) -> None:
        self.excluded = excluded
        self.matched = matched


class Ignore:
    """The patterns of one ignore file."""

    def __init__(self, patterns: list[Pattern]) -> None:
        self._patterns = patterns
        self._exceptions = [pattern for pattern in patterns if pattern.negated]

    @property
    def empty(self) -> bool:
        return not self._patterns

    @property
    def has_exceptions(self) -> bool:
        return bool(self._exceptions)

    def match(self, path: str, parent: State | None) -> State:
        """Return the verdict on *path*; *parent* is that of its directory (None at the top).

        The last matching pattern decides. A pattern that matches a parent matches its children too. Only
        patterns that would change the verdict are evaluated.
        """
        excluded = False
        matched = []
        inherited = parent.matched if parent is not None else ()
        for number, pattern in enumerate(self._patterns):
            hit = (bool(inherited) and inherited[number]) or (
                pattern.negated == excluded and pattern.matches(path)
            )
            matched.append(hit)
            if hit:
                excluded = not pattern.negated
        return State(excluded, tuple(matched))

    def may_reinclude(self, directory: str) -> bool:
        """Return True if a ``!`` pattern could match below an excluded *directory*."""
        prefix = directory + "/"
        for pattern in self._exceptions:
            if not pattern.literal or (pattern.literal + "/").startswith(prefix):
                return True
        return False

    def why(self, path: str) -> int:
        """Return the line of the pattern that excludes *path* or a parent of it; 0 if none does."""
        state: State | None = None
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            state = self.match("/".join(parts[:depth]), state)
        if state is None or not state.excluded:
            return 0
        hits = [p.line for p, hit in zip(self._patterns, state.matched, strict=True) if hit and not p.negated]
        return hits[-1]


def parse_ignore(data: bytes | str) -> Ignore:
    """Read an ignore file. Raises IgnoreError at the line of a malformed pattern."""
    text = data.decode("utf-8", "surrogateescape") if isinstance(data, bytes) else data
    patterns: list[Pattern] = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if line.startswith("#"):
            continue
        pattern = _pattern(line, number)
        if pattern is not None:
            patterns.append(pattern)
        if len(patterns) > _MAX_PATTERNS:
            raise IgnoreError(f"more than {_MAX_PATTERNS} patterns", number)
    return Ignore(patterns)


def parse_patterns(texts: Iterable[str]) -> Ignore:
    """Return the patterns of flags. They have no comments, and a leading slash counts.

    Raises IgnoreError.
    """
    patterns = []
    for number, text in enumerate(texts, 1):
        if stripped := text.strip():
            body = posixpath.normpath(stripped)
            patterns.append(_compiled(body.removeprefix("!"), body.startswith("!"), number))
    return Ignore(patterns)


def _pattern(text: str, number: int) -> Pattern | None:
    """Return the pattern of a line, None for an empty one."""
    body = text.strip()
    negated = body.startswith("!")
    if negated:
        body = body[1:].strip()
    if not body:
        return _compiled("", True, number) if negated else None
    body = posixpath.normpath(body)
    if len(body) > 1:
        body = body.lstrip("/")
    return _compiled(body, negated, number)


def _plain_slashes(pattern: str) -> str:
    """Return *pattern* without backslashes before slashes. An escaped slash still separates, as in moby."""
    if "\\/" not in pattern:
        return pattern
    out, place = "", 0
    while place < len(pattern):
        taken = pattern[place : place + 2] if pattern[place] == "\\" else pattern[place]
        out += "/" if taken == "\\/" else taken
        place += len(taken)
    return out


def _compiled(body: str, negated: bool, number: int) -> Pattern:
    if not body:
        raise IgnoreError('illegal exclusion pattern: "!"', number)
    try:
        return Pattern(_plain_slashes(body), negated, number)
    except GlobError as error:
        raise IgnoreError(f"{body!r}: {error}", number) from None
