"""What is built: the contexts, the workloads on them, and the bars pybuild is held to."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import say

STEPS = 30
FOLDERS = 200
FILES = 100
_SIZES = (200, 1848)  # about 1 KiB on average


@dataclass(frozen=True)
class Workload:
    """One thing to time. *reference* is Docker's time over BuildKit HEAD's, see README.md."""

    name: str
    context: str
    options: tuple[str, ...] = ()
    cold: bool = False
    change: bool = False
    bar: float | None = None
    reference: float | None = None


# The bars are ratios to a warm BuildKit HEAD.
WORKLOADS = (
    Workload("version", ""),
    Workload("minimal-cached", "minimal"),
    Workload("steps-nocache", "steps", ("--no-cache",), bar=0.2, reference=9.14 / 1.84),
    Workload("steps-nocache-isolated", "steps", ("--no-cache", "--network", "none"), bar=0.2),
    Workload("steps-cached", "steps", bar=0.8, reference=94 / 66),
    Workload("copy-cold", "files", cold=True, bar=0.5, reference=4.69 / 3.82),
    Workload("copy-unchanged", "files", bar=0.35, reference=0.36 / 0.41),
    Workload("copy-one-changed", "files", change=True, bar=0.3, reference=3.02 / 2.30),
)


def make_base(folder: Path) -> Path:
    """A tar of a root file system of busybox; the same for every tool."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise SystemExit("busybox is not installed (Debian: busybox-static)")
    root = folder / "base"
    for name in ("bin", "etc", "root", "tmp", "usr/bin", "var"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin" / "busybox")
    for applet in say(busybox, "--list").split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc" / "group").write_text("root:x:0:\n")
    tar = folder / "base.tar"
    say(
        "tar",
        "-C",
        str(root),
        "--sort=name",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "-cf",
        str(tar),
        ".",
    )
    return tar


def make_contexts(folder: Path) -> None:
    """Write the contexts, the same bytes each time."""
    steps = [f"RUN echo {number} > /f{number}" for number in range(1, STEPS + 1)]
    _dockerfile(folder / "minimal", ["RUN echo 1 > /f1"])
    _dockerfile(folder / "steps", steps)
    _dockerfile(folder / "files", ["COPY files /files"])
    source = random.Random(20)
    for number in range(FOLDERS):
        path = folder / "files" / "files" / f"d{number:03}"
        path.mkdir(parents=True)
        for name in range(FILES):
            (path / f"f{name:02}.txt").write_bytes(source.randbytes(source.randint(*_SIZES)))


def _dockerfile(folder: Path, lines: list[str]) -> None:
    folder.mkdir(parents=True)
    (folder / "Dockerfile").write_text("\n".join(["FROM busybox", *lines, ""]))


def change_one(context: Path, number: int) -> None:
    """Give one file of the context other contents of the same length."""
    path = context / "files" / f"d{number % FOLDERS:03}" / "f50.txt"
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.write(random.Random(1000 + number).randbytes(size))
        os.fsync(file.fileno())
