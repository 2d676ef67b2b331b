"""--load: images into docker and podman, run by whom the build was started."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import dockerd
from harness import Pybuild
from rootless import Installation, command

pytestmark = [pytest.mark.e2e, pytest.mark.interop]

NONE = "--network=none"
TEXT = "FROM busybox\nRUN echo loaded > /word\nCMD cat /word\n"


def test_into_docker(pybuild: Pybuild, tools: dict[str, str], tmp_path: Path) -> None:
    """T92: docker loads it, shows the same image, and runs it."""
    context = pybuild.context(TEXT)
    with dockerd(tools, tmp_path) as client:
        host = {"DOCKER_HOST": client[2]}
        done = pybuild(NONE, "--load", "-t", "app:1", context, env=host).ok()
        assert "Loaded image: app:1" in done.err
        shown = subprocess.check_output([*client, "image", "ls", "-q", "--no-trunc", "app:1"], text=True)
        assert shown.strip() in done.err, "it has the ID that pybuild says"
        ran = subprocess.check_output([*client, "run", "--rm", "--network=none", "app:1"], text=True)
        assert ran == "loaded\n"
        two = ("-o", "type=docker,name=other:2", "-o", "type=docker,name=third:3")
        assert "third:3" in pybuild(NONE, *two, context, env=host).ok().err
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


def test_cancelled_with_the_build(pybuild: Pybuild, tmp_path: Path) -> None:
    """The command that loads ends when the build does."""
    (tmp_path / "podman").write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 1000\n")
    (tmp_path / "podman").chmod(0o755)
    words, env = command(
        pybuild, NONE, "--load", pybuild.context(TEXT), env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    )
    with subprocess.Popen(words, env=env, stderr=subprocess.DEVNULL) as build:
        end = time.monotonic() + 20
        while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip()):
            assert time.monotonic() < end
            time.sleep(0.02)
        build.send_signal(signal.SIGINT)
        assert build.wait(10) == 130
    pid, end = int((tmp_path / "pid").read_text()), time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
