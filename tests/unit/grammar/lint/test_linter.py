"""Build checks: the rules as values, what a file asks for, and what its syntax decides."""

from __future__ import annotations

import pytest

from grammar.ignore import parse_ignore
from grammar.lint import rules
from grammar.lint.linter import Checks, Linter, describing, parse_checks
from grammar.lint.rules import RULES, Rule
from grammar.lint.syntax import check_file, check_stage
from grammar.parse import parse
from grammar.span import Span


def found(text: str, checks: str = "experimental=all") -> list[tuple[str, int]]:
    file = parse(text)
    linter = Linter(file, parse_checks(checks))
    check_file(file, linter)
    for stage in file.stages:
        check_stage(stage, linter)
    return [(finding.rule.name, finding.span.first) for finding in linter.findings]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FROM a\nRUN b\n", []),
        ("FROM a AS Big\n", [("StageNameCasing", 1)]),
        ("FROM a as b\n", [("FromAsCasing", 1)]),
        ("from a as b\n", []),
        ("FROM a\nRUN b \\\n\n  c\n", [("NoEmptyContinuation", 4)]),
        ("FROM a\nrun b\nRUN c\n", [("ConsistentInstructionCasing", 2)]),
        ("FROM a AS b\nFROM c AS b\n", [("DuplicateStageName", 2)]),
        ("FROM a AS scratch\n", [("ReservedStageName", 1)]),
        ("FROM a\nMAINTAINER me\n", [("MaintainerDeprecated", 2)]),
        ('FROM a\nCMD ["a"]\nCMD ["b"]\n', [("MultipleInstructionsDisallowed", 2)]),
        ("FROM a\nENV b c\n", [("LegacyKeyValueFormat", 2)]),
        ("FROM a\nARG API_KEY\n", [("SecretsUsedInArgOrEnv", 2)]),
        ("FROM a\nENV PUBLIC_KEY=1\n", []),
        ("FROM a\nENV b=1\nARG b=2\n", [("ArgHidesEnv", 3)]),
        ("FROM a\nCOPY x y z\n", [("CopySeveralToOneFile", 2)]),
        ("FROM a\nCOPY x y z/\nCOPY x y .\n", []),
        ("# wrong comment\nFROM a AS b\n", [("InvalidDefinitionDescription", 1 + 1)]),
        ("# b is for building\nFROM a AS b\n", []),
    ],
)
def test_syntax(text: str, expected: list[tuple[str, int]]) -> None:
    assert found(text) == expected


def test_what_a_file_asks_for() -> None:
    text = "FROM a AS Big\nMAINTAINER me\n"
    assert found(text, "skip=StageNameCasing") == [("MaintainerDeprecated", 2)]
    assert found(text, "skip=all") == []
    assert found("# x\nFROM a AS b\n", "") == []  # an experimental rule must be asked for
    skipping = "FROM a AS b\n# check=skip=MaintainerDeprecated\nMAINTAINER me\n"
    assert found(skipping) == []


@pytest.mark.parametrize(
    ("text", "checks"),
    [
        ("", Checks()),
        ("skip=a, b;error=TRUE", Checks(frozenset(("a", "b")), frozenset(), True)),
        ("skip=all", Checks(frozenset(("all",)))),
        ("experimental=all,b", Checks(frozenset(), frozenset("b"))),
    ],
)
def test_check_directive(text: str, checks: Checks) -> None:
    parsed = parse_checks(text)
    assert (parsed.skip - {""}, parsed.experimental - {""}, parsed.error) == (
        checks.skip,
        checks.experimental,
        checks.error,
    )


@pytest.mark.parametrize("text", ["skip", "unknown=1", "error=maybe"])
def test_check_directive_refused(text: str) -> None:
    with pytest.raises(ValueError, match="check option"):
        parse_checks(text)


@pytest.mark.parametrize(
    ("ignore", "source", "warned"),
    [
        ("a", "a", True),
        ("a", "a/b", True),
        ("a", "b", False),
        ("a\n!a/b", "a", False),  # only the files would tell
        ("*\n.*", ".", True),
        ("*", ".", True),
        ("a", ".", False),
    ],
)
def test_ignored_sources(ignore: str, source: str, warned: bool) -> None:
    linter = Linter(parse("FROM a\n"), Checks(), parse_ignore(ignore))
    linter.copied("COPY", source, Span(1, 1))
    assert bool(linter.findings) is warned


def test_guesses_are_bounded() -> None:
    linter = Linter(parse("FROM a\n"), Checks())
    assert linter.guess("HMOE", ["HOME"], "$") == " (did you mean $HOME?)"
    for number in range(60):
        linter.guess(f"name{number}", ["name"])
    assert linter.guess("HMOE2", ["HOME2"]) == ""
    linter.undefined({"HMOE"}, ["HOME"], Span(1, 1))
    assert linter.findings[0].message.endswith("'$HMOE' (did you mean $HOME?)")


def test_descriptions() -> None:
    file = parse("# b builds it\nFROM a AS b\n")
    assert describing(file, file.stages[0].start.span, "b") == "builds it"
    assert describing(file, file.stages[0].start.span, "c") == ""


def test_every_constant_is_in_the_table() -> None:
    constants = {item.name for item in vars(rules).values() if isinstance(item, Rule)}
    assert constants == RULES.keys()
    assert len({rule.page for rule in RULES.values()}) == len(RULES)
    assert RULES["JSONArgsRecommended"].page == "json-args-recommended"
