"""tests/golden: a Dockerfile, its context, and what has to come of them; no Python needed to add one.

A folder holds ``Dockerfile``, ``context/`` and ``expected``, which ``UPDATE_GOLDEN=1`` writes anew
(read what it wrote). Instead of ``expected`` a file ``refused`` says what the error has to say.
``options`` are options of the command line, one a line. docker's own BuildKit builds the same folders,
unless ``newer`` says why not; ``newer-history`` says that of history alone.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from daemons import dockerd
from golden import describe
from harness import Pybuild
from oci import Image, read_docker, read_image

pytestmark = pytest.mark.e2e

FOLDER = Path(__file__).resolve().parents[1] / "golden"
CASES = sorted(path for path in FOLDER.iterdir() if path.is_dir())
OLD = [case for case in CASES if not (case / "newer").exists()]


def runs(case: Path) -> bool:
    """Whether a Dockerfile has steps that are isolated."""
    return "RUN" in (case / "Dockerfile").read_text(errors="replace").upper()


def options(case: Path) -> list[str]:
    return (case / "options").read_text().split("\n")[:-1] if (case / "options").exists() else []


def context(case: Path, work: Path) -> Path:
    """A copy of the context with modes that do not depend on who checked it out."""
    folder = work / "golden-context"
    if not (case / "context").exists():
        folder.mkdir()
        return folder
    shutil.copytree(case / "context", folder, symlinks=True)
    for place, folders, files in os.walk(folder):
        for name in [".", *folders, *files]:
            path = os.path.join(place, name)
            mode = os.lstat(path).st_mode
            if not stat.S_ISLNK(mode):
                run = stat.S_ISDIR(mode) or mode & 0o111
                os.chmod(path, mode & 0o7000 | (0o755 if run else 0o644))
    return folder


@pytest.fixture(scope="module")
def base(busybox: Path) -> Image:
    return read_image(busybox)


@pytest.mark.parametrize(
    ("case", "isolation"),
    [*((case, "namespaces") for case in CASES), *((case, "chroot") for case in CASES if runs(case))],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_case(pybuild: Pybuild, base: Image, case: Path, isolation: str) -> None:
    args = [
        "--network=none",
        "--no-cache",
        f"--isolation={isolation}",
        f"--file={case}/Dockerfile",
        *options(case),
    ]
    folder = context(case, pybuild.work)
    if (case / "refused").exists():
        assert (case / "refused").read_text().strip() in pybuild(*args, folder).failed().err
        return
    found = describe(pybuild.export(folder, *args), base)
    if os.environ.get("UPDATE_GOLDEN"):
        (case / "expected").write_text(found)
    assert found == (case / "expected").read_text()


@pytest.fixture(scope="module")
def docker(tools: dict[str, str], busybox: Path, tmp_path_factory: pytest.TempPathFactory) -> object:
    """docker with its BuildKit, and busybox in it."""
    with dockerd(tools, tmp_path_factory.mktemp("docker")) as client:
        subprocess.run([*client, "load", "-q", "-i", busybox], check=True, capture_output=True)
        yield client


@pytest.mark.parametrize("case", OLD, ids=lambda case: case.name)
def test_docker_agrees(docker: list[str], base: Image, case: Path, tmp_path: Path) -> None:
    """The differential test: what is expected is what BuildKit makes."""
    made = tmp_path / "id"
    done = subprocess.run(
        [*docker, "build", "--no-cache", "--network=none", "--iidfile", made, "-f", case / "Dockerfile",
         *options(case), context(case, tmp_path)],
        env={**os.environ, "DOCKER_BUILDKIT": "1"}, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    if (case / "refused").exists():
        assert done.returncode != 0, "docker builds it"
        return
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    archive = tmp_path / "image.tar"
    subprocess.run([*docker, "save", "-o", archive, made.read_text()], check=True, capture_output=True)
    found = describe(read_docker(archive), base)
    for name in ("dev", "proc", "sys"):  # what this old runc leaves behind
        found = found.replace(f"  d 755 0:0 {name}\n", "")
    expected = (case / "expected").read_text()
    if (case / "newer-history").exists():
        found, expected = found.split("history\n")[0], expected.split("history\n")[0]
    assert found == expected
