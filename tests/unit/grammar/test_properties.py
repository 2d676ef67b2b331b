"""What holds for any text: no surprise exceptions, spans inside the text, an oracle for ignore."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from grammar import structs
from grammar.errors import DockerfileError, ExpansionError, IgnoreError, ReferenceError_, excerpt
from grammar.expansion import expand_word, expand_words
from grammar.ignore import State, parse_ignore
from grammar.parse import KEYWORDS, parse
from grammar.reference import parse_reference
from grammar.span import Span

PIECES = [
    *KEYWORDS,
    *(" ", "  ", "\t", "\n", "\n", "\r\n", "\\\n", "`\n", "\\", "`", "# c", "# escape=`\n", "\ufeff", "\x00"),
    *("<<E", "<<-'E' ", "E\n", "\nE\n", "3<<E", "[", "]", '["a"', ', "b"]', "[1]", '"', "'", "$a", "${a:-b}"),
    *(
        "--from=x ",
        "--link ",
        "-- ",
        "--",
        "a=b ",
        "a ",
        "=",
        "NONE",
        "AS b",
        "/d",
        "é",
        "\u2028",
        "\x0c",
        "\udcff",
    ),
]
ANY_TEXT = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=25).map("".join)
STAGE_TEXT = ANY_TEXT.map(lambda text: f"FROM a\n{text}")
WORD_TEXT = st.lists(
    st.sampled_from([*"$\\'\"{}:-+?#%/*abAB_1` ", "${", "${a", "${b:-", "}", "//", "##"]), max_size=20
).map("".join)

bounded = settings(max_examples=100, deadline=None, derandomize=True)


def spans(value: object) -> Iterator[Span]:
    """Every span of a node, however deep."""
    if isinstance(value, Span):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from spans(item)
    elif structs.fields(value) and not isinstance(value, type):
        for field in structs.fields(value):
            yield from spans(getattr(value, field))


def within(span: Span, text: str) -> bool:
    lines = text.split("\n")
    if not 1 <= span.first <= span.last <= len(lines):
        return False
    return not span.column or 1 <= span.column <= span.column - 1 + span.width <= len(lines[span.first - 1])


@bounded
@given(ANY_TEXT | STAGE_TEXT)
def test_parse_fails_only_with_its_own_error(text: str) -> None:
    try:
        parse(text)
    except DockerfileError as error:
        if error.span is not None:
            assert within(error.span, text)
            assert excerpt("f", text, error.span)


@bounded
@given(STAGE_TEXT)
def test_spans_lie_within_the_text(text: str) -> None:
    try:
        made = parse(text)
    except DockerfileError:
        return
    found = list(spans(made.stages))
    assert found and all(within(span, text) for span in found)
    firsts = [node.span.first for stage in made.stages for node in (stage.start, *stage.instructions)]
    assert firsts == sorted(firsts) == sorted(made.sources)[-len(firsts) :]


@bounded
@given(st.lists(st.sampled_from([f"{name} x" for name in ("RUN", "USER", "CMD")]), min_size=1, max_size=5))
def test_line_ends_do_not_matter(lines: list[str]) -> None:
    texts = [end.join(["FROM a", *lines, ""]) for end in ("\n", "\r\n", "\n\n# c\n")]
    kinds = [[type(node) for node in parse(text).stages[0].instructions] for text in texts]
    assert kinds[0] == kinds[1] == kinds[2]


@bounded
@given(st.text(alphabet=st.characters(exclude_characters="\\$'\"", exclude_categories=["Cs"])))
def test_plain_words_are_themselves(text: str) -> None:
    assert expand_word(text, {}) == text


@bounded
@given(WORD_TEXT, st.dictionaries(st.sampled_from(["a", "b", "ab", "A"]), st.text("a /b*", max_size=8)))
def test_expansion_fails_only_with_its_own_error(text: str, env: dict[str, str]) -> None:
    try:
        whole = expand_word(text, env)
    except ExpansionError:
        return
    words = expand_words(text, env)
    assert "".join("".join(words).split()) == "".join(whole.split())


@bounded
@given(st.text(max_size=30) | st.text("aA0./:@-_", max_size=30))
def test_references_survive_printing(text: str) -> None:
    try:
        found = parse_reference(text)
    except ReferenceError_:
        return
    assert parse_reference(str(found)) == found == parse_reference(found.familiar)


@bounded
@given(st.text("ab*?[]^-\\!/# \n\t", max_size=30), st.text("ab/", min_size=1, max_size=8))
def test_ignore_fails_only_with_its_own_error(text: str, path: str) -> None:
    try:
        parse_ignore(text).match(path, None)
    except IgnoreError as error:
        assert 1 <= error.line <= text.count("\n") + 1


def naive(patterns: list[tuple[bool, str]], path: str) -> bool:
    """From the top down: what matched a parent matches, of others only what changes the verdict counts."""
    parts = path.split("/")
    matched = [False] * len(patterns)
    verdict = False
    for depth in range(len(parts)):
        verdict = False
        for number, (negated, pattern) in enumerate(patterns):
            if not matched[number] and negated == verdict:
                matched[number] = naive_match(pattern.split("/"), parts[: depth + 1])
            if matched[number]:
                verdict = not negated
    return verdict


def naive_match(pattern: list[str], parts: list[str]) -> bool:
    if not pattern or not parts:
        return not pattern and not parts
    if pattern[0] == "**":
        if len(pattern) == 1:
            return True
        return any(naive_match(pattern[1:], parts[depth:]) for depth in range(len(parts) + 1))
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and naive_match(pattern[1:], parts[1:])


NAMES = st.sampled_from(["a", "b", "ab", "c"])
PATTERNS = st.lists(
    st.tuples(
        st.booleans(),
        st.lists(NAMES | st.sampled_from(["*", "**", "a*", "?", "*b"]), min_size=1, max_size=4).map("/".join),
    ),
    max_size=6,
)


@settings(bounded, max_examples=300)
@given(PATTERNS, st.lists(NAMES, min_size=1, max_size=5))
def test_ignore_agrees_with_the_naive_rule(patterns: list[tuple[bool, str]], parts: list[str]) -> None:
    ignore = parse_ignore("\n".join(("!" if negated else "") + text for negated, text in patterns))
    state: State | None = None
    for depth in range(len(parts)):
        path = "/".join(parts[: depth + 1])
        above = state
        state = ignore.match(path, above)
        assert state.excluded == naive(patterns, path)
        if above is not None and above.excluded and not state.excluded:
            assert ignore.may_reinclude("/".join(parts[:depth]))
    assert bool(ignore.why("/".join(parts))) == naive(patterns, "/".join(parts))
