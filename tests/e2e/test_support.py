"""docs/dockerfile-support.md says what works: every row of it is tried."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from harness import Pybuild, Tree

pytestmark = pytest.mark.e2e

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "dockerfile-support.md"
TRAPS = DOCS / "reference/traps.md"
CONTEXT: Tree = {"a": "1", "d": {"f": "2", "g": "3"}}


def rows() -> list[tuple[str, str]]:
    table = PAGE.read_text().split("## Instructions and flags")[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    return [(example.strip("`").replace(" ⏎ ", "\n"), state) for example, state in lines]


def test_every_trap_has_a_row_and_a_test() -> None:
    """T1 to T110: each once in docs/reference/traps.md, each named by some test."""
    table = TRAPS.read_text().split("## The traps")[1].split("\n## ")[0]
    found = [line.split(" | ") for line in table.splitlines() if line.startswith("| T")]
    assert [row[0] for row in found] == [f"| T{number}" for number in range(1, 111)]
    assert {row[2].rstrip(" |").split(":")[0] for row in found} == {"as BuildKit", "otherwise"}
    tests = "".join(path.read_text() for path in DOCS.parent.joinpath("tests").rglob("*.py"))
    named = set(re.findall(r"\bT\d{1,3}\b", tests))
    assert {f"T{number}" for number in range(1, 111)} <= named


@pytest.mark.parametrize(("example", "state"), rows(), ids=[example for example, _ in rows()])
def test_row(pybuild: Pybuild, example: str, state: str) -> None:
    text = example if "FROM busybox" in example or "FROM scratch" in example else f"FROM busybox\n{example}"
    done = pybuild("--network=none", pybuild.context(text + "\n", CONTEXT))
    if state == "as BuildKit":
        done.ok()
    else:
        assert state == "not yet", state
        said = done.failed().err
        assert "not supported yet" in said and "docs/dockerfile-support.md" in said and "Dockerfile:" in said
        assert " DONE " not in said
