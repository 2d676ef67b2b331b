"""Formatting, lint, types and import contracts: part of "the tests pass"."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PACKAGES = ("builder", "cache", "grammar")
MODULE_LINES, FUNCTION_LINES, PARAMETERS = 450, 60, 6

# Modules that use Any, with the reason. Elsewhere values have types.
ANY = {
    "builder/cli/parser.py": "overrides a method of argparse",
    "builder/progress/tty.py": "tqdm has no types",
    "builder/registry/config.py": "decoded TOML",
    "builder/registry/transport.py": "passes arguments of http.client and urllib3 on",
    "builder/registry/wire.py": "passes arguments of http.client on",
    "builder/replay/fields.py": "values of fields of any type",
    "builder/runtime/network/netlink.py": "pyroute2 has no types",
    "builder/support/json_types.py": "decoded JSON",
    "cache/index.py": "rows of SQLite",
    "cache/layer/compression.py": "decompressors of four libraries share no type",
    "cache/memos.py": "values that marshal reads",
    "grammar/parse.py": "lark's parser",
    "grammar/structs.py": "values of fields of any type",
    "grammar/transform.py": "lark's trees and tokens",
}


@pytest.mark.parametrize(
    "command",
    [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"], ["lint-imports"]],
    ids=["lint", "format", "types", "imports"],
)
def test_check(command: list[str]) -> None:
    done = subprocess.run(
        [BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_of_a_workplace() -> None:
    """No paths of a machine in what we publish."""
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    found = []
    for name in filter(None, listed):
        text = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        if b"/wo" + b"rk/" in text:
            found.append(name)
    assert not found


def test_modules_are_short() -> None:
    lengths = {name: len((ROOT / name).read_bytes().splitlines()) for name in _modules(*PACKAGES, "tests")}
    assert {name: lines for name, lines in lengths.items() if lines > MODULE_LINES} == {}


def test_functions_are_short() -> None:
    lengths = {
        f"{name}: {function.name}": (function.end_lineno or 0) - function.lineno + 1
        for name in _modules(*PACKAGES, "tests")
        for function in _functions(name)
    }
    assert {name: lines for name, lines in lengths.items() if lines > FUNCTION_LINES} == {}


def test_functions_have_few_parameters() -> None:
    """A constructor may have more, if callers name them."""
    counts = {
        f"{name}: {function.name}": _parameters(function)
        for name in _modules(*PACKAGES, "tests")
        for function in _functions(name)
    }
    assert {name: count for name, count in counts.items() if count > PARAMETERS} == {}


def test_any_has_a_reason() -> None:
    users = {name for name in _modules(*PACKAGES) if _imports_any(name)}
    assert users == set(ANY)


def _modules(*packages: str) -> Iterator[str]:
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield str(path.relative_to(ROOT))


def _functions(name: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse((ROOT / name).read_bytes())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count parameters without self and cls, and without a constructor's that callers must name."""
    given = function.args
    names = [item.arg for item in (*given.posonlyargs, *given.args)]
    named = 0 if function.name == "__init__" else len(given.kwonlyargs)
    return len(names) - (names[:1] in (["self"], ["cls"])) + named


def _imports_any(name: str) -> bool:
    """Return True if the module imports typing.Any, also where only type checkers see it."""
    return any(
        isinstance(node, ast.ImportFrom)
        and node.module == "typing"
        and any(item.name == "Any" for item in node.names)
        for node in ast.walk(ast.parse((ROOT / name).read_bytes()))
    )
