"""docs/dockerfile-support.md says what works: every row of it is tried."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Pybuild, Tree

pytestmark = pytest.mark.e2e

PAGE = Path(__file__).resolve().parents[2] / "docs/dockerfile-support.md"
CONTEXT: Tree = {"a": "1", "d": {"f": "2", "g": "3"}}


def rows() -> list[tuple[str, str]]:
    table = PAGE.read_text().split("## Instructions and flags")[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    return [(example.strip("`").replace(" ⏎ ", "\n"), state) for example, state in lines]


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
