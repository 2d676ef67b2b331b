"""Flags of instructions: which exist, of which kind, and what is refused."""

from __future__ import annotations

import pytest

from grammar.ast import Flag
from grammar.errors import DockerfileError
from grammar.flags import BOOL, FLAGS, LIST, check_flags
from grammar.span import Span

SPAN = Span(1, 1, 5, 3)


def flag(name: str, value: str | None = None) -> Flag:
    return Flag(name, value, SPAN)


def test_values() -> None:
    given = check_flags("COPY", [flag("from", "a"), flag("link"), flag("exclude", "x"), flag("exclude", "y")])
    assert given.text("from") == "a"
    assert given.text("chown") == ""
    assert given.truth("link") is True
    assert given.truth("parents") is None
    assert given.texts("exclude") == ("x", "y")
    assert given.all("chmod") == ()
    assert check_flags("COPY", [flag("link", "FALSE")]).truth("link") is False


@pytest.mark.parametrize(
    ("keyword", "flags", "message"),
    [
        ("COPY", [flag("form", "a")], r"unknown flag: --form \(did you mean from\?\)"),
        ("ENV", [flag("x", "a")], "unknown flag: --x"),
        ("COPY", [flag("from", "a"), flag("from", "a")], "Duplicate flag specified: from"),
        ("COPY", [flag("from")], "Missing a value on flag: from"),
        ("COPY", [flag("link", "")], "Missing a value on flag: link"),
        ("COPY", [flag("link", "maybe")], "Expecting boolean value for flag link, not: maybe"),
    ],
)
def test_refused(keyword: str, flags: list[Flag], message: str) -> None:
    with pytest.raises(DockerfileError, match=message) as caught:
        check_flags(keyword, flags)
    assert caught.value.span == SPAN


def test_an_instruction_without_flags_says_how_to_quote() -> None:
    with pytest.raises(DockerfileError) as caught:
        check_flags("ENV", [flag("x")])
    assert "takes no flags" in caught.value.hint


@pytest.mark.parametrize("keyword", FLAGS)
def test_every_flag_is_taken(keyword: str) -> None:
    for name, kind in FLAGS[keyword].items():
        given = check_flags(keyword, [flag(name, None if kind == BOOL else "x")] * (2 if kind == LIST else 1))
        assert len(given.all(name)) == (2 if kind == LIST else 1)
