"""The machine the benchmark sees: namespaces and a file system of its own, and what it is made of.

The runner lives in its own mount, process and network namespaces. Whatever way it ends, the
kernel then kills the daemons it started and drops its mounts; the image of its file system is
unlinked as soon as it is mounted. So nothing has to be cleaned up but an empty folder and the
control groups of the daemons, which are the outer process's work.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

CGROUP = "pybuild-benchmark"
_CGROUPS = Path("/sys/fs/cgroup")
_CGROUP_PATIENCE = 5.0
_FILE_SYSTEM_BYTES = 16 << 30
# State of container tools that would otherwise be shared with the host.
_PRIVATE = ("/run", "/var/lib/cni", "/var/lib/containers")


def inside_namespaces(script: str, arguments: Sequence[str], where: str) -> int:
    """Run *script* again in namespaces of its own; returns its exit code.

    The folder it may mount on is given to it with ``--inside``.
    """
    folder = Path(tempfile.mkdtemp(prefix="pybuild-benchmark.", dir=where))
    unshare = ["unshare", "--mount", "--pid", "--net", "--cgroup", "--fork", "--kill-child", "--mount-proc"]
    command = ["setpriv", "--pdeathsig", "KILL", *unshare]
    try:
        process = subprocess.Popen(
            [*command, sys.executable, script, "--inside", str(folder), *arguments], env=environment()
        )
        try:
            return process.wait()
        finally:
            process.kill()
            process.wait()
    finally:
        _remove_cgroups()
        for path in (*folder.iterdir(), folder):
            path.unlink() if path.is_file() else path.rmdir()


def environment() -> dict[str, str]:
    """The environment without what would distort Python's start."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def _remove_cgroups() -> None:
    """Remove the daemons' control groups, which are busy until the last process is quite gone."""
    for top in (*_CGROUPS.glob(f"*/{CGROUP}"), *_CGROUPS.glob(CGROUP)):
        for folder, _, _ in os.walk(top, topdown=False):
            end = time.monotonic() + _CGROUP_PATIENCE
            while os.path.isdir(folder) and time.monotonic() < end:
                try:
                    os.rmdir(folder)
                except OSError:
                    time.sleep(0.05)


def own_file_system(folder: Path) -> Path:
    """Mount a fresh journalled ext4 under *folder*; call it inside the namespaces only.

    Creating files right after deleting many takes seconds on an ext4 without a journal, for
    every tool alike; so the contexts, the stores and the data of the daemons all live here.
    """
    for path in _PRIVATE:
        if os.path.isdir(path):
            say("mount", "-t", "tmpfs", "none", path)
    say("ip", "link", "set", "lo", "up")
    image = folder / "image"
    with open(image, "xb") as file:
        file.truncate(_FILE_SYSTEM_BYTES)
    say("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
    mounted = folder / "mounted"
    mounted.mkdir()
    loop = say("losetup", "--find", "--show", "--direct-io=on", str(image)).strip()
    say("mount", loop, str(mounted))
    say("losetup", "--detach", loop)  # takes effect when it is unmounted
    image.unlink()
    return mounted


def say(*command: str, settings: Mapping[str, str] | None = None) -> str:
    """Run a command that has to succeed; returns what it printed."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=settings or environment())
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def description() -> str:
    """Processor, memory, kernel and interpreter in one line."""
    with open("/proc/cpuinfo", encoding="ascii") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    python = sys.version.split()[0]
    return (
        f"{len(models)} cores {models[0] if models else 'unknown'}, {memory:.0f} GiB, "
        f"Linux {os.uname().release}, Python {python}, "
        "journalled ext4 on a loop device with direct I/O"
    )
