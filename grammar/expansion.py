"""Quoting and ``$variable`` expansion of one argument, as in BuildKit's shell lexer.

It has all twelve operators, and bounded cost: _DEPTH limits nesting, _SIZE the length of a word, and
patterns are matched with a set of states, without backtracking. The time is at most proportional to the
length of the text times that of the pattern.
"""

from __future__ import annotations

from collections.abc import Mapping

from grammar.errors import ExpansionError

_DEPTH = 100
_SIZE = 1 << 20
_WORK = 20_000_000
_SPECIAL = frozenset("@*#?-$!0")
_END = ""
_ANY = "any"
_RUN = "run"


def valid_text(text: str) -> str:
    """Return *text* as Go reads it: a lone surrogate, or a byte that is not UTF-8, becomes U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def expand_word(
    text: str,
    env: Mapping[str, str],
    escape: str = "\\",
    missing: set[str] | None = None,
    raw_quotes: bool = False,
) -> str:
    """Return *text* as one word: without quotes, with the values of its variables, unset ones empty.

    Names of unset variables are added to *missing*. With *raw_quotes* quotes are kept (for here-documents).
    Raises ExpansionError.
    """
    return _expand(text, env, escape, missing, raw_quotes)[0]


def expand_words(
    text: str, env: Mapping[str, str], escape: str = "\\", missing: set[str] | None = None
) -> list[str]:
    """Return *text* as words: split at blanks outside quotes, and in the values of unquoted variables.

    Raises ExpansionError.
    """
    return _expand(text, env, escape, missing, False)[1]


def _expand(
    text: str, env: Mapping[str, str], escape: str, missing: set[str] | None, raw_quotes: bool
) -> tuple[str, list[str]]:
    lexer = _Lexer(text, env, escape, missing if missing is not None else set(), raw_quotes)
    return lexer.until(_END, 0)


class _Unfinished(ExpansionError):
    """The text ends inside a substitution."""


class _Words:
    """Collects words, which blanks outside quotes separate."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self._word: list[str] = []

    def add(self, text: str) -> None:
        for char in text:
            if char.isspace():
                self._close()
            else:
                self._word.append(char)

    def add_raw(self, text: str) -> None:
        self._word.append(text)

    def _close(self) -> None:
        word = "".join(self._word)
        if word:
            self.done.append(word)
        self._word = []

    def finish(self) -> list[str]:
        self._close()
        return self.done


class _Lexer:
    """One pass over one text."""

    def __init__(
        self, text: str, env: Mapping[str, str], escape: str, missing: set[str], raw_quotes: bool
    ) -> None:
        self._text = valid_text(text)
        self._place = 0
        self._env = env
        self._escape = escape
        self._missing = missing
        self._raw_quotes = raw_quotes
        self._spent = 0

    def _peek(self) -> str:
        return self._text[self._place] if self._place < len(self._text) else _END

    def _next(self) -> str:
        char = self._peek()
        self._place += 1
        return char

    def _spend(self, text: str) -> str:
        self._spent += len(text)
        _bounded(self._spent)
        return text

    def until(self, stop: str, depth: int, keep_escapes: bool = False) -> tuple[str, list[str]]:
        """Expand up to and including the character *stop*; return the text as one word, and as words."""
        if depth > _DEPTH:
            raise ExpansionError(f"substitutions are nested more than {_DEPTH} deep")
        out: list[str] = []
        words = _Words()
        while char := self._peek():
            if stop and char == stop:
                self._next()
                return "".join(out), words.finish()
            if char in "'\"" and not self._raw_quotes:
                piece = self._single() if char == "'" else self._double(depth)
                words.add_raw(piece)
            elif char == "$":
                piece = self._dollar(depth)
                words.add(piece)
            else:
                piece = self._plain(words, keep_escapes)
            out.append(piece)
        if stop:
            raise _Unfinished(f"unexpected end of statement while looking for matching {stop}")
        return "".join(out), words.finish()

    def _plain(self, words: _Words, keep_escapes: bool) -> str:
        """Read a character that is neither quote nor variable. After an escape the next one is literal."""
        char = self._next()
        if char != self._escape:
            words.add(char)
            return char
        piece = (char if keep_escapes else "") + self._next()
        words.add_raw(piece)
        return piece

    def _single(self) -> str:
        """Read all characters up to the closing single quote, unchanged."""
        start = self._place
        end = self._text.find("'", start + 1)
        if end < 0:
            raise ExpansionError("unexpected end of statement while looking for matching single-quote")
        self._place = end + 1
        return self._text[start + 1 : end]

    def _double(self, depth: int) -> str:
        """Read up to the closing double quote. Only quote, dollar and the escape itself can be escaped."""
        self._next()
        out: list[str] = []
        while char := self._peek():
            if char == '"':
                self._next()
                return "".join(out)
            if char == "$":
                out.append(self._dollar(depth))
                continue
            self._next()
            if char == self._escape:
                following = self._peek()
                if not following:
                    continue  # an escape at the end of the text is dropped
                if following in ('"', "$", self._escape):
                    char = self._next()
            out.append(char)
        raise ExpansionError("unexpected end of statement while looking for matching double-quote")

    # -- variables -------------------------------------------------------------------------

    def _dollar(self, depth: int) -> str:
        self._next()
        if self._peek() != "{":
            name = self._name()
            return self._spend(self._value(name) or "") if name else "$"
        self._next()
        if not self._peek():
            raise ExpansionError("syntax error: missing '}'")
        if self._peek() in "{}:":
            raise ExpansionError("syntax error: bad substitution")
        name = self._name()
        return self._spend(self._substitute(name, depth))

    def _name(self) -> str:
        """Return a variable's name. A number, or one special character, is a name too."""
        start = self._place
        first = self._peek()
        if first.isdigit():
            while self._peek().isdigit():
                self._place += 1
        elif first and first in _SPECIAL:
            self._place += 1
        else:
            while (char := self._peek()) and (char.isalnum() or char == "_"):
                self._place += 1
        return self._text[start : self._place]

    def _value(self, name: str) -> str | None:
        """Return the variable's value; None if it is unset. Positional and special variables always are."""
        value = self._env.get(name)
        if value is None:
            self._missing.add(name)
        return value

    def _substitute(self, name: str, depth: int) -> str:
        """Expand the text from after ``${name`` up to and including its brace."""
        operator = self._next()
        if operator == "}":
            return self._value(name) or ""
        if operator == "/":
            return self._replace(name, depth)
        colon = operator == ":"
        if colon:
            operator = self._next()
        shown = (":" if colon else "") + operator
        if not operator or operator not in "+-?#%" or (colon and operator in "#%"):
            raise ExpansionError(f"unsupported modifier ({shown}) in substitution")
        word = self._operand("}", depth, keep_escapes=operator in "#%")
        value = self._env.get(name) if operator in "-+" else self._value(name)
        present = value is not None and not (colon and not value)
        match operator:
            case "-":
                return (value or "") if present else word
            case "+":
                return word if present else ""
            case "?":
                return self._required(name, value, present, word)
        longest = word.startswith(operator)
        pattern = word[1:] if longest else word
        strip = strip_prefix if operator == "#" else strip_suffix
        return strip(value or "", pattern, longest)

    @staticmethod
    def _required(name: str, value: str | None, present: bool, word: str) -> str:
        if present:
            return value or ""
        default = "is not allowed to be unset" if value is None else "is not allowed to be empty"
        raise ExpansionError(f"{name}: {word or default}")

    def _operand(self, stop: str, depth: int, keep_escapes: bool) -> str:
        try:
            return self.until(stop, depth + 1, keep_escapes)[0]
        except _Unfinished:
            raise ExpansionError(f"syntax error: missing '{stop}' in substitution") from None

    def _replace(self, name: str, depth: int) -> str:
        everywhere = self._peek() == "/"
        if everywhere:
            self._next()
        pattern = self._operand("/", depth, keep_escapes=True)
        replacement = self._operand("}", depth, keep_escapes=True)
        return replace_pattern(self._value(name) or "", pattern, replacement, everywhere)


# -- patterns ------------------------------------------------------------------------------


def _compile(pattern: str) -> list[tuple[str, str]]:
    """Compile ``*``, ``?`` and literals. A backslash may escape those, itself, ``}`` and ``/``."""
    tokens: list[tuple[str, str]] = []
    escaped = False
    for char in pattern:
        if escaped:
            if char not in "*?\\}/":
                raise ExpansionError(f"invalid escape '\\{char}' in a pattern")
            tokens.append(("", char))
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == "*":
            if not tokens or tokens[-1][0] != _RUN:
                tokens.append((_RUN, ""))
        elif char == "?":
            tokens.append((_ANY, ""))
        else:
            tokens.append(("", char))
    if escaped:
        raise ExpansionError("a pattern ends in a backslash")
    return tokens


class _Work:
    """The limit for the work of matching: a malicious pattern gives an error, and does not run for hours."""

    def __init__(self) -> None:
        self._left = _WORK

    def spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise ExpansionError("a pattern and its text are too long together")


class _Pattern:
    """A compiled pattern. Its states are the bits of an int, which all advance at once."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._runs = self._anys = 0
        self._literals: dict[str, int] = {}
        for number, (kind, literal) in enumerate(tokens):
            if kind == _RUN:
                self._runs |= 1 << number
            elif kind == _ANY:
                self._anys |= 1 << number
            else:
                self._literals[literal] = self._literals.get(literal, 0) | 1 << number
        self._end = 1 << len(tokens)

    def match(self, text: str, start: int, longest: bool, work: _Work) -> int:
        """Return the length of the shortest or longest match at *start* of *text*, -1 for none."""
        states = self._closed(1)
        found = 0 if states & self._end else -1
        for place in range(start, len(text)):
            if found >= 0 and not longest:
                return found
            work.spend(1 + (states.bit_length() >> 6))
            moving = states & (self._anys | self._literals.get(text[place], 0))
            states = self._closed(moving << 1 | states & self._runs)
            if not states:
                break
            if states & self._end:
                found = place + 1 - start
        return found

    def _closed(self, states: int) -> int:
        """Return *states* with those reachable without a character: ``*`` may match nothing."""
        return states | (states & self._runs) << 1


def strip_prefix(value: str, pattern: str, longest: bool) -> str:
    """Expand ``${v#p}`` and ``${v##p}``."""
    length = _Pattern(_compile(pattern)).match(value, 0, longest, _Work())
    return value[length:] if length > 0 else value


def strip_suffix(value: str, pattern: str, longest: bool) -> str:
    """Expand ``${v%p}`` and ``${v%%p}``."""
    length = _Pattern(_compile(pattern)[::-1]).match(value[::-1], 0, longest, _Work())
    return value[: len(value) - length] if length > 0 else value


def _bounded(size: int) -> None:
    if size > _SIZE:
        raise ExpansionError(f"expands to more than {_SIZE} characters")


def _template(text: str) -> list[str | None]:
    """Return the literal pieces of a template, with None for the matched text: ``$0``, ``${0}``.

    ``$$`` is a dollar sign, other groups and names are empty, and any other ``$`` is itself.
    """
    if "$" not in text:
        return [text]
    import re

    parts: list[str | None] = []
    end = 0
    for found in re.finditer(r"\$(?:(\$)|\{(\w+)\}|(\w+))", text):
        parts.append(text[end : found.start()])
        end = found.end()
        if found[1]:
            parts.append("$")
        elif (found[2] or found[3]) == "0":
            parts.append(None)
    return [*parts, text[end:]]


def _filled(template: list[str | None], match: str) -> str:
    return "".join(match if part is None else part for part in template)


def replace_pattern(value: str, pattern: str, replacement: str, everywhere: bool) -> str:
    """Expand ``${v/p/r}`` and ``${v//p/r}``: the leftmost, longest match first.

    The replacement of the second form is a template of Go's regexp package, as in BuildKit.
    """
    tokens = _compile(pattern)
    template: list[str | None] = _template(replacement) if everywhere else [replacement]
    if None in template and not any(kind for kind, _literal in tokens):
        template = [_filled(template, "".join(literal for _kind, literal in tokens))]
    replacement = _filled(template, "")
    if not tokens:  # an empty pattern matches before each character, and at the end
        _bounded(len(value) * (len(replacement) + 1))
        return replacement + ("".join(char + replacement for char in value) if everywhere else value)
    if not value and all(kind == _RUN for kind, _literal in tokens):
        return replacement
    if not any(kind for kind, _literal in tokens):
        literal = "".join(literal for _kind, literal in tokens)
        _bounded(value.count(literal) * len(replacement))
        return value.replace(literal, replacement, -1 if everywhere else 1)
    compiled, work = _Pattern(tokens), _Work()
    out: list[str] = []
    place = grown = 0
    while place < len(value):
        length = compiled.match(value, place, True, work)
        if length <= 0:
            out.append(value[place])
            place += 1
            continue
        out.append(_filled(template, value[place : place + length]))
        grown += len(out[-1])
        _bounded(grown)
        place += length
        if not everywhere:
            break
    return "".join(out) + value[place:]
