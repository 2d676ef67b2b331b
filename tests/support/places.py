"""Containers as docker, podman and Kubernetes start them, with nothing allowed besides, and pybuild in each."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from daemons import LIMITS, dockerd, program, remove_cgroups, say
from place import MEMORY, SLEEP, Place, own_mounts, root_archive, volume_options
from pods import Pod, no_mounts, pod_place


@contextmanager
def _docker(folder: Path, work: Path, network: str) -> Iterator[Place]:
    """``docker run``, as it is."""
    tools = {name: program(name) for name in ("docker", "dockerd")}
    try:
        with dockerd(tools, folder) as client:
            subprocess.run(
                [*client, "import", "-", "place"], input=root_archive(), check=True, capture_output=True
            )
            memory = f"--tmpfs={MEMORY}:exec"
            run = [*client, "run", f"--network={network}", memory, *volume_options(work)]
            say([*run, "-d", "--name=place", "place", *SLEEP])
            try:
                anew = [*run, "--name=first", "place"]
                yield Place("docker", [*client, "exec", "-i", "place"], work, anew=anew)
            finally:
                say([*client, "rm", "-f", "place"])
    finally:
        # The daemon leaves this machine's own network namespace mounted.
        subprocess.run(["umount", folder / "exec/netns/default"], capture_output=True, check=False)
        remove_cgroups("docker")


@contextmanager
def _podman(folder: Path, work: Path, network: str, runtime: str) -> Iterator[Place]:
    """``podman run``, as it is."""
    with ExitStack() as stack:
        inside = stack.enter_context(own_mounts())
        client = [
            *inside,
            program("podman"),
            f"--root={folder}/r",
            f"--runroot={folder}/n",
            f"--runtime={runtime}",
        ]
        client += ["--cgroup-manager=cgroupfs", "--events-backend=none", f"--tmpdir={folder}/t"]
        subprocess.run(
            [*client, "import", "-", "place"], input=root_archive(), check=True, capture_output=True
        )
        options = [f"--network={network}", f"--tmpfs={MEMORY}:exec", *LIMITS]
        stack.callback(remove_cgroups, "libpod_parent")
        stack.callback(_wait_for, folder)
        run = [*client, "run", *options, *volume_options(work)]
        say([*run, "-d", "--name=place", "place", *SLEEP])
        stack.callback(say, [*client, "rm", "-af", "-t", "0"])
        yield Place(
            f"podman-{runtime}", [*client, "exec", "-i", "place"], work, anew=[*run, "--name=first", "place"]
        )


def _wait_for(folder: Path) -> None:
    """Wait for what podman starts at a container's end, to clean up."""
    end = time.monotonic() + 10
    while any(os.fsencode(folder) in data for data in _command_lines()):
        assert time.monotonic() < end, f"podman does not end in {folder}"
        time.sleep(0.05)


def _command_lines() -> Iterator[bytes]:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                yield (entry / "cmdline").read_bytes()


PODS = {
    "pod": Pod(),
    "pod-read-only": Pod(read_only_root=True, store="/volume/store"),
    "pod-user-1000": Pod(user=1000),
    "pod-own-users": Pod(seccomp=None, own_users=True),
    "no-mounts": Pod(seccomp=no_mounts),
}
# The places a build works in, and how its steps are isolated there.
CHOSEN = {
    "docker": "chroot",
    "podman-crun": "namespaces",
    "podman-runc": "namespaces",
    "pod": "chroot",
    "pod-read-only": "chroot",
    "pod-own-users": "namespaces",
    "no-mounts": "chroot",
}
REFUSING = ("pod-user-1000",)


@contextmanager
def opened(name: str, network: str = "none") -> Iterator[Place]:
    """The place *name*, for as long as the block lasts. *network* is "none", or "host" for this machine's."""
    folder = Path(tempfile.mkdtemp(prefix="p", dir="/dev/shm"))  # podman takes no long paths
    folder.chmod(0o755)
    work = folder / "w"
    work.mkdir()
    try:
        runtime = name.removeprefix("podman-")
        if name == "docker":
            made = _docker(folder, work, network)
        elif runtime != name:
            made = _podman(folder, work, network, runtime)
        else:
            made = pod_place(folder, work, network, name, PODS[name])
        with made as place:
            yield place
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)
