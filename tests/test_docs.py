"""What the documents name is there: tests, files, commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests/golden/README.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks/README.md", GOLDEN]


def known_tests() -> set[str]:
    """The names of all tests, and of the files they are in."""
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        found.add(path.name)
        found |= set(re.findall(r"def (test_\w+)", path.read_text()))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_tests_exist(page: Path) -> None:
    known = known_tests()
    for name in re.findall(r"`(test_[\w*]+(?:\.py)?)`", page.read_text()):
        wanted = name.rstrip("*")
        assert any(test == wanted or test.startswith(wanted) for test in known), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"`((?:builder|cache|grammar|tests|docs|benchmarks|samples)/[\w./-]*\w)`", text):
        assert (ROOT / name).exists(), f"{page.name} names {name}"
    for name in re.findall(r"\]\(([\w./-]+\.md)(?:#[\w-]+)?\)", text):
        assert (page.parent / name).exists(), f"{page.name} links to {name}"


def test_listed_golden_folders_exist() -> None:
    names = re.findall(r"^\|.*\| `([\w-]+)` \|$", GOLDEN.read_text(), re.M)
    assert names
    assert len(names) == len(set(names)), "a folder is listed twice"
    assert [name for name in names if not (GOLDEN.parent / name / "Dockerfile").exists()] == []


def test_nothing_is_left_to_fill_in() -> None:
    for page in PAGES:
        assert "@@" not in page.read_text(), page.name
