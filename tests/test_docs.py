"""What the documents name is there: tests, files, commands."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests/golden/README.md"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "benchmarks/README.md",
    GOLDEN,
]
REFERENCE = ROOT / "docs/reference"
# T12, L5, S3, RT-07; in the names of tests RT_07.
CITED = re.compile(r"(?<![\w.$/-])(T\d{1,3}|[LS]\d{1,2}|(?:RT|UNP|SRC|PAR|REG|SEC|STO)[-_]\d{2})(?![\w.=])")
NAMED = re.compile(r"def test_((?:[A-Z]+_?\d+_)+)")
SOURCES = ("*.py", "*.lark", "*.tbl", "*.md", "*.toml")


def cited(path: Path) -> set[str]:
    """Return the identifiers of docs/reference that *path* cites."""
    text = path.read_text()
    found = set(CITED.findall(text))
    for name in NAMED.findall(text):
        found |= set(re.findall(r"[A-Z]+_?\d+", name))
    return {name.replace("_", "-") for name in found}


@cache
def known_tests() -> set[str]:
    """The names of all tests, and of the files they are in."""
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        found.add(path.name)
        found |= set(re.findall(r"def (test_\w+)", path.read_text()))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_tests_exist(page: Path) -> None:
    known = known_tests()
    for name in re.findall(r"`(test_[\w*]+(?:\.py)?)`", page.read_text()):
        wanted = name.rstrip("*")
        assert any(test == wanted or test.startswith(wanted) for test in known), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
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


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs/decisions").glob("[a-z]*.md")), ids=lambda page: page.name
)
def test_decisions_are_records(page: Path) -> None:
    """Each has a title, a date, and says its context, the decision and its consequences, in this order."""
    for record in page.read_text().split("\n## ")[1:]:
        title, _, text = record.partition("\n")
        assert re.fullmatch(
            r"\n\d{4}-\d\d-\d\d\n\n\*\*Context\.\*\* .+\n\n\*\*Decision\.\*\* .+\n\n\*\*Consequences\.\*\* .+",
            text,
            re.DOTALL,
        ), title


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "STYLE.md"], ids=lambda page: page.name
)
def test_words_that_the_style_page_replaces(page: Path) -> None:
    """Of docs/STYLE.md, what a search can find."""
    avoided = r"\b(?:folders?|besides?|rests|who (?:builds|may|can|is|wants)|(?:is|are|was) told|idmapped|looks of)\b"
    text = re.sub(
        r"```.*?```|`[^`\n]*`|user who builds|who is trusted with what", "", page.read_text(), flags=re.DOTALL
    )
    text = text.split("## What is tested")[0] if page == GOLDEN else text
    assert re.findall(avoided, text, re.IGNORECASE) == []


def test_one_build_is_followed_through_eight_files() -> None:
    """docs/one-build.md: each heading names a file, and functions that it has."""
    page = (ROOT / "docs/one-build.md").read_text()
    stops = re.findall(r"^## (\d)\. `([\w/.]+)`: (.*)$", page, re.M)
    assert [number for number, _, _ in stops] == [str(number) for number in range(1, 9)]
    for _, name, functions in stops:
        text = (ROOT / name).read_text()
        missing = [one for one in re.findall(r"`(\w+)`", functions) if f"def {one}(" not in text]
        assert not missing, name


def test_diffs_of_examples_apply() -> None:
    """The examples of docs/architecture.md are changes that the code still takes."""
    diffs = re.findall(r"```diff\n(.*?)```", (ROOT / "docs/architecture.md").read_text(), re.DOTALL)
    assert diffs
    for diff in diffs:
        command = ["git", "apply", "--check", "--unidiff-zero", "-"]
        done = subprocess.run(command, input=diff, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_tree_has_every_package() -> None:
    """docs/architecture.md draws the packages, each with a sentence."""
    drawn, above = set(), list[str]()
    for line in (ROOT / "docs/architecture.md").read_text().split("```")[1].strip().splitlines():
        name = re.match(r"( *)(\w+)/ +\S", line)
        assert name, line
        above[len(name[1]) // 2 :] = [name[2]]
        drawn.add("/".join(above))
    tops = [ROOT / name for name in ("builder", "cache", "grammar")]
    assert drawn == {str(path.parent.relative_to(ROOT)) for top in tops for path in top.rglob("__init__.py")}


def test_nothing_is_left_to_fill_in() -> None:
    for page in PAGES:
        assert "@@" not in re.sub(r"```diff.*?```", "", page.read_text(), flags=re.DOTALL), page.name


def test_cited_identifiers_have_a_row() -> None:
    rows = [
        row
        for page in REFERENCE.glob("*.md")
        for row in re.findall(r"^\| ([A-Z]+-?\d+) \|", page.read_text(), re.M)
    ]
    assert len(rows) == len(set(rows)), "an identifier has two rows"
    folders = ("builder", "cache", "grammar", "tests", "benchmarks", "samples", "docs")
    paths = {path for name in folders for kind in SOURCES for path in (ROOT / name).rglob(kind)} - {
        Path(__file__)
    }
    cites = {path.relative_to(ROOT): cited(path) - set(rows) for path in [*paths, *ROOT.glob("*.md")]}
    assert {str(path): names for path, names in cites.items() if names} == {}


def test_an_unknown_identifier_is_found(tmp_path: Path) -> None:
    text = "# see T999, SRC-77 (and RT-88)\ndef test_REG_99_x(): ...\n"
    (tmp_path / "a.py").write_text(text)
    assert cited(tmp_path / "a.py") == {"T999", "SRC-77", "RT-88", "REG-99"}


def test_code_names_pages_of_this_project_only() -> None:
    """A page in a comment is a path from the top, or a page of a specification (image-spec manifest.md)."""
    lost = set()
    for path in [
        path for name in ("builder", "cache", "grammar", "tests") for path in (ROOT / name).rglob("*.py")
    ]:
        for name in re.findall(r"(?<![\w/-])docs/[\w/-]+\.md", path.read_text()):
            lost |= set() if (ROOT / name).exists() else {f"{path.name}: {name}"}
        for name in re.findall(
            r"(?<![\w/.-])(?:dockerfile|security|architecture|performance|decisions)\.md", path.read_text()
        ):
            lost.add(f"{path.name}: {name}")
    assert lost == set()
