"""What is refused, how the error shows it, and hostile text."""

from __future__ import annotations

import time

import pytest
from parsing import HEAD, command, fault
from pytest import param

from grammar import ast
from grammar.errors import DockerfileError, excerpt
from grammar.parse import parse, parse_instruction
from grammar.span import Span

# -- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message", "span"),
    [
        param("", "file with no instructions", None, id="L10-empty"),
        param("# a\n\n # b\n", "file with no instructions", None, id="L10-comments"),
        param("ARG a", "dockerfile contains no stages to build", None, id="T68-no-FROM"),
        param("RUN x", "no build stage in current context", Span(1, 1), id="before-FROM"),
        param(HEAD + "\nRNU x", "unknown instruction: RNU (did you mean RUN?)", Span(3, 3, 1, 3), id="L13"),
        param(HEAD + "QQQQ x", "unknown instruction: QQQQ", Span(2, 2, 1, 4), id="L13-no-guess"),
        param(HEAD + "  RUN\u00a0x y", "unknown instruction: RUN\u00a0x", None, id="L12-NBSP"),
        param("FROM", "FROM requires either one or three arguments", Span(1, 1, 1, 4), id="FROM"),
        param("FROM a b", "FROM requires either one or three arguments", Span(1, 1, 1, 4), id="FROM-2"),
        param("FROM a AZ b", "FROM requires either one or three", Span(1, 1, 1, 4), id="FROM-AZ"),
        param(
            "FROM a AS 1b",
            "name can't start with a number or contain symbols",
            Span(1, 1, 11, 2),
            id="stage-1",
        ),
        param("FROM a AS b/c", "invalid name for build stage", Span(1, 1, 11, 3), id="stage-name-symbol"),
        param(HEAD + "ENV", "ENV requires at least one argument", Span(2, 2, 1, 3), id="ENV"),
        param(HEAD + "ENV a", "ENV must have two arguments", Span(2, 2, 5, 1), id="ENV-no-value"),
        param(HEAD + "LABEL =a", "LABEL names can not be blank", Span(2, 2, 7, 2), id="LABEL-blank"),
        param(HEAD + "ARG =a", "ARG names can not be blank", Span(2, 2, 5, 2), id="ARG-blank"),
        param(HEAD + "ARG", "ARG requires at least one argument", Span(2, 2, 1, 3), id="ARG"),
        param(HEAD + "ENV a=b \\\n  c", 'can\'t find = in "c"', Span(3, 3, 3, 1), id="ENV-word"),
        param(
            HEAD + "COPY a",
            "only one was provided. Destination could not be determined",
            Span(2, 2, 1, 4),
            id="COPY-one",
        ),
        param(HEAD + "ADD", "ADD requires at least two arguments", Span(2, 2, 1, 3), id="ADD-none"),
        param(HEAD + 'COPY ["a"]', "COPY requires at least two arguments", None, id="COPY-json-one"),
        param(
            HEAD + "COPY a <<E\nE", "cannot accept a heredoc as a destination", Span(2, 2, 8, 3), id="dest"
        ),
        param(HEAD + "RUN <<EOF\nx\n EOF", "unterminated heredoc", Span(2, 2), id="heredoc-open"),
        param(HEAD + "WORKDIR", "WORKDIR requires exactly one argument", Span(2, 2, 1, 7), id="WORKDIR"),
        param(HEAD + "USER ", "USER requires exactly one argument", Span(2, 2, 1, 4), id="USER"),
        param(HEAD + "EXPOSE", "EXPOSE requires at least one argument", Span(2, 2, 1, 6), id="EXPOSE"),
        param(HEAD + "VOLUME []", "VOLUME requires at least one argument", None, id="T53-none"),
        param(HEAD + 'VOLUME ["/a", ""]', "can not be an empty string", Span(2, 2, 8, 10), id="T53-empty"),
        param(HEAD + "SHELL sh -c", "SHELL requires the arguments to be in JSON form", None, id="SHELL"),
        param(HEAD + "SHELL []", "SHELL requires at least one argument", None, id="SHELL-none"),
        param(HEAD + "HEALTHCHECK", "HEALTHCHECK requires at least one argument", None, id="HEALTH"),
        param(HEAD + "HEALTHCHECK NONE x", "NONE takes no arguments", Span(2, 2, 18, 1), id="NONE"),
        param(HEAD + "HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD", None, id="HEALTH-CMD"),
        param(HEAD + "HEALTHCHECK x", 'Unknown type "X" in HEALTHCHECK', Span(2, 2, 13, 1), id="HEALTH-x"),
        param(HEAD + "ONBUILD ONBUILD RUN x", "`ONBUILD ONBUILD` isn't allowed", None, id="OO"),
        param(HEAD + "ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger", None, id="OFROM"),
        param(HEAD + "ONBUILD maintainer x", "MAINTAINER isn't allowed as an ONBUILD", None, id="OMAINT"),
        param(
            HEAD + "COPY \\\n  --chwon=a b c",
            "unknown flag: --chwon (did you mean chown?)",
            Span(3, 3, 3, 9),
            id="unknown",
        ),
        param(
            HEAD + "COPY --link --link a b", "Duplicate flag specified: link", Span(2, 2, 13, 6), id="double"
        ),
        param(HEAD + "COPY --chown a b", "Missing a value on flag: chown", Span(2, 2, 6, 7), id="value"),
        param(HEAD + "COPY --link=1 a b", "boolean value for flag link", Span(2, 2, 6, 8), id="flag-bool"),
        param(HEAD + "USER --x u", "unknown flag: --x", Span(2, 2, 6, 3), id="flag-on-flagless"),
        param("# escape=x\nFROM a", "invalid escape token 'x' does not match ` or \\", None, id="escape"),
        param("# escape=`\n# escape=`\nFROM a", "only one escape parser directive", None, id="twice"),
        param("# syntax=evil/x:1\nFROM a", "syntax 'evil/x:1' is not supported", None, id="syntax"),
    ],
)
def test_faults(text: str, message: str, span: Span | None) -> None:
    error = fault(text)
    assert message in error.message
    assert str(error) == error.message
    if span is not None:
        assert error.span == span


def test_directive_faults_name_their_line() -> None:
    assert fault("# syntax=docker/dockerfile:1\n# escape=x\nFROM a").span == Span(2, 2)
    assert fault("# escape=`\n# syntax=evil/x:1\nFROM a").span == Span(2, 2)


def test_instruction_outside_a_file() -> None:
    """A trigger's fault stands where the caller says."""
    assert parse_instruction("USER x", Span(7, 7)) == ast.User(Span(1, 1), "x")
    with pytest.raises(DockerfileError, match="unknown instruction: RNU") as caught:
        parse_instruction("RNU x", Span(7, 7))
    assert caught.value.span == Span(7, 7)
    for text in ("", "# only a comment", "USER a\nUSER b"):
        with pytest.raises(DockerfileError, match="not one instruction"):
            parse_instruction(text, Span(7, 7))


def test_instruction_outside_a_file_with_its_escape() -> None:
    node = parse_instruction("RUN a `\n b \\", Span(1, 1), "`")
    assert isinstance(node, ast.Run)
    assert node.command == ast.ShellForm("a  b \\")


@pytest.mark.parametrize(
    ("text", "span", "expected"),
    [
        param(
            "a\nb\nc d\ne\nf\ng",
            Span(3, 3, 3, 1),
            "f:3\n 1 |     a\n 2 |     b\n 3 | >>> c d\n   |       ^\n 4 |     e\n 5 |     f",
            id="caret",
        ),
        param("  a b\nc", Span(1, 2), "f:1\n 1 | >>>   a b\n   |       ^^^\n 2 | >>> c", id="whole-lines"),
        param("\ta b", Span(1, 1, 4, 1), "f:1\n 1 | >>> \ta b\n   |     \t  ^", id="tabs-line-up"),
        param("a", Span(1, 1, 1, 3), "f:1\n 1 | >>> a\n   |     ^^^", id="width"),
        param("a\x0cb\nc", Span(2, 2), "f:2\n 1 |     a\x0cb\n 2 | >>> c\n   |     ^", id="form-feed"),
        param("a\x85\u2028b\nc", Span(2, 2), "f:2\n 1 |     a\x85\u2028b\n 2 | >>> c\n   |     ^", id="NEL"),
        param("a\r\nb", Span(2, 2), "f:2\n 1 |     a\n 2 | >>> b\n   |     ^", id="CRLF"),
    ],
)
def test_excerpt(text: str, span: Span, expected: str) -> None:
    """Lines are those the parser counts: a line feed ends one, nothing else does."""
    assert excerpt("f", text, span) == expected


# -- hostile text --------------------------------------------------------------------------

LIMIT = 65535


def test_longest_line() -> None:
    """L9: bytes count, not characters."""
    assert command("RUN " + "x" * (LIMIT - 4)) == ast.ShellForm("x" * (LIMIT - 4))
    for text in ("RUN " + "x" * (LIMIT - 3), "RUN " + "é" * (LIMIT // 2)):
        error = fault(f"{HEAD}{text}\n")
        assert error.message == f"dockerfile line greater than max allowed size of {LIMIT}"
        assert error.span == Span(2, 2)


@pytest.mark.parametrize(
    "text",
    [
        param("CMD " + "[" * 60_000, id="deep-array"),
        param("CMD " + "[" * 30_000 + "]" * 30_000, id="deep-closed-array"),
        param("CMD [" + "9" * 60_000 + "]", id="long-number"),
        param("ENV a=" + "'" * 60_001, id="many-quotes"),
        param("ENV " + "a=\\ " * 15_000, id="many-escapes"),
        param("COPY " + "--exclude=a" * 5_000 + " a b", id="long-flag"),
        param("COPY " + "--exclude=a " * 5_000 + "a b", id="many-flags"),
        param("RUN " + "<<A " * 15_000, id="many-heredocs-open"),
        param("\\", id="lone-escape"),
        param("\\\n\\ \n# c\n\n", id="only-escapes"),
        param("RUN x \\\n" + "\\\n" * 50_000, id="many-continuations"),
        param("ONBUILD " * 8_000, id="deep-onbuild"),
        param("RUN x\x00y\nENV a=\x00 \x00=b\nCOPY \x00 /\x00", id="NUL"),
        param("RUN \udcff\udc80\nENV a=\udcff\n\udcff x", id="not-UTF-8"),
        param("\x00" * 60_000, id="only-NUL"),
        param("COPY " + "a " * 30_000 + "/d", id="many-sources"),
        param("USER a\n" * 10_000, id="many-instructions"),
    ],
)
def test_hostile_text_ends_soon(text: str) -> None:
    start = time.process_time()
    try:
        parse(HEAD + text)
    except DockerfileError as error:
        excerpt("f", HEAD + text, error.span or Span(1, 1))
    assert time.process_time() - start < 5
