"""The ways to run pybuild, and the probe in each.

The probe (tests/support/probe.c) tries some 370 things inside a step; tests/support/confinement.py
says which of them work. Every mode has the same table: root, an ordinary user with subordinate
ids, and one without.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from confinement import Report, compile_probe, probe_context, read_report
from harness import Pybuild
from modes import MODES, Mode, Reporter
from rootless import Installation, nothing_runs


@pytest.fixture(scope="module", autouse=True)
def unmappable() -> Iterator[Path]:
    """A folder on a file system that cannot be mounted with mapped ids."""
    folder = tempfile.mkdtemp(prefix="pybuild-ramfs.", dir="/dev/shm")
    subprocess.run(["mount", "-t", "ramfs", "ramfs", folder], check=True)
    yield Path(folder)
    subprocess.run(["umount", folder], check=True)
    os.rmdir(folder)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mode]:
    """Each mode in turn; of a user nothing may be left running."""
    name: str = request.param
    if name == "root":
        yield Mode(name, Pybuild(request.getfixturevalue("shared_store"), tmp_path))
        return
    if name == "root-unmapped":
        unmapped = request.getfixturevalue("unmappable") / "store"
        if not unmapped.exists():
            subprocess.run(["cp", "-a", request.getfixturevalue("shared_store"), unmapped], check=True)
        yield Mode(name, Pybuild(unmapped, tmp_path))
        return
    place: Installation = request.getfixturevalue("installation")
    user = place.ranges if name.endswith("ranges") else place.single
    pybuild = place.pybuild(user, "work")
    if " busybox:latest " not in pybuild("images").out.replace("\n", " "):
        (pybuild.work / "busybox.tar").write_bytes(request.getfixturevalue("busybox").read_bytes())
        pybuild("load", pybuild.work / "busybox.tar").ok()
    yield Mode(name, pybuild, user)
    left = nothing_runs(user)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left, f"{user.name} still runs {left}"


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_probe(tmp_path_factory.mktemp("probe"))


@pytest.fixture(scope="session")
def report(probe: Path) -> Reporter:
    """What the probe reports from a default step; asked once of each kind of step."""
    known: dict[tuple[str, str, str], Report] = {}

    def ask(mode: Mode, network: str = "none", user: str = "") -> Report:
        what = (mode.name, network, user)
        if what not in known:
            lines = [f"USER {user}"] if user else []
            context = probe_context(mode.pybuild, probe, lines)
            image = mode.pybuild.export(context, f"--network={network}", "--no-cache")
            known[what] = read_report(image.read("p/report"))
        return known[what]

    return ask
