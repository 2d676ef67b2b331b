"""Files that are made from the code are up to date, and the shells can read them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]


def test_generated_files_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/generate", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("shell", "file"),
    [
        ("bash", "scripts/share/bash-completion/completions/pybuild"),
        ("zsh", "scripts/share/zsh/site-functions/_pybuild"),
        ("fish", "scripts/share/fish/vendor_completions.d/pybuild.fish"),
    ],
)
def test_completions_are_valid(shell: str, file: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n", ROOT / file], check=True)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pybuild --progr", "--progress"),
        ("pybuild --progress ra", "rawjson"),
        ("pybuild doc", "doctor"),
        ("pybuild images --no-t", "--no-trunc"),
        ("pybuild help E-STEP-F", "E-STEP-FAILED"),
    ],
)
def test_bash_completes(line: str, expected: str, tmp_path: Path) -> None:
    words = line.split(" ")
    script = (
        f"source {ROOT}/scripts/share/bash-completion/completions/pybuild; COMP_WORDS=({line}); "
        f'COMP_CWORD={len(words) - 1}; _pybuild; echo "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
