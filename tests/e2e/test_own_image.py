"""The image of pybuild, run by docker and podman."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import LIMITS, dockerd, remove_cgroups
from harness import PYBUILD, Pybuild
from places import opened

pytestmark = pytest.mark.e2e

NONE = "--network=none"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def image_of_pybuild(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of pybuild's own image, built from the sample by pybuild in a container of docker's defaults."""
    work = tmp_path_factory.mktemp("self")
    made = Pybuild(work / "store", work)
    path = f"{Path(PYBUILD).parent}:{os.environ['PATH']}"
    subprocess.run(
        [ROOT / "samples/make-bases"], env=made.environment({"PATH": path}), check=True, capture_output=True
    )
    with opened("docker", network="host") as place:
        base, archive = place.work / "base.tar", place.work / "pybuild.tar"
        made("save", "debian:bookworm-slim", "-o", base).ok()
        place("load", base).ok()
        sample = ROOT / "samples/pybuild/Dockerfile"
        done = place(
            "-f", sample, "-t", "pybuild", "-o", f"type=docker,dest={archive}", ROOT, timeout=600
        ).ok()
        assert "isolated by chroot" in done.err
        (work / "pybuild.tar").write_bytes(archive.read_bytes())
    return work / "pybuild.tar"


INSIDE = """
pybuild load /mnt/busybox.tar
pybuild -t inner --build-arg SOURCE_DATE_EPOCH=1600000000 -o /mnt/inner.tar /mnt/context
git --version
"""


@pytest.mark.interop
@pytest.mark.parametrize("name", ["docker", "podman"])
def test_own_image(
    tools: dict[str, str],
    image_of_pybuild: Path,
    busybox: Path,
    pybuild: Pybuild,
    tmp_path: Path,
    name: str,
) -> None:
    """The image builds another as a CI job starts it: defaults, the entrypoint cleared, a script for a shell."""
    text = "FROM busybox\nRUN id -u > /id && chown 5:6 /id && touch -d @1 /id /\nCOPY f /f\n"
    outer = pybuild.context(text, {"f": "1"})
    subprocess.run(["touch", "-d", "@1", outer / "f"], check=True)
    work = tmp_path / "inside"
    work.mkdir()
    subprocess.run(["cp", "-a", outer, work / "context"], check=True)
    (work / "busybox.tar").write_bytes(busybox.read_bytes())
    with CLIENTS[name](tools) as client:
        subprocess.run([*client, "load", "-q", "-i", image_of_pybuild], check=True, capture_output=True)
        limits = LIMITS if name == "podman" else ()  # raising them may be forbidden
        command = [*client, "run", "--rm", "--network=none", *limits, "-v", f"{work}:/mnt", "--entrypoint="]
        done = subprocess.run(
            [*command, "pybuild", "sh", "-ec", INSIDE],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    assert done.returncode == 0 and "git version" in done.stdout, done.stderr
    from oci import read_image

    expected = pybuild.export(outer, NONE, "--no-cache", "--build-arg", "SOURCE_DATE_EPOCH=1600000000")
    assert read_image(work / "inner.tar").config["rootfs"] == expected.config["rootfs"]


@contextlib.contextmanager
def docker_client(tools: dict[str, str]) -> Iterator[list[str]]:
    short = Path(tempfile.mkdtemp(prefix="d", dir="/dev/shm"))  # paths of sockets are short
    try:
        with dockerd(tools, short) as client:
            yield client
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", short], check=True)


@contextlib.contextmanager
def podman_client(tools: dict[str, str]) -> Iterator[list[str]]:
    place = tempfile.mkdtemp(prefix="p", dir="/dev/shm")  # it takes no long paths
    podman = [tools["podman"], f"--root={place}/root", f"--runroot={place}/run"]
    podman += ["--cgroup-manager=cgroupfs", "--runtime=runc"]
    try:
        yield podman
    finally:
        subprocess.run([*podman, "volume", "prune", "-f"], capture_output=True, check=False)
        subprocess.run([*podman, "unmount", "-a"], capture_output=True, check=False)
        subprocess.run(["umount", f"{place}/root/overlay"], capture_output=True, check=False)
        subprocess.run(["rm", "-rf", "--one-file-system", place], check=True)
        remove_cgroups("libpod_parent")


CLIENTS = {"docker": docker_client, "podman": podman_client}
