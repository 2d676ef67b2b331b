"""What other tools make of our images: skopeo, umoci, podman, docker, containerd."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import dockerd
from harness import Pybuild, remove_cgroup
from oci import read_image

pytestmark = [pytest.mark.e2e, pytest.mark.interop]

DOCKERFILE = """\
FROM busybox
ENV greeting=hello
COPY --chown=5:6 d /d
RUN mkdir /o && echo old > /o/x && ln /o/x /o/y && chmod 4755 /o/x
RUN rm -r /o && mkdir /o && echo new > /o/z && rm /d/gone
WORKDIR /d
LABEL of=pybuild
CMD ["sh", "-c", "echo $greeting; cat /o/* f; ls -ln f | awk '{print $3, $4}'; ls; ls /o"]
"""
SAYS = "hello\nnew\nfive 5 6 f l z".split()


@pytest.fixture(scope="module")
def archives(shared_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One image as an OCI archive (skopeo, umoci) and as what ``save`` writes (docker, podman)."""
    work = tmp_path_factory.mktemp("interop")
    made = Pybuild(shared_store, work)
    context = made.context(DOCKERFILE, {"d": {"f": "five ", "gone": "x", "l": "-> f"}})
    made("-t", "interop:1", "--network=none", "-o", f"type=oci,dest={work}/oci.tar", context).ok()
    made("save", "interop:1", "-o", work / "save.tar").ok()
    return {"oci": work / "oci.tar", "save": work / "save.tar"}


def run(*command: str | Path, **env: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **env}, check=False, timeout=120
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("kind", ["oci-archive:{oci}", "oci-archive:{save}", "docker-archive:{save}"])
def test_skopeo(tools: dict[str, str], archives: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """It inspects and copies, checking every digest on the way."""
    source = kind.format(**archives)
    shown = json.loads(run(tools["skopeo"], "inspect", source))
    assert shown["Labels"] == {"of": "pybuild"} and "greeting=hello" in shown["Env"]
    run(tools["skopeo"], "copy", source, f"dir:{tmp_path}/copy")
    run(tools["skopeo"], "copy", source, f"oci:{tmp_path}/layout:x")


def test_umoci(tools: dict[str, str], archives: dict[str, Path], tmp_path: Path) -> None:
    """It unpacks what we packed into the same tree."""
    run(tools["skopeo"], "copy", f"oci-archive:{archives['oci']}", f"oci:{tmp_path}/layout:x")
    run(tools["umoci"], "unpack", "--image", f"{tmp_path}/layout:x", f"{tmp_path}/bundle")
    root = tmp_path / "bundle/rootfs"
    expected = read_image(archives["oci"]).tree()
    found = {str(path.relative_to(root)) for path in root.rglob("*")}
    assert found == set(expected)
    assert (root / "o/z").read_text() == "new\n"
    assert ((root / "d/f").stat().st_uid, (root / "d/f").stat().st_gid) == (5, 6)


@pytest.mark.parametrize("kind", ["oci", "save"])
def test_podman(tools: dict[str, str], archives: dict[str, Path], kind: str) -> None:
    """It loads and runs."""
    work = tempfile.mkdtemp(prefix="p", dir="/dev/shm")  # it takes no long paths
    podman = [
        tools["podman"],
        f"--root={work}/root",
        f"--runroot={work}/run",
        "--cgroup-manager=cgroupfs",
        "--runtime=runc",
    ]
    try:
        loaded = run(*podman, "load", "-q", "-i", archives[kind])
        assert "interop:1" in loaded
        limits = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000")  # raising them may be forbidden
        said = run(*podman, "run", "--rm", "--network=none", *limits, "interop:1")
        assert said.split() == SAYS
    finally:
        subprocess.run([*podman, "unmount", "-a"], capture_output=True, check=False)
        subprocess.run(["umount", f"{work}/root/overlay"], capture_output=True, check=False)
        subprocess.run(["rm", "-rf", "--one-file-system", work], check=True)
        for folder, *_ in os.walk("/sys/fs/cgroup", topdown=False):
            if "libpod_parent" in folder:
                remove_cgroup(Path(folder))


@pytest.fixture
def docker(tools: dict[str, str], tmp_path: Path) -> Iterator[list[str]]:
    with dockerd(tools, tmp_path) as client:
        yield client


def test_docker(docker: list[str], archives: dict[str, Path]) -> None:
    """It loads (T92), shows the same image, and runs it."""
    assert "interop:1" in run(*docker, "load", "-q", "-i", archives["save"])
    config = read_image(archives["oci"]).config
    shown = json.loads(run(*docker, "image", "inspect", "interop:1"))[0]
    assert shown["RootFS"]["Layers"] == config["rootfs"]["diff_ids"]
    history = run(*docker, "history", "--no-trunc", "--format={{.CreatedBy}}", "interop:1").splitlines()
    assert history[0].startswith('CMD ["sh" "-c"') and "LABEL of=pybuild" in history
    said = run(*docker, "run", "--rm", "--network=none", "interop:1")
    assert said.split() == SAYS


def test_containerd(tools: dict[str, str], archives: dict[str, Path], tmp_path: Path) -> None:
    """It imports and unpacks: what Kubernetes nodes do."""
    config = tmp_path / "containerd.toml"
    config.write_text(
        f'version = 2\nroot = "{tmp_path}/root"\nstate = "{tmp_path}/state"\n[grpc]\naddress = "{tmp_path}/c.sock"\n'
    )
    with (tmp_path / "containerd.log").open("wb") as log:
        daemon = subprocess.Popen([tools["containerd"], "-c", config], stdout=log, stderr=log)
    ctr = [tools["ctr"], "-a", f"{tmp_path}/c.sock"]
    try:
        end = time.monotonic() + 60
        while subprocess.run([*ctr, "version"], capture_output=True, check=False).returncode:
            assert time.monotonic() < end and daemon.poll() is None, (
                tmp_path / "containerd.log"
            ).read_text()[-3000:]
            time.sleep(0.2)
        for kind in ("oci", "save"):
            run(*ctr, "image", "import", "--snapshotter=native", archives[kind])
            assert "docker.io/library/interop:1" in run(*ctr, "image", "list", "-q")
            run(*ctr, "image", "remove", "docker.io/library/interop:1")
    finally:
        daemon.terminate()
        daemon.wait(timeout=60)


def test_images_of_others(
    tools: dict[str, str], archives: dict[str, Path], pybuild: Pybuild, tmp_path: Path
) -> None:
    """We load what skopeo writes, in each of its formats, and build on it."""
    for kind, target in (
        ("docker", f"docker-archive:{tmp_path}/a.tar:other:1"),
        ("oci", f"oci-archive:{tmp_path}/b.tar:other:1"),
    ):
        run(tools["skopeo"], "copy", f"oci-archive:{archives['oci']}", target)
        assert "other:1" in pybuild("load", tmp_path / ("a.tar" if kind == "docker" else "b.tar")).ok().out
        image = pybuild.build("FROM other:1\nRUN echo more > /more\n", None, "--network=none")
        assert image.read("o/z") == b"new\n" and "o/x" not in image.tree()
