"""Suggestions for misspelt words, at a bounded cost."""

from __future__ import annotations

import time

import pytest

from grammar.suggest import closest, suggestion


@pytest.mark.parametrize(
    ("word", "names", "found"),
    [
        ("WROKDIR", ["WORKDIR", "USER"], "WORKDIR"),
        ("xyz", ["WORKDIR", "USER"], ""),
        ("", ["a"], ""),
        ("a", [], ""),
        ("x" * 101, ["x" * 101], ""),
    ],
)
def test_closest(word: str, names: list[str], found: str) -> None:
    assert closest(word, names) == found


def test_suggestion() -> None:
    assert suggestion("pltform", ["platform"]) == " (did you mean platform?)"
    assert suggestion("HMOE", ["HOME"], mark="$") == " (did you mean $HOME?)"
    assert suggestion("zzz", ["HOME"]) == ""
    assert suggestion("HMOE", ["HOME"], cutoff=0.99) == ""


def test_many_names_cost_little() -> None:
    started = time.process_time()
    closest("name50", (f"name{number}" for number in range(100_000)))
    assert time.process_time() - started < 1
