"""Expansion of words: quotes, escapes, the twelve operators, and their cost."""

from __future__ import annotations

import time

import pytest
from pytest import param

from grammar.errors import ExpansionError
from grammar.expansion import expand_word, expand_words, replace_pattern, strip_prefix, strip_suffix

ENV = {
    "a": "abc",
    "empty": "",
    "path": "/usr/lib/lib.tar.gz",
    "star": "x*y?z",
    "two": "one  two",
    "AB": "upper",
    "long_name1": "long",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        param("", "", id="nothing"),
        param("$a", "abc", id="bare"),
        param("${a}", "abc", id="braces"),
        param("x$a.y", "xabc.y", id="name-ends-at-dot"),
        param("$a_x|${a}_x", "|abc_x", id="name-takes-underscore"),
        param("$long_name1-", "long-", id="name-takes-digits"),
        param("$no|${no}", "|", id="unset-is-empty"),
        param("$ab|$AB", "|upper", id="case-matters"),
        param("$.|$/|$ x|$", "$.|$/|$ x|$", id="dollar-before-no-name"),
        param("$$a", "a", id="dollar-dollar-is-special"),
        param("$@$*$#$-$!$0|", "|", id="special-are-empty"),
        param("$2x$10y", "xy", id="positional-are-empty"),
        param("\\$a", "$a", id="escaped-dollar"),
        param("\\\\$a", "\\abc", id="escaped-escape"),
        param("\\x\\ \\'", "x '", id="unquoted-escape-is-removed"),
        param("x\\", "x", id="escape-at-the-end"),
        param("'$a \\' x", "$a \\ x", id="single-quotes-literal"),
        param('"$a ${a}"', "abc abc", id="double-quotes-expand"),
        param('"\\$a \\" \\\\ \\x \\\'"', "$a \" \\ \\x \\'", id="double-quotes-escape-three"),
        param('"it\'s" \'a "b"\'', 'it\'s a "b"', id="quotes-inside-others"),
        param("a''b\"\"c", "abc", id="empty-quotes"),
        param("é${a}ü", "éabcü", id="not-ASCII"),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert expand_word(text, ENV) == expected


@pytest.mark.parametrize(
    ("operator", "unset", "empty", "full"),
    [
        param(":-", "w", "w", "abc", id="colon-default"),
        param("-", "w", "", "abc", id="default"),
        param(":+", "", "", "w", id="colon-alternate"),
        param("+", "", "w", "w", id="alternate"),
        param(":?", None, None, "abc", id="colon-required"),
        param("?", None, "", "abc", id="required"),
    ],
)
def test_operators_by_presence(operator: str, unset: str | None, empty: str | None, full: str) -> None:
    """T47: unset and empty differ without the colon only."""
    for name, expected in (("no", unset), ("empty", empty), ("a", full)):
        text = f"${{{name}{operator}w}}"
        if expected is not None:
            assert expand_word(text, ENV) == expected
            continue
        with pytest.raises(ExpansionError, match=f"{name}: w"):
            expand_word(text, ENV)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        param("${no:-${no:-${a}}}", "abc", id="nested"),
        param("${no:-'}'}", "}", id="quoted-brace"),
        param("${no:-\\}}", "}", id="escaped-brace"),
        param('${no:-"$a x"}', "abc x", id="quoted-operand"),
        param('"${no:-b c}"', "b c", id="within-quotes"),
        param("${no:-}|${no-}", "|", id="empty-operand"),
        param("${a:+[$a]}", "[abc]", id="alternate-expands"),
        param("${no:--}|${no:-:-}", "-|:-", id="operand-of-operators"),
        param("${path#/}", "usr/lib/lib.tar.gz", id="prefix-literal"),
        param("${path#*/}", "usr/lib/lib.tar.gz", id="prefix-shortest"),
        param("${path##*/}", "lib.tar.gz", id="prefix-longest"),
        param("${path%.*}", "/usr/lib/lib.tar", id="suffix-shortest"),
        param("${path%%.*}", "/usr/lib/lib", id="suffix-longest"),
        param("${path%z}|${path#x}", "/usr/lib/lib.tar.g|/usr/lib/lib.tar.gz", id="no-match-keeps"),
        param("${path#????}", "/lib/lib.tar.gz", id="question-marks"),
        param("${path##*}|${path%%*}", "|", id="star-takes-all"),
        param("${path#*}", "/usr/lib/lib.tar.gz", id="shortest-star-takes-nothing"),
        param("${path/lib/X}", "/usr/X/lib.tar.gz", id="replace-first"),
        param("${path//lib/X}", "/usr/X/X.tar.gz", id="replace-all"),
        param("${path/l*b/X}", "/usr/X.tar.gz", id="replace-longest"),
        param("${path//\\//:}", ":usr:lib:lib.tar.gz", id="escaped-slash"),
        param("${path//lib/}", "/usr//.tar.gz", id="replace-with-nothing"),
        param("${a/b/$AB}", "aupperc", id="replacement-expands"),
        param("${a/$a/x}", "x", id="pattern-expands"),
        param("${star#x\\*}", "y?z", id="escaped-star"),
        param("${star/\\?/!}", "x*y!z", id="escaped-question-mark"),
        param("${a#[a]}", "abc", id="brackets-are-literal"),
        param("${a/./x}|${a#^a}", "abc|abc", id="no-regular-expressions"),
        param("${no#x}${no%x}${no/x/y}", "", id="unset-value"),
        param("${empty/*/y}${empty//*/z}${empty##*}", "yz", id="empty-value"),
        param("${a///-}", "-a-b-c-", id="empty-pattern"),
    ],
)
def test_operators(text: str, expected: str) -> None:
    assert expand_word(text, ENV) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        param("${}", "bad substitution", id="empty"),
        param("${:-a}", "bad substitution", id="no-name"),
        param("${{a}}", "bad substitution", id="double-brace"),
        param("${a:=w}", r"unsupported modifier \(:=\) in substitution", id="assign"),
        param("${a:#w}", r"unsupported modifier \(:#\)", id="colon-prefix"),
        param("${a:%w}", r"unsupported modifier \(:%\)", id="colon-suffix"),
        param("${a^}", r"unsupported modifier \(\^\)", id="case"),
        param("${a.b}", r"unsupported modifier \(\.\)", id="dot"),
        param("${a:1:2}", r"unsupported modifier \(:1\)", id="slice"),
        param("${", "missing '}'", id="open-nothing"),
        param("${a:-b", "missing '}'", id="open-operand"),
        param("${a/b", "missing '/'", id="open-pattern"),
        param("'a", "looking for matching single-quote", id="open-single"),
        param('"a', "looking for matching double-quote", id="open-double"),
        param("${no:?}", "not allowed to be unset", id="T47-default-message-unset"),
        param("${empty:?}", "not allowed to be empty", id="T47-default-message-empty"),
        param("${no?say $a}", "no: say abc", id="T47-message-expands"),
        param("${a#\\x}", "invalid escape", id="pattern-escape"),
    ],
)
def test_faults(text: str, message: str) -> None:
    with pytest.raises(ExpansionError, match=message):
        expand_word(text, ENV)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        param("`$a \\$a", "$a \\abc", id="grave-escapes-backslash-does-not"),
        param('"`" \\ `$a"', '" \\ $a', id="in-double-quotes"),
        param("c:\\dir\\$a", "c:\\dir\\abc", id="windows-path"),
    ],
)
def test_grave_escape(text: str, expected: str) -> None:
    assert expand_word(text, ENV, "`") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        param("a  b\tc", ["a", "b", "c"], id="blanks"),
        param("$two", ["one", "two"], id="T51-value-is-split"),
        param('"$two"', ["one  two"], id="quoted-value-is-not"),
        param("x$two'y z'", ["xone", "twoy z"], id="joined"),
        param("a\\ b", ["a b"], id="escaped-blank"),
        param("$no $empty", [], id="nothing"),
        param("${no:-p q}", ["p", "q"], id="default-is-split"),
    ],
)
def test_splitting(text: str, expected: list[str]) -> None:
    assert expand_words(text, ENV) == expected


def test_missing_names_are_collected() -> None:
    missing: set[str] = set()
    expand_word("$a $x ${y} ${z:-1} '$q' $empty", ENV, missing=missing)
    assert missing == {"x", "y"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        param('"$a" x', '"abc" x', id="double-quotes-kept"),
        param("\\$a \\\\", "$a \\", id="escapes-taken"),
        param("it's $a", "it's abc", id="lone-apostrophe"),
        param("'$a'", "'abc'", id="single-quotes-do-not-protect"),
        param('5" $a', '5" abc', id="lone-double-quote"),
    ],
)
def test_heredoc_bodies(text: str, expected: str) -> None:
    """Quotes mean nothing in a COPY here-document: they are text."""
    assert expand_word(text, ENV, raw_quotes=True) == expected


# -- cost ----------------------------------------------------------------------------------


def refused_or_done(text: str, env: dict[str, str]) -> None:
    """Either answer will do, if it comes soon."""
    start = time.process_time()
    try:
        expand_word(text, env)
    except ExpansionError:
        pass
    assert time.process_time() - start < 15


@pytest.mark.parametrize(
    "text",
    [
        param("${v##" + "*a" * 200 + "b}", id="prefix-stars"),
        param("${v%%b" + "a*" * 200 + "}", id="suffix-stars"),
        param("${v//" + "*a" * 20 + "b/x}", id="replace-stars"),
        param("${v##" + "?" * 3000 + "*b}", id="question-marks"),
        param("${v:-" * 5000, id="open-nesting"),
        param("${n:-" * 5000 + "}" * 5000, id="closed-nesting"),
        param("${v:+$v}" * 5000, id="growth"),
        param("$" * 100_000, id="dollars"),
        param("'" * 100_000, id="quotes"),
        param("\\" * 100_000, id="escapes"),
    ],
)
@pytest.mark.no_cover
def test_hostile_words_end_soon(text: str) -> None:
    refused_or_done(text, {"v": "a" * 3000})


def test_result_is_bounded() -> None:
    with pytest.raises(ExpansionError, match="more than"):
        expand_word("$v" * 2000, {"v": "x" * 1000})


def test_patterns_stay_linear() -> None:
    """Stars that never match: twenty times backtracking would never end."""
    value, pattern = "a" * 20_000, "*a" * 20 + "b"
    assert strip_prefix(value, pattern, True) == value
    assert strip_suffix(value, pattern[::-1], True) == value


def test_long_values_are_replaced() -> None:
    """A list of a few thousand names is ordinary text."""
    assert replace_pattern("a:" * 10_000, ":", " ", True) == "a " * 10_000
