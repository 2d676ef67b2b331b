"""Join physical lines to logical ones: directives, comments, continuations, here-document bodies.

The rules are those of BuildKit's line scanner (L1 to L9 and "Parser directives"). One pass, linear in the
text. The grammar parses the logical lines.
"""

from __future__ import annotations

import bisect
import json
import re

from grammar.ast import Directives, Heredoc
from grammar.errors import DockerfileError
from grammar.span import Span
from grammar.structs import struct

_MOST_INSTRUCTIONS = 20_000  # some hundred times a usual file
_LINE_LIMIT = 65535
BLANKS = " \t\v\f\r\n"  # separators of words; other Unicode spaces are not (L12)
_DIRECTIVES = ("syntax", "escape", "check")
_HEREDOC_KEYWORDS = ("add", "copy", "run")


@struct
class LogicalLine:
    """One instruction with its continuations joined, and the position of each of its physical lines.

    ``pieces`` has ``(offset in text, physical line, column)`` for each physical line. ``empty_until`` is the
    final line of a command that has an empty line in it, else 0.
    """

    text: str
    first: int
    last: int
    heredocs: tuple[Heredoc, ...]
    pieces: tuple[tuple[int, int, int], ...]
    empty_until: int = 0
    comments: tuple[str, ...] = ()

    def span(self, offset: int = -1, width: int = 0) -> Span:
        """Return the span of the whole instruction, or of *width* characters at *offset* of the text.

        A span does not go beyond a continuation: it ends with its first line.
        """
        if offset < 0:
            return Span(self.first, self.last)
        place = bisect.bisect_right([piece[0] for piece in self.pieces], offset) - 1
        place = max(place, 0)
        start, line, column = self.pieces[place]
        end = self.pieces[place + 1][0] if place + 1 < len(self.pieces) else len(self.text)
        return Span(line, line, column + offset - start, max(1, min(width, end - offset)))


def split_lines(text: str, escape: str = "") -> tuple[Directives, list[LogicalLine]]:
    """Cut a Dockerfile into logical lines. Raises DockerfileError.

    With *escape* the text is from a file with this escape character, and has no directives.
    """
    physical = text.removeprefix("\ufeff").split("\n")
    if not physical[-1]:
        physical.pop()  # after a final line feed there is no further line
    for number, line in enumerate(physical, 1):
        if "\0" in line:
            raise DockerfileError("a NUL byte: this is not a Dockerfile", Span(number, number))
        if len(line) * 4 > _LINE_LIMIT and len(line.encode("utf-8", "surrogateescape")) > _LINE_LIMIT:
            raise DockerfileError(
                f"dockerfile line greater than max allowed size of {_LINE_LIMIT}", Span(number, number)
            )
    directives, count = (Directives(escape=escape), 0) if escape else _directives(physical)
    return directives, _Scanner(physical, directives.escape, count).run()


def _directives(physical: list[str]) -> tuple[Directives, int]:
    """Read the directives at the top of the file; return their number of lines."""
    found: dict[str, str] = {}
    for number, line in enumerate(physical, 1):
        body = line.strip()
        key, equals, value = body[1:].partition("=")
        key, value = key.strip().lower(), value.strip()
        if not body.startswith("#") or not equals or not value or key not in _DIRECTIVES:
            break
        if key in found:
            raise DockerfileError(f"only one {key} parser directive can be used", Span(number, number))
        if key == "escape" and value not in ("\\", "`"):
            raise DockerfileError(
                f"invalid escape token '{value}' does not match ` or \\", Span(number, number)
            )
        if key == "syntax":
            _check_syntax(value.split(None, 1)[0], Span(number, number))
        found[key] = value
    made = Directives(found.get("syntax", ""), found.get("escape", "\\"), found.get("check", ""))
    return made, len(found)


def _check_syntax(name: str, span: Span) -> None:
    """Check the frontend of ``# syntax=``. pybuild's is built in: it fetches none."""
    if not name.removeprefix("docker.io/").startswith("docker/dockerfile"):
        raise DockerfileError(
            f"syntax {name!r} is not supported",
            span,
            "pybuild understands docker/dockerfile itself and never runs another frontend",
        )


class _Scanner:
    """Scans the physical lines once. The first *directives* lines are not comments."""

    def __init__(self, physical: list[str], escape: str, directives: int) -> None:
        self._physical = physical
        self._escape = escape
        self._next = directives
        self._comments: list[str] = []

    def run(self) -> list[LogicalLine]:
        out = []
        while self._next < len(self._physical):
            stripped = self._physical[self._next].strip()
            if stripped.startswith("#"):
                self._comments.append(stripped[1:].strip())
                self._next += 1
            elif not stripped:
                self._comments.clear()
                self._next += 1
            else:
                line = self._instruction()
                if line.text.strip():  # otherwise there was only an escape
                    out.append(line)
                if len(out) > _MOST_INSTRUCTIONS:
                    raise DockerfileError(f"the file has more than {_MOST_INSTRUCTIONS} instructions")
                self._comments.clear()
        return out

    def _instruction(self) -> LogicalLine:
        """Join continuations from the current line on, then read here-documents."""
        first = self._next + 1
        parts: list[str] = []
        pieces: list[tuple[int, int, int]] = []
        length, empty, more = 0, False, True
        while more and self._next < len(self._physical):
            line = self._physical[self._next].rstrip("\r")
            self._next += 1
            body = line.strip()
            if parts and body.startswith("#"):
                continue
            if parts and not body:
                empty = True
                continue
            lead = 0
            if not parts:
                lead = len(line) - len(line.lstrip())
                line = line[lead:]
            line, more = self._continuation(line)
            pieces.append((length, self._next, lead + 1))
            parts.append(line)
            length += len(line)
        text, until = "".join(parts), self._next if empty else 0
        heredocs = self._heredocs(text, first)
        last = self._next
        while last > first and not self._physical[last - 1].strip():
            last -= 1
        return LogicalLine(text, first, last, heredocs, tuple(pieces), until, tuple(self._comments))

    def _continuation(self, line: str) -> tuple[str, bool]:
        """Return *line* without a final escape. A doubled escape is text, not a continuation (L5)."""
        body = line.rstrip(" \t")
        if body.endswith(self._escape) and not body[:-1].endswith(self._escape):
            return body[:-1], True
        return line, False

    def _heredocs(self, text: str, first: int) -> tuple[Heredoc, ...]:
        out = []
        for raw in heredoc_words(text):
            heredoc = parse_heredoc(raw)
            if heredoc is not None:
                out.append(self._body(heredoc, first))
        return tuple(out)

    def _body(self, heredoc: Heredoc, first: int) -> Heredoc:
        lines: list[str] = []
        while self._next < len(self._physical):
            line = self._physical[self._next]
            self._next += 1
            end = line.rstrip("\r")
            if (end.lstrip("\t") if heredoc.chomp else end) == heredoc.name:
                body = "".join(item + "\n" for item in lines)
                return Heredoc(heredoc.name, body, heredoc.expand, heredoc.chomp, heredoc.fd, heredoc.raw)
            lines.append(line)
        raise DockerfileError(
            f"unterminated heredoc: {heredoc.raw} has no line that is just {heredoc.name!r}",
            Span(first, first),
            "where a shell is to shift bits, leave no blank before <<" if " " in heredoc.raw else "",
        )


def heredoc_words(text: str) -> list[str]:
    """Return the words of an instruction that may have here-documents; none for any other.

    Only the shell forms of ADD, COPY and RUN may (also below ONBUILD).
    """
    rest = text
    keyword, _, rest = _cut(rest)
    if keyword.lower() == "onbuild":
        keyword, _, rest = _cut(rest)
    if keyword.lower() not in _HEREDOC_KEYWORDS or "<<" not in rest:
        return []
    body = rest
    while body.startswith("--"):
        body = _cut(body)[2]
    if body.startswith("["):
        try:
            json.loads(body)
        except (ValueError, RecursionError):
            pass
        else:
            return []
    return raw_words(rest)


def bare_words(text: str) -> list[str]:
    """Split at blanks. Quotes have no meaning."""
    return [word for word in re.split(f"[{BLANKS}]+", text) if word]


def first_word(text: str) -> str:
    """Return the first word of an instruction or trigger: its keyword."""
    return _cut(text)[0]


def _cut(text: str) -> tuple[str, str, str]:
    text = text.lstrip(BLANKS)
    for place, char in enumerate(text):
        if char in BLANKS:
            return text[:place], char, text[place:].lstrip(BLANKS)
    return text, "", ""


def raw_words(text: str) -> list[str]:
    """Split at blanks outside quotes, and keep quotes and escapes. An open quote ends with the text.

    Blanks after ``<<`` belong to its word, as does the name of the here-document.
    """
    words: list[str] = []
    word: list[str] = []
    quote = ""
    escaped = False
    smaller = 0  # the number of "<" before; two of them start a here-document
    for char in text:
        if char == "<" and not (quote or escaped):
            smaller = smaller % 2 + 1
            word.append(char)
            continue
        if smaller == 2 and char in " \t":
            word.append(char)
            continue
        smaller = 0
        if escaped:
            escaped = False
        elif char == "\\" and quote != "'":
            escaped = True
        elif quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char.isspace():
            if word:
                words.append("".join(word))
                word = []
            continue
        word.append(char)
    if word:
        words.append("".join(word))
    return words


def parse_heredoc(word: str) -> Heredoc | None:
    """Return ``[fd]<<[-]name`` as a Heredoc without its body; None for any other word."""
    digits, marker, name = word.partition("<<")
    if not marker or (digits and not (digits.isascii() and digits.isdigit())) or "<" in name:
        return None
    chomp = name.startswith("-")
    name = name.removeprefix("-").lstrip()
    if len(raw_words(name)) != 1:
        return None
    plain, quoted = _unquote(name)
    if not plain or plain.isspace():
        return None
    return Heredoc(plain, "", not quoted, chomp, int(digits) if digits else -1, word)


def _unquote(word: str) -> tuple[str, bool]:
    """Return a word without quotes and escapes, as a shell reads it, and True if any of it was quoted."""
    out: list[str] = []
    quote, quoted, place = "", False, 0
    while place < len(word):
        char, following = word[place], word[place + 1 : place + 2]
        place += 1
        if char == "\\" and quote != "'" and following and (not quote or following in '"$\\'):
            out.append(following)
            place += 1
        elif char in "'\"" and quote in ("", char):
            quote, quoted = "" if quote else char, True
        else:
            out.append(char)
    return "".join(out), quoted
