"""Formatting, lint, types and import contracts: part of "the tests pass"."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


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
