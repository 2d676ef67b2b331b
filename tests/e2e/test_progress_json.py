"""--progress rawjson: lines that a program can read, as docs/progress.md has them."""

from __future__ import annotations

import base64
import json
from datetime import datetime
from typing import Any

import pytest
from harness import Pybuild

pytestmark = pytest.mark.e2e

NONE = "--network=none"
RAW = "--progress=rawjson"


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Every item with its kind; each line holds one key."""
    found = []
    for line in text.splitlines():
        ((kind, items),) = json.loads(line).items()
        found += [(kind, item) for item in items]
    return found


def of(kind: str, text: str) -> list[dict[str, Any]]:
    return [item for name, item in events(text) if name == kind]


def test_steps_and_output(pybuild: Pybuild) -> None:
    text = "FROM busybox\nRUN echo out; echo 'err\x1b[2J' >&2\nCOPY f /f\n"
    done = pybuild(NONE, RAW, "--no-cache", pybuild.context(text, {"f": "1"})).ok()
    steps: dict[str, list[dict[str, Any]]] = {}
    for vertex in of("vertexes", done.err):
        steps.setdefault(vertex["digest"], []).append(vertex)
    names = [seen[0]["name"] for seen in steps.values()]
    assert [name.split("] ")[1].split()[0] for name in names] == ["FROM", "RUN", "COPY"]
    base, run, _copy = steps.values()
    assert base[0]["cached"] and base[0]["completed"]
    assert "completed" not in run[0] and run[1]["peakMemory"] > 0 and "cached" not in run[1]
    assert datetime.fromisoformat(run[0]["started"]) <= datetime.fromisoformat(run[1]["completed"])
    logs = of("logs", done.err)
    assert {log["vertex"] for log in logs} == {run[0]["digest"]}
    assert b"".join(base64.b64decode(log["data"]) for log in logs) == b"out\nerr\x1b[2J\n"


def test_cached_is_told_again(pybuild: Pybuild) -> None:
    context = pybuild.context("FROM busybox\nRUN echo told\n")
    pybuild(NONE, RAW, context).ok()
    for _ in range(2):
        vertexes = of("vertexes", pybuild(NONE, RAW, context).ok().err)
        assert len(vertexes) == 2 and all(vertex["cached"] for vertex in vertexes)


def test_warnings_and_transfers(pybuild: Pybuild) -> None:
    context = pybuild.context("from busybox\nRUN true\n")
    archive = pybuild.work / "x.tar"
    done = pybuild(NONE, RAW, "--build-arg=no=1", "-o", f"type=oci,dest={archive}", context).ok()
    said = [base64.b64decode(item["short"]).decode() for item in of("warnings", done.err)]
    assert any("no" in text and "ARG" in text for text in said)
    assert any("ConsistentInstructionCasing" in text for text in said)
    (last,) = [item for item in of("statuses", done.err) if item["id"] == "exporting" and "completed" in item]
    assert last["current"] == last["total"] > 0


def test_failure(pybuild: Pybuild) -> None:
    """The step says that it failed; why follows as text, as it does for people."""
    done = pybuild(NONE, RAW, "--no-cache", pybuild.context("FROM busybox\nRUN false\n"))
    assert done.code == 1
    lines = [line for line in done.err.splitlines() if line.startswith("{")]
    assert any("error" in vertex for vertex in of("vertexes", "\n".join(lines)))
    assert "exit code: 1" in done.err.splitlines()[-1]
