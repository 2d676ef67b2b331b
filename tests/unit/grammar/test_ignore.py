"""Ignore files: how lines are read, what patterns match, who wins, and what it costs."""

from __future__ import annotations

import time

import pytest
from pytest import param

from grammar.errors import GlobError, IgnoreError
from grammar.ignore import Ignore, State, has_glob, match_glob, parse_ignore


def excluded(ignore: Ignore, path: str) -> bool:
    """Ask as a walk does: every parent first."""
    state: State | None = None
    parts = path.split("/")
    for depth in range(len(parts)):
        state = ignore.match("/".join(parts[: depth + 1]), state)
    assert state is not None
    return state.excluded


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        param("a", "a a/b a/b/c", "b x/a ab", id="name-and-children"),
        param("a/b", "a/b a/b/c", "a a/c x/a/b", id="path"),
        param(r"a\/b", "a/b a/b/c", "a b", id="escaped-slash"),
        param("/a", "a a/b", "x/a", id="leading-slash"),
        param("///a", "a", "x/a", id="leading-slashes"),
        param("a/", "a a/b", "x/a", id="trailing-slash"),
        param("./a//b/../c", "a/c", "a/b", id="cleaned"),
        param("../a", "", "a x/a", id="above-the-root"),
        param("a/..", "", "a b", id="only-the-root"),
        param("  a \t", "a", "b", id="blanks-trimmed"),
        param("a\r\nb\r\n", "a b", "c", id="CRLF"),
        param("\ufeffa", "a", "b", id="BOM"),
        param("\ufeff# c\na", "a", "c", id="BOM-before-comment"),
        param("#a\n\n \nb", "b", "a #a", id="comment-and-blank-lines"),
        param(" #a", "#a", "a", id="comment-only-in-column-0"),
        param("\\#a", "#a", "a", id="escaped-comment"),
        param("*", "a a/b .a", "", id="star-everything"),
        param("*.o", "a.o .o a.o/b", "x/a.o a.oo", id="star-stays-in-its-folder"),
        param("*/a", "x/a x/a/b", "a x/y/a", id="star-is-one-component"),
        param("a?", "ab", "a a/b abc", id="question-mark"),
        param("a?b", "axb", "a/b", id="question-mark-is-no-slash"),
        param("[a-c]x", "ax cx", "dx -x", id="class"),
        param("[^a]x", "bx", "ax x", id="negated-class"),
        param("a\\*", "a*", "ab", id="escaped-star"),
        param("a.b+(c)|{d}$", "a.b+(c)|{d}$", "axb+(c)|{d}$", id="no-regular-expressions"),
        param("**", "a a/b", "", id="double-star"),
        param("**/a", "a x/a x/y/a x/a/b", "xa x/ya", id="double-star-first"),
        param("**/*.o", "a.o x/y/a.o", "o x/o", id="double-star-then-star"),
        param("a/**", "a/b a/b/c", "a b", id="double-star-last-needs-something"),
        param("a/**/b", "a/b a/x/b a/x/y/b", "b a/xb x/a/b", id="double-star-between"),
        param("**/**/a/**", "a/b x/a/b", "a x/a", id="double-stars"),
        param("**.o", "a.o x/a.o x/y/b.o", "o x/a.oo", id="double-star-with-text"),
        param("a**b", "ab ax/b ax/y/b", "axb", id="double-star-inside"),
        param("a**", "a ab ab/c a/b", "b x/a", id="double-star-after-text"),
        param("a\n!a", "", "a a/b", id="exception"),
        param("!a\na", "a a/b", "", id="last-match-wins"),
        param("a\n!a/b", "a a/c", "a/b a/b/c", id="exception-below-an-excluded-folder"),
        param("a\n!a/b\na/b/c", "a a/c a/b/c", "a/b a/b/d", id="three-levels"),
        param("*\n!a\n*/x", "b a/x", "a a/y", id="exception-between"),
        param("d\n!d/f\nd", "d", "d/f", id="no-match-where-it-changes-nothing"),
        param("d/e\n!d", "d/e d/e/f", "d d/f", id="exception-of-what-is-not-excluded"),
        param("n\n!n/k\n**/n", "n n/x", "n/k", id="the-same-again"),
        param("*.md\n!R*.md\nREADME-x.md", "a.md README-x.md", "README.md", id="order"),
        param("*\n! a", "b", "a", id="blank-after-the-mark"),
        param("*\n!/a/", "b", "a a/b", id="exception-with-slashes"),
        param("*\n!**/a", "b x/b", "a x/a", id="exception-any-depth"),
        param("!a", "", "a b", id="exception-alone"),
        param("", "", "a", id="empty"),
        param("%20\nü", "%20 ü", "\u0020x u", id="names-are-literal"),
        param("x\\d", "x0 x9 x1/y", "xd x٣", id="digits"),
        param("\\D", "d ü", "1", id="no-digits"),
        param("a\\Sb\na\\tc", "asb", "a\tb a\fb atc", id="no-blanks"),
        param("\\wx\ny\\W", "_x 1x y- yü", "-x üx y_", id="words"),
        param("**\\d", "1 a/1", "d a/d a1", id="digits-after-double-star"),
        param("[\\da-c]\n[^\\w]x", "1 b -x", "d z ax", id="letters-in-a-class"),
        param("\\_\\.\\-", "_.-", "_x-", id="escaped-marks"),
    ],
)
def test_patterns(text: str, yes: str, no: str) -> None:
    ignore = parse_ignore(text)
    assert [path for path in yes.split() if not excluded(ignore, path)] == []
    assert [path for path in no.split(" ") if path and excluded(ignore, path)] == []


def test_bytes_need_not_be_text() -> None:
    ignore = parse_ignore(b"\xef\xbb\xbf\xff*\n")
    assert excluded(ignore, "\udcffx") and not excluded(ignore, "x")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        param("a\n!\n", 2, id="mark-alone"),
        param("!  ", 1, id="mark-and-blanks"),
        param("a\n\n[", 3, id="open-class"),
        param("[]a]", 1, id="empty-class"),
        param("[a-]", 1, id="open-range"),
        param("[-a]", 1, id="range-without-start"),
        param("# c\nx\\", 2, id="escape-at-the-end"),
        param("bin\n\\obj", 2, id="letter-of-no-meaning"),
        param("\\1", 1, id="reference"),
        param("[\\é]", 1, id="letter-in-a-class"),
    ],
)
def test_malformed(text: str, line: int) -> None:
    with pytest.raises(IgnoreError) as caught:
        parse_ignore(text)
    assert caught.value.line == line


@pytest.mark.parametrize(
    ("text", "folder", "expected"),
    [
        param("a\n!a/b/c", "a", True, id="literal-below"),
        param("a\n!a/b/c", "a/b", True, id="literal-further-below"),
        param("a\n!a/b", "a/x", False, id="literal-elsewhere"),
        param("a\n!ab", "a", False, id="literal-same-start"),
        param("a\n!**/x", "a", True, id="any-depth"),
        param("a", "a", False, id="no-exception"),
    ],
)
def test_where_a_walk_must_go(text: str, folder: str, expected: bool) -> None:
    """A folder that is excluded is walked if something in it might come back."""
    assert parse_ignore(text).may_reinclude(folder) is expected


def test_why() -> None:
    ignore = parse_ignore("# c\na\n*.o\n!b.o\na/x")
    assert [ignore.why(path) for path in ("a", "a/x", "a/y/z", "c.o", "b.o", "z")] == [2, 2, 2, 3, 0, 0]


def test_emptiness() -> None:
    assert parse_ignore("# c\n\n").empty
    assert not parse_ignore("a").empty


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        *(("src", "src"), ("", ""), ("*", ""), ("*", "main.c"), ("*.c", "main.c"), ("main*", "main.c")),
        *(("lib*/x", "lib64/x"), ("*a*b*/z", "0a1b2/z"), ("?*?", "ab"), ("v?.*.t*", "v1.02.tar")),
        *(
            ("f[123]", "f2"),
            ("f[0-9]", "f7"),
            ("f[^0-9]", "fx"),
            ("f[!x]", "f!"),
            ("f?", "fé"),
            ("[^é]", "ü"),
        ),
        *(("[\\]]", "]"), ("f[\\-\\^]", "f^"), ("\\*\\?", "*?"), ("\\q", "q"), ("arr[[]0]", "arr[0]")),
    ],
)
def test_glob_matches(pattern: str, path: str) -> None:
    """T7: the whole path, component by component."""
    assert match_glob(pattern, path)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        *(("src", "srv"), ("src", "src/a"), ("*", "src/a"), ("s*", "src/a"), ("s*/b", "src/a/b")),
        *(("s?c", "s/c"), ("s*c", "s/c"), ("**", "s/c"), ("*a*b", "0a1b2"), ("f??", "fé"), ("?", "")),
        *(("f[0-9]", "fx"), ("f[^0-9]", "f7"), ("f[!x]", "fy"), ("f[a\\-c]", "fb"), ("\\*", "x"), ("F", "f")),
    ],
)
def test_glob_does_not_match(pattern: str, path: str) -> None:
    assert not match_glob(pattern, path)


@pytest.mark.parametrize(
    "pattern", ["[", "[^", "f[", "f[xy", "*q[", "[]", "[]x]", "[-]", "[-9]", "[0-]", "[0-4-9]", "f\\"]
)
@pytest.mark.parametrize("path", ["f", "x", "a/b", ""])
def test_malformed_glob(pattern: str, path: str) -> None:
    """Whether or not the path gets as far as the fault."""
    with pytest.raises(GlobError):
        match_glob(pattern, path)


def test_what_counts_as_glob() -> None:
    assert [text for text in ("a", "a*", "?", "[x]", "\\a", "a.b-]") if has_glob(text)] == [
        "a*",
        "?",
        "[x]",
        "\\a",
    ]


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        param("**/" * 500 + "x", "a/" * 500 + "a", id="double-stars"),
        param("/".join(["**", "a"] * 300) + "/x", "a/" * 600 + "a", id="double-stars-between"),
        param("*a" * 300 + "b", "a" * 3000, id="stars-in-a-name"),
        param("[a-z]" * 5000, "a" * 5000 + "A", id="classes"),
        param("a/" * 20_000 + "b", "a/" * 2000 + "a", id="long-path"),
        param("\n".join(["**/x*y"] * 5000), "a/b/c", id="many-patterns"),
    ],
)
def test_hostile_patterns_end_soon(pattern: str, path: str) -> None:
    start = time.process_time()
    assert not parse_ignore(pattern).match(path, None).excluded
    assert time.process_time() - start < 5


@pytest.mark.no_cover
def test_number_of_patterns_is_bounded() -> None:
    with pytest.raises(IgnoreError, match="more than 100000 patterns") as caught:
        parse_ignore("a\n" * 100_001)
    assert caught.value.line == 100_001
