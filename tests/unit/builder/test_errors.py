"""The trees of errors in docstrings are complete, each error is raised, each code has a page."""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from builder.cli.error_pages import error_pages

ROOT = Path(__file__).resolve().parents[3]
# Each root module, and the folder whose errors its tree draws. A folder below with its own root is not part.
TREES = {
    "grammar.errors": "grammar",
    "cache.errors": "cache",
    "builder.errors": "builder",
    "builder.oci.errors": "builder/oci",
    "builder.registry.errors": "builder/registry",
    "builder.runtime.errors": "builder/runtime",
}
CODE = re.compile(r'"(E-[A-Z-]+)"')
# These stay inside builder.registry.transport, which raises Unavailable for them.
INTERNAL = {"BrokenOff", "TooSlow"}


@cache
def sources(folder: str) -> dict[Path, str]:
    """Return the modules of *folder* without those of folders below that have a tree of their own."""
    inner = [ROOT / other for other in TREES.values() if other.startswith(f"{folder}/")]
    return {
        path: path.read_text()
        for path in (ROOT / folder).rglob("*.py")
        if not any(path.is_relative_to(other) for other in inner)
    }


def public_errors(folder: str) -> set[str]:
    """Return the names of public classes of *folder* that derive from an exception."""
    bases: dict[str, set[str]] = {}
    for text in sources(folder).values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    known = {"Exception", "ValueError", "OSError", "TimeoutError", "BuildError", "CacheError"}
    while more := {name for name, its in bases.items() if its & known} - known:
        known |= more
    return {name for name in known & bases.keys() if not name.startswith("_")} - INTERNAL


def drawn(module: ModuleType) -> set[str]:
    return set(re.findall(r"^ *([A-Z]\w+)  ", module.__doc__ or "", re.M))


@pytest.mark.parametrize("name", TREES)
def test_the_tree_is_complete(name: str) -> None:
    module = importlib.import_module(name)
    roots_below = {"RegistryError", "ImageError"} if name == "builder.errors" else set()
    assert drawn(module) - roots_below == public_errors(TREES[name])


@pytest.mark.parametrize("name", TREES)
def test_errors_are_below_what_the_tree_draws(name: str) -> None:
    module = importlib.import_module(name)
    above: list[tuple[int, str]] = []
    for indent, child in re.findall(r"^( *)([A-Z]\w+)  ", module.__doc__ or "", re.M):
        above = [(depth, parent) for depth, parent in above if depth < len(indent)]
        if above and hasattr(module, child):
            assert issubclass(getattr(module, child), getattr(module, above[-1][1])), child
        above.append((len(indent), child))


@pytest.mark.parametrize("name", TREES)
def test_each_error_is_raised(name: str) -> None:
    """A class that is never raised, nor a root of others, is dead."""
    every = "".join(text for folder in TREES.values() for text in sources(folder).values())
    module = importlib.import_module(name)
    for error in drawn(module):
        found = vars(module).get(error)
        if found is not None and not found.__subclasses__():
            assert re.search(rf"(\braise|\breturn|=|\bpartial\()\s*{error}\b", every), error


def test_each_code_has_a_page() -> None:
    used = {
        code for folder in TREES.values() for text in sources(folder).values() for code in CODE.findall(text)
    }
    assert used == error_pages().keys()


@pytest.mark.parametrize("code", error_pages())
def test_each_page_has_cause_and_cure(code: str) -> None:
    cause, cure = error_pages()[code].split("\n\n")
    assert cause.startswith("Cause: ") and cure.startswith("Cure: ")
    assert list(error_pages()) == sorted(error_pages())
