"""Lines and where instructions stand: continuations, directives, spans."""

from __future__ import annotations

import pytest
from parsing import HEAD, fault, second
from pytest import param

from grammar import ast
from grammar.parse import parse
from grammar.span import Span


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        param("RUN a \\\n# c\n  b", "a   b", id="L3-comment-inside"),
        param("RUN a \\\n   # c \\\nb", "a b", id="L3-comment-cannot-continue"),
        param("RUN a \\\n\n\t\nb", "a b", id="L6-blank-lines-inside"),
        param("RUN a \\ \t\nb", "a b", id="L5-blanks-after-the-escape"),
        param("RUN a \\\\", "a \\\\", id="L5-doubled-escape-at-the-end"),
        param("RUN a \\", "a", id="L7-continuation-at-EOF"),
        param("RUN a \\\n\\\nb", "a b", id="L5-lone-escape"),
        param("  \tRUN a", "a", id="L4-leading-blanks"),
        param("RUN a # b", "a # b", id="comment-only-at-line-start"),
        param("RUN a`\\\nb", "a`b", id="other-escape-is-text"),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_continuations(text: str, expected: str, newline: str) -> None:
    """L8: CRLF is the same."""
    (node,) = parse((HEAD + text).replace("\n", newline)).stages[0].instructions
    assert isinstance(node, ast.Run)
    assert node.command == ast.ShellForm(expected)


def test_crlf_leaves_no_trace() -> None:
    """L8."""
    made = parse("# escape=`\r\nFROM a AS b\r\nENV k v\r\nCOPY x y\r\n")
    assert made.stages == parse("# escape=`\nFROM a AS b\nENV k v\nCOPY x y\n").stages
    env, copy = made.stages[0].instructions
    assert isinstance(env, ast.Env) and isinstance(copy, ast.Copy)
    assert (made.stages[0].start.name, env.pairs[0].value, copy.dest) == ("b", "v", "y")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        param("# escape=`\nFROM a\nRUN x `\n y \\\nUSER z", "x  y \\", id="grave-continues"),
        param("# escape=`\nFROM a\nRUN x ``\nUSER z", "x ``", id="L5-doubled-grave"),
        param("# escape=\\\nFROM a\nRUN x `\nUSER z", "x `", id="backslash-said"),
        param("#EsCaPe =  ` \nFROM a\nRUN x `\ny", "x y", id="key-any-case-blanks"),
        param("\ufeff# escape=`\nFROM a\nRUN x `\ny", "x y", id="L1-BOM-before"),
        param("# syntax=docker/dockerfile:1\n# escape=`\nFROM a\nRUN x `\ny", "x y", id="after-syntax"),
        param("# hi\n# escape=`\nFROM a\nRUN x \\\ny", "x y", id="after-comment-is-comment"),
        param("\n# escape=`\nFROM a\nRUN x \\\ny", "x y", id="after-blank-is-comment"),
        param("# foo=bar\n# escape=`\nFROM a\nRUN x \\\ny", "x y", id="unknown-key-ends"),
        param("FROM a\n# escape=`\nRUN x \\\ny", "x y", id="after-instruction-is-comment"),
    ],
)
def test_escape_directive(text: str, expected: str) -> None:
    node = parse(text).stages[0].instructions[0]
    assert isinstance(node, ast.Run)
    assert node.command == ast.ShellForm(expected)


def test_grave_escape_leaves_windows_paths() -> None:
    made = parse("# escape=`\nFROM a\nENV p=c:\\dir\\ q=x` y\nCOPY a c:\\")
    env, copy = made.stages[0].instructions
    assert isinstance(env, ast.Env) and isinstance(copy, ast.Copy)
    assert [(p.key, p.value) for p in env.pairs] == [("p", "c:\\dir\\"), ("q", "x` y")]
    assert copy.dest == "c:\\"


def test_directives_are_kept() -> None:
    text = "# syntax = docker/dockerfile:1.20-labs\n# check=skip=all;error=true\nFROM a"
    assert parse(text).directives == ast.Directives(
        "docker/dockerfile:1.20-labs", "\\", "skip=all;error=true"
    )


def test_first_line_may_hold_a_BOM() -> None:
    """L1: it is no part of the first word nor of its column."""
    start = parse("\ufeffFROM a").stages[0].start
    assert (start.base, start.base_span) == ("a", Span(1, 1, 6, 1))


def test_source_lines_for_display() -> None:
    made = parse("FROM a\nRUN x \\\n # c\n   y\n\nUSER z")
    assert made.sources == {1: "FROM a", 2: "RUN x y", 6: "USER z"}


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        param("FROM a\nRUN x", 2, 2, id="one-line"),
        param("FROM a\n\n# c\nRUN x\n\n", 4, 4, id="comments-are-outside"),
        param("FROM a\nRUN x \\\n\n# c\n y\nUSER z", 2, 5, id="L15-continued"),
        param("FROM a\nRUN <<E\n1\n2\nE\n", 2, 5, id="L15-heredoc"),
    ],
)
def test_instruction_lines(text: str, first: int, last: int) -> None:
    assert parse(text).stages[0].instructions[0].span == Span(first, last)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        param("COPY aa b /d", [Span(2, 2, 6, 2), Span(2, 2, 9, 1)], id="columns"),
        param("  COPY  é b /d", [Span(2, 2, 9, 1), Span(2, 2, 11, 1)], id="indent-and-characters"),
        param(
            "COPY a \\\n   bb \\\n# c\n c /d",
            [Span(2, 2, 6, 1), Span(3, 3, 4, 2), Span(5, 5, 2, 1)],
            id="continued",
        ),
        param("COPY a a a /d", [Span(2, 2, 6, 1), Span(2, 2, 8, 1), Span(2, 2, 10, 1)], id="repeated"),
    ],
)
def test_source_spans(text: str, expected: list[Span]) -> None:
    node = second(text)
    assert isinstance(node, ast.Copy)
    assert list(node.source_spans) == expected


def test_spans_of_continued_words_end_with_their_line() -> None:
    """A word split by a continuation is shown on its first line, not past the end of it."""
    assert fault(HEAD + "RN\\\nU x").span == Span(2, 2, 1, 2)
    node = second('ENV a=1 b="x \\\n y z"')
    assert isinstance(node, ast.Env)
    assert [pair.span for pair in node.pairs] == [Span(2, 2, 5, 3), Span(2, 2, 9, 5)]


def test_trigger_spans_count_from_the_line() -> None:
    node = second("ONBUILD \\\n  COPY a /d")
    assert isinstance(node, ast.Onbuild) and isinstance(node.trigger, ast.Copy)
    assert node.trigger.source_spans == (Span(3, 3, 8, 1),)
