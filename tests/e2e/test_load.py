"""--load: images into docker and podman, run by whom the build was started."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import dockerd
from harness import Pybuild
from rootless import Installation

pytestmark = [pytest.mark.e2e, pytest.mark.interop]

NONE = "--network=none"
TEXT = "FROM busybox\nRUN echo loaded > /word\nCMD cat /word\n"


def test_into_docker(pybuild: Pybuild, tools: dict[str, str], tmp_path: Path) -> None:
    context = pybuild.context(TEXT)
    with dockerd(tools, tmp_path) as client:
        host = {"DOCKER_HOST": client[2]}
        done = pybuild(NONE, "--load", "-t", "app:1", context, env=host).ok()
        assert "Loaded image: app:1" in done.err
        shown = subprocess.check_output([*client, "image", "ls", "-q", "--no-trunc", "app:1"], text=True)
        assert shown.strip() in done.err, "it has the ID that pybuild says"
        ran = subprocess.check_output([*client, "run", "--rm", "--network=none", "app:1"], text=True)
        assert ran == "loaded\n"
        pybuild(NONE, "-o", "type=docker,name=other:2", context, env=host).ok()
        assert subprocess.check_output([*client, "image", "ls", "-q", "other:2"], text=True)
    said = pybuild(NONE, "--load", "-t", "app:1", context, env=host).failed().err
    assert "loading the image: " in said and "docker" in said and "-o type=docker,dest=FILE" in said


@pytest.fixture
def short() -> Iterator[Path]:
    """podman takes no long paths."""
    folder = Path(tempfile.mkdtemp(prefix="p", dir="/dev/shm"))
    folder.chmod(0o777)
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)


def wrapped(tools: dict[str, str], folder: Path) -> Path:
    """A podman with storage of its own, which notes by whom it is called, and in which namespace."""
    (folder / "bin").mkdir()
    script = folder / "bin/podman"
    storage = f"--root={folder}/root --runroot={folder}/run --storage-driver=vfs --cgroup-manager=cgroupfs"
    script.write_text(
        f'#!/bin/sh\necho "$(id -u) $(readlink /proc/self/ns/user)" >> {folder}/log\n'
        f'exec {tools["podman"]} {storage} --events-backend=none "$@"\n'
    )
    script.chmod(0o755)
    return folder / "bin"


def test_into_podman(pybuild: Pybuild, tools: dict[str, str], short: Path) -> None:
    path = f"{wrapped(tools, short)}:{os.environ['PATH']}"
    done = pybuild(NONE, "--load", "-t", "app:1", pybuild.context(TEXT), env={"PATH": path}).ok()
    assert "app:1" in done.err.rpartition("Loaded image")[2]
    names = subprocess.check_output([short / "bin/podman", "images", "--format={{.Names}}"], text=True)
    assert "app:1" in names


@pytest.mark.parametrize("who", ["ranges", "single"])
def test_into_podman_of_a_user(
    installation: Installation, tools: dict[str, str], busybox: Path, short: Path, who: str
) -> None:
    """Not in the namespace of the build: that podman has another storage, or none."""
    user = installation.pybuild(getattr(installation, who), "load")
    (user.work / "busybox.tar").write_bytes(busybox.read_bytes())
    user("load", user.work / "busybox.tar").ok()
    path = f"{wrapped(tools, short)}:{user.environment()['PATH']}"
    done = user(NONE, "--load", "-t", "app:1", user.context(TEXT), env={"PATH": path})
    uid, namespace = (short / "log").read_text().splitlines()[0].split()
    assert (int(uid), namespace) == (user.user.uid, os.readlink("/proc/self/ns/user"))
    if who == "ranges":
        done.ok()
        assert "app:1" in done.err.rpartition("Loaded image")[2]


def test_without_either(pybuild: Pybuild, tmp_path: Path) -> None:
    context = pybuild.context(TEXT)
    said = pybuild(NONE, "--load", context, env={"PATH": str(tmp_path)}).failed().err
    assert "neither docker" in said
