"""The wheel and the sdist: built, installed and run, with everything in them that the program needs."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from builder import VERSION

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("builder", "cache", "grammar")
DOCUMENTS = (
    "share/doc/pybuild/architecture.md",
    "share/doc/pybuild/rules/README.md",
    "share/man/man1/pybuild.1",
    "share/bash-completion/completions/pybuild",
    "share/fish/vendor_completions.d/pybuild.fish",
    "share/zsh/site-functions/_pybuild",
)


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and from its contents the wheel. Return the directory that holds both."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", out)
    with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
        archive.extractall(out, filter="data")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out, cwd=out / f"pybuild-{VERSION}")
    return out


def test_files_of_the_wheel(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = [name.replace(f"pybuild-{VERSION}.data/data/", "") for name in wheel.namelist()]
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    needed = [str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts]
    assert "grammar/dockerfile.lark" in needed and "cache/py.typed" in needed
    assert [name for name in (*needed, *DOCUMENTS) if name not in names] == []
    assert f"pybuild-{VERSION}.dist-info/licenses/LICENSE" in names
    assert {name.split("/")[0] for name in names} == {*PACKAGES, "share", f"pybuild-{VERSION}.dist-info"}


def test_files_of_the_sdist(built: Path) -> None:
    source = built / f"pybuild-{VERSION}"
    for name in (
        "LICENSE",
        "CHANGELOG.md",
        "docs/architecture.md",
        "tests/unit/test_package.py",
        "scripts/check",
    ):
        assert (source / name).exists(), name


def test_installed_wheel_runs(built: Path, tmp_path: Path) -> None:
    """In a new environment, with the dependencies of this one."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"
    wheel = next(built.glob("*.whl"))
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        wheel,
    )
    site = next(tmp_path.glob("venv/lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(str(Path(pytest.__file__).parents[1]))
    assert run(tmp_path / "venv/bin/pybuild", "--version", cwd=tmp_path) == f"pybuild {VERSION}\n"
    where = "import builder; print(builder.__file__)"
    assert run(python, "-I", "-c", where, cwd=tmp_path).startswith(str(site))
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY a /\n")
    found = run(tmp_path / "venv/bin/pybuild", "--root", tmp_path / "store", "--check", ".", cwd=tmp_path)
    assert "no warnings" in found
    for name in DOCUMENTS:
        assert (tmp_path / "venv" / name).exists(), name


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project and project["dynamic"] == ["version"]
    assert f"## {VERSION}" in (ROOT / "CHANGELOG.md").read_text()


def test_addresses_are_those_of_the_readme() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    readme = (ROOT / "README.md").read_text()
    assert [name for name, url in project["urls"].items() if url not in readme] == []
