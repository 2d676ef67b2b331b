"""A replay imports few modules: most builds in CI are replays, and imports are most of their time."""

from __future__ import annotations

import hashlib
import marshal
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from builder.copy.filters import Selector, selector_name
from builder.replay.play import record_key
from cache.context_scan import StatIndex, scan
from cache.store import Store

HEAVY = ("argparse", "dataclasses", "inspect", "json", "lark", "logging", "subprocess", "tempfile", "typing")
OURS = ("builder.plan", "builder.build", "builder.cli.dispatch", "builder.request", "grammar")

# Run the command as main() does, then print the modules that it added to those of a bare interpreter.
PROGRAM = """
import sys
before = set(sys.modules)
from builder.cli.main import _main
code = _main(sys.argv[1:])
print(*sorted(set(sys.modules) - before))
sys.exit(code)
"""


@pytest.fixture
def argv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command line whose last build left a record: a Dockerfile, a COPY of the whole context, an image."""
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYBUILD_DEBUG", raising=False)
    given = ["--root", str(tmp_path / "store"), str(context)]
    with Store(str(tmp_path / "store")) as store:
        image = store.put_blob(b"{}")
        digest = _remember_context(context, store, monkeypatch)
        dockerfile = hashlib.sha256((context / "Dockerfile").read_bytes()).hexdigest()
        record = {
            "files": [(str(context / "Dockerfile"), dockerfile)],
            "refs": [],
            "context": str(context),
            "context_name": "context",
            "ignore": b"",
            "selections": [(("", (), ()), digest)],
            "listings": [],
            "steps": [],
            "names": ["COPY . /"],
            "image": image,
            "warnings": [],
            "tags": [],
            "iidfile": "",
            "quiet": False,
            "silent": False,
        }
        store.memos.set_build(record_key(given), marshal.dumps(record))
    return given


def _remember_context(context: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> str:
    selector: Selector = ("", (), ())
    index = StatIndex(store.path("contexts", "context"))
    root = os.open(context, os.O_RDONLY | os.O_DIRECTORY)
    now = time.time_ns
    with monkeypatch.context() as patch:  # a file that is a second old could still change unseen
        patch.setattr("cache.context_scan.time.time_ns", lambda: now() + 3600 * 10**9)
        index.remember(selector_name(selector), scan(root, ""), "digest")
    os.close(root)

    def write(path: str, data: bytes) -> None:
        Path(path).write_bytes(data)

    index.save(write)
    return "digest"


def _modules(argv: list[str]) -> tuple[set[str], str]:
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{PROGRAM}", *argv],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split()), done.stderr


def test_a_replay_imports_little(argv: list[str]) -> None:
    modules, progress = _modules(argv)
    assert "CACHED" in progress
    assert modules.isdisjoint(HEAVY)
    assert not [name for name in modules if name.startswith(OURS)]


def test_version_imports_nothing() -> None:
    modules, _ = _modules(["--version"])
    assert {name for name in modules if name.partition(".")[0] in ("builder", "cache", "grammar")} == {
        "builder",
        "builder.cli",
        "builder.cli.main",
    }
    assert modules.isdisjoint(HEAVY)
