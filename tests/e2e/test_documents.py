"""The commands that README and docs/ show: each block after ``<!-- run -->`` is run as it stands.

It runs in the directory of a small project, which is a git repository. ``registry.example.com`` is a registry on this
machine; CACHE and COMMIT are set. Blocks of one page share a directory, as a reader's do.
"""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import PYBUILD, Pybuild, make_tree
from servers import registry

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = """FROM docker.io/library/busybox AS build
RUN --mount=type=cache,target=/cache echo built | tee /cache/kept > /out
FROM docker.io/library/busybox
COPY --from=build /out /out
CMD ["cat", "/out"]
"""


def blocks(page: Path) -> list[str]:
    """Return the marked blocks of *page*, without their indentation."""
    found = re.findall(r"<!-- run -->\n\n((?:(?: {4}.*)?\n)+)", page.read_text())
    return [textwrap.dedent(block).strip() + "\n" for block in found]


PAGES = {
    str(page.relative_to(ROOT)): blocks(page)
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if blocks(page)
}


@pytest.fixture
def server(tools: dict[str, str], tmp_path: Path) -> Iterator[str]:
    with registry(tools["docker-registry"], tmp_path) as host:
        yield host


def test_marks_are_followed_by_a_block() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    marks = sum(page.read_text().count("<!-- run -->\n\n") for page in pages)
    assert marks == sum(map(len, PAGES.values())) and "README.md" in PAGES


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page(page: str, pybuild: Pybuild, server: str, tmp_path: Path) -> None:
    project = make_tree(tmp_path / "project", {"Dockerfile": DOCKERFILE})
    env = pybuild.environment({"CACHE": str(tmp_path / "cache"), "COMMIT": "0a1b2c3"})
    env |= {
        f"GIT_{who}_{what}": "a@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    env["PATH"] = f"{Path(PYBUILD).parent}{os.pathsep}{env['PATH']}"
    git = "git init -q && git add . && git commit -q -m first\n"
    script = (git + "\n".join(PAGES[page])).replace("registry.example.com", server)
    done = subprocess.run(
        ["sh", "-eux"],
        input=script,
        cwd=project,
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if page == "README.md":
        assert "HELLO, WORLD" in done.stdout
