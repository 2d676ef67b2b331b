"""Physical lines to logical ones: directives, comments, continuations, here-documents, spans."""

from __future__ import annotations

import pytest

from grammar.errors import DockerfileError
from grammar.lines import bare_words, first_word, heredoc_words, parse_heredoc, raw_words, split_lines
from grammar.span import Span


def texts(text: str, escape: str = "") -> list[str]:
    return [line.text for line in split_lines(text, escape)[1]]


def test_directives() -> None:
    directives, lines = split_lines("# syntax=docker/dockerfile:1\n# escape=`\n# check=skip=all\nFROM a\n")
    assert (directives.syntax, directives.escape, directives.check) == (
        "docker/dockerfile:1",
        "`",
        "skip=all",
    )
    assert [line.first for line in lines] == [4]
    assert lines[0].comments == ()


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("# escape=`\n# escape=`\nFROM a", "only one escape parser directive", 2),
        ("# escape=x\nFROM a", "invalid escape token 'x'", 1),
        ("# syntax=evil/frontend\nFROM a", "syntax 'evil/frontend' is not supported", 1),
        ("FROM a\nRUN a\0b", "a NUL byte", 2),
        ("FROM a\nRUN " + "x" * 70_000, "greater than max allowed size of 65535", 2),
        ("FROM a\nRUN <<EOF\nls\n", "unterminated heredoc: <<EOF", 2),
    ],
)
def test_refused(text: str, message: str, line: int) -> None:
    with pytest.raises(DockerfileError, match=message) as caught:
        split_lines(text)
    assert caught.value.span == Span(line, line)


def test_too_many_instructions() -> None:
    with pytest.raises(DockerfileError, match="more than 20000 instructions"):
        split_lines("RUN x\n" * 20_001)


def test_continuations() -> None:
    assert texts("RUN a \\\n  b \\\n# no\n\n  c\nRUN d\\\\\n") == ["RUN a   b   c", "RUN d\\\\"]
    assert texts("RUN a `\n b\n", "`") == ["RUN a  b"]
    assert texts("RUN a \\  \n b\r\n") == ["RUN a  b"]
    _directives, (line,) = split_lines("RUN a \\\n\n b\n")
    assert line.empty_until == 3


def test_comments_belong_to_the_next_line() -> None:
    _directives, lines = split_lines("\n# far\n\n# one\n# two\nFROM a\nRUN b\n")
    assert [line.comments for line in lines] == [("one", "two"), ()]


def test_spans_of_pieces() -> None:
    _directives, (line,) = split_lines("  RUN abc \\\n    def\n")
    assert line.span() == Span(1, 2)
    assert line.span(0, 3) == Span(1, 1, 3, 3)
    place = line.text.index("def")
    assert line.span(place, 3) == Span(2, 2, 5, 3)
    assert line.span(line.text.index("abc"), 100).last == 1  # only what is on its first line


def test_heredocs() -> None:
    _directives, (line,) = split_lines("RUN <<-'A' 3<<B\n\tone\n\tA\ntwo\nB\n")
    first, second = line.heredocs
    assert (first.name, first.content, first.expand, first.chomp, first.fd) == ("A", "one\n", False, True, -1)
    assert (second.name, second.body, second.expand, second.fd) == ("B", "two\n", True, 3)
    assert (line.first, line.last) == (1, 5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("RUN cat <<EOF", ["cat", "<<EOF"]),
        ("onbuild run <<EOF", ["<<EOF"]),
        ("ENV a=<<EOF", []),
        ('COPY ["<<EOF", "/x"]', []),
        ("COPY --chmod=1 <<EOF /x", ["--chmod=1", "<<EOF", "/x"]),
        ("RUN echo", []),
    ],
)
def test_words_that_may_hold_heredocs(text: str, words: list[str]) -> None:
    assert heredoc_words(text) == words


@pytest.mark.parametrize("word", ["<<", "<<-", "<<<a", "x<<a", "<<a<b", "<< a b", "a", "<<''"])
def test_no_heredoc(word: str) -> None:
    assert parse_heredoc(word) is None


def test_words() -> None:
    assert raw_words('a \'b c\' "d\\" e" f\\ g') == ["a", "'b c'", '"d\\" e"', "f\\ g"]
    assert bare_words(" a  'b c'\t") == ["a", "'b", "c'"]
    assert first_word("  run x") == "run"
    assert first_word("run") == "run"
