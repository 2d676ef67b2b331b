"""What COPY selects of a build context and of a tree, and its digests."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.copy.context_source import ContextSource, IgnoreRules
from builder.copy.sources import MADE_TIME, InlineSource, TreeSource, has_wildcard
from builder.errors import BuildError
from builder.plan.ops import CONTEXT, Inline, Picked
from cache.context_scan import StatIndex
from cache.layer.merged_tree import Tree
from grammar.ignore import parse_ignore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "context/d/e").mkdir(parents=True)
    for name, text in (("a.txt", "a"), ("b.txt", "b"), ("d/f", "f"), ("d/e/g", "g")):
        (tmp_path / "context" / name).write_text(text)
    os.symlink("d", tmp_path / "context/link")
    return tmp_path / "context"


@contextlib.contextmanager
def opened(folder: Path, ignore: bytes = b"") -> Iterator[ContextSource]:
    index = StatIndex(str(folder.parent / "index"))
    rules = IgnoreRules(parse_ignore(ignore), ".dockerignore")
    source = ContextSource(str(folder), "name", index, {}, rules, lambda event: None)
    try:
        yield source
    finally:
        source.close()


def names(source: ContextSource | TreeSource, pattern: str, literal: bool = False) -> list[str]:
    return [one.name for one in source.select(Picked(pattern, CONTEXT, literal=literal), ())]


@pytest.mark.parametrize(
    "text, wanted", [("a", False), ("a*", True), ("[a]", True), ("\\*", False), ("\\\\*", True), ("a?", True)]
)
def test_T23_wildcards(text: str, wanted: bool) -> None:
    assert has_wildcard(text) is wanted


def test_patterns(folder: Path) -> None:
    with opened(folder) as source:
        for one in (source, TreeSource(Tree((str(folder),)))):
            assert names(one, "*.txt") == ["a.txt", "b.txt"]
            assert names(one, "link/f") == ["f"] and names(one, "../../a.txt") == ["a.txt"]
            assert names(one, "no*") == []
            for missing in ("nope", "*.txt/"):
                with contextlib.suppress(BuildError):
                    assert names(one, missing) == ["a.txt", "b.txt"]
            with pytest.raises(BuildError, match="not found"):
                names(one, "*.txt", literal=True)


def test_a_close_name_is_suggested(folder: Path) -> None:
    with opened(folder) as source, pytest.raises(BuildError) as raised:
        names(source, "a.text")
    assert "a.txt" in raised.value.hint


def test_ignored_files_are_absent(folder: Path) -> None:
    with opened(folder, b"*.txt\nd/e\n") as source:
        with pytest.raises(BuildError) as raised:
            names(source, "a.txt")
        assert raised.value.hint == "it is excluded by .dockerignore line 1"
        (selected,) = source.select(Picked("d", CONTEXT), ())
        assert [entry.path for entry, _handle in source.entries(selected)] == ["", "f"]


def test_digests_say_what_was_selected(folder: Path) -> None:
    def digest() -> str:
        with opened(folder) as source:
            (selected,) = source.select(Picked("d", CONTEXT), ())
            return source.digest(selected)

    first = digest()
    assert digest() == first
    (folder / "d/f").write_text("other")
    second = digest()
    (folder / "d/f").chmod(0o755)
    assert len({first, second, digest()}) == 3


def test_a_here_document_is_a_file() -> None:
    source = InlineSource(Inline("name", "text\n", 0o755), 0)
    (selected,) = source.select(Inline("name", "text\n"), ())
    ((entry, handle),) = source.entries(selected)
    assert (entry.mode, entry.size, entry.mtime) == (0o755, 5, MADE_TIME)
    fd = source.open(handle)
    try:
        assert os.read(fd, 10) == b"text\n"
    finally:
        os.close(fd)
