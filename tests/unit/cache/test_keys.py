"""Keys are pinned byte for byte: a change here must be meant, and raises KEY_VERSION."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cache.keys import derive

GOLDEN = sorted(Path(__file__).with_name("keys").glob("*.json"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    case = json.loads(path.read_text())
    assert derive(case["kind"], case["identity"], case["inputs"]) == case["key"]


def test_every_part_counts() -> None:
    keys = {
        derive("run", {"argv": ["a"]}),
        derive("copy", {"argv": ["a"]}),
        derive("run", {"argv": ["a", ""]}),
        derive("run", {"argv": ["b"]}),
        derive("run", {"cwd": ["a"]}),
        derive("run", {"argv": ["a"]}, ["x"]),
        derive("run", {"argv": ["a"]}, ["x", "y"]),
        derive("run", {"argv": ["a"]}, ["y", "x"]),
        derive("run", {"argv": ["a"]}, ["xy"]),
        derive("run", {"argv": ["\udcff"]}),
        derive("run", {"argv": ["\\udcff"]}),
    }
    assert len(keys) == 11


def test_order_of_writing_does_not() -> None:
    assert derive("run", {"a": 1, "b": 2}) == derive("run", {"b": 2, "a": 1})
