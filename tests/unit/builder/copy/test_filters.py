"""Which paths a scan takes: ignore rules, --parents and --exclude."""

from __future__ import annotations

import pytest

from builder.copy.filters import Selector, scan_filter, selector_name
from grammar.errors import IgnoreError
from grammar.ignore import Ignore, parse_ignore

SKIP, LOOK_INSIDE, TAKE = 0, 1, 2
NO_RULES = Ignore([])


def verdicts(ignore: bytes, selector: Selector, paths: str) -> dict[str, int]:
    """Return the verdict of each path; a path that ends in a slash is a directory. Parents come first."""
    rules = scan_filter(parse_ignore(ignore), selector)
    assert rules is not None
    return {path: rules(path.rstrip("/"), path.endswith("/")) for path in paths.split()}


def test_nothing_to_filter() -> None:
    assert scan_filter(NO_RULES, ("", (), ())) is None


def test_ignore_rules() -> None:
    assert verdicts(b"*.o\nbuild\n!build/keep\n", ("", (), ()), "a.o a.c build/ build/keep build/x") == {
        "a.o": SKIP,
        "a.c": TAKE,
        "build/": LOOK_INSIDE,
        "build/keep": TAKE,
        "build/x": SKIP,
    }


def test_an_ignored_directory_without_exceptions_is_skipped() -> None:
    assert verdicts(b"build\n", ("", (), ()), "build/") == {"build/": SKIP}


def test_ignore_rules_count_from_the_context_others_from_the_selected_path() -> None:
    found = verdicts(b"src/a\n", ("src", (), ("b",)), "src/a src/b src/c")
    assert found == {"src/a": SKIP, "src/b": SKIP, "src/c": TAKE}


def test_parents_take_only_what_matches() -> None:
    found = verdicts(b"", ("", ("lib/*.py",), ()), "lib/ lib/a.py lib/a.c other/ other/a.py")
    assert found == {
        "lib/": LOOK_INSIDE,
        "lib/a.py": TAKE,
        "lib/a.c": SKIP,
        "other/": LOOK_INSIDE,
        "other/a.py": SKIP,
    }


def test_a_malformed_pattern() -> None:
    with pytest.raises(IgnoreError):
        scan_filter(NO_RULES, ("", (), ("[",)))


def test_names_of_selectors_differ() -> None:
    selectors: list[Selector] = [("a", (), ()), ("a", ("b",), ()), ("a", (), ("b",)), ("b", (), ())]
    assert len({selector_name(selector) for selector in selectors}) == 4
