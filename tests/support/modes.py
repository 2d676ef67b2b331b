"""The ways to run pybuild that the tests of confinement go through, and what they want of a step in each."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from confinement import SINGLE_ID, Report, mounts, put_probe, summary
from harness import Pybuild, Tree
from rootless import PREFIX, User, command

NONE = "--network=none"
CANARY = "pybuild-canary-" + hashlib.sha256(str(os.getpid()).encode()).hexdigest()[:16]
MODES = ("root", "rootless-ranges", "rootless-single")
# And root with a store that cannot be mounted with mapped ids: its steps have the machine's own ids.
EVERY_MODE = pytest.mark.parametrize("mode", [*MODES, "root-unmapped"], indirect=True)


@dataclass(frozen=True)
class Mode:
    """A way to run pybuild, on a store with busybox in it."""

    name: str
    pybuild: Pybuild
    user: User | None = None


class Reporter(Protocol):
    def __call__(self, mode: Mode, network: str = "none", user: str = "") -> Report: ...


def overrides(mode: Mode) -> dict[str, set[int]]:
    """What the table says otherwise in this mode."""
    out: dict[str, set[int]] = {}
    if mode.name == "rootless-single":
        out |= SINGLE_ID
    if mode.name == "root-unmapped":  # ramfs has no attributes
        out |= {"set_attribute": {errno.ENOTSUP}, "set_capability": {errno.ENOTSUP}}
        # Root there owns the machine's devices, which are mounted read-only, and some files, which are masked.
        out |= {"chmod_null": {errno.EROFS}, "touch_null": {errno.EROFS}, "write /proc/mtrr": {errno.EPERM}}
        out |= {"write /proc/slabinfo": {0}}
    if mode.user is None and _own_capabilities() >> 24 & 1:
        # What root with CAP_SYS_RESOURCE has set is the least there can be; what anybody else has set, is not.
        out["oom_less"] = {errno.EACCES}
    return out


def wanted_summary(mode: Mode) -> dict[str, Any]:
    out = summary()
    if mode.name == "rootless-single":
        # The kernel lets nobody leave a group who has but one id. What she is in besides has no name here.
        out["Groups"] = "65534 0"
    return out


def wanted_mounts(mode: Mode) -> dict[str, str]:
    out = mounts()
    if mode.name == "root-unmapped":  # what only the machine's root may read is masked, too
        names = ("kpagecgroup", "kpagecount", "kpageflags", "pagetypeinfo", "slabinfo", "vmallocinfo")
        out |= {f"/proc/{name}": "device" for name in names if Path("/proc", name).exists()}
        out |= {"/sys/kernel/slab": out["/proc/acpi"]} if Path("/sys/kernel/slab").exists() else {}
    return out


def _own_capabilities() -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split("CapEff:")[1].split()[0], 16)


def look(mode: Mode, script: str, *options: str, lines: str = "", files: Tree | None = None) -> str:
    """What *script* prints in a step of busybox, after *lines*."""
    text = f"FROM busybox\n{lines}\nCOPY look /look\nRUN sh /look > /out 2>&1\n"
    image = mode.pybuild.build(text, {"look": script, **(files or {})}, NONE, "--no-cache", *options)
    return image.read("out").decode("utf-8", "replace")


def printed(progress: str) -> list[str]:
    """The lines that steps printed, as plain progress has them."""
    return re.findall(r"^#\d+ \d+\.\d+ (.*)$", progress, re.MULTILINE)


def host_values() -> dict[str, str]:
    """What an escape would change: settings of this machine, and some of its files.

    Users that another test process makes at the same time do not count.
    """
    paths = [
        *(f"/proc/sys/kernel/{name}" for name in ("core_pattern", "modprobe", "hotplug", "panic", "hostname")),
        *(f"/proc/sys/{name}" for name in ("vm/overcommit_memory", "fs/file-max", "net/core/somaxconn")),
        "/sys/kernel/uevent_helper", "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/fs/cgroup/memory/release_agent", "/etc/passwd", "/etc/hosts", "/etc/resolv.conf",
    ]  # fmt: skip
    values = {path: Path(path).read_text() for path in paths if os.path.exists(path)}
    users = values["/etc/passwd"].splitlines()
    return {**values, "/etc/passwd": "\n".join(line for line in users if not line.startswith(PREFIX))}


def with_probe(mode: Mode, probe: Path, text: str, files: Tree | None = None) -> Path:
    """A context of *text* that has the probe."""
    context = mode.pybuild.context(text, files)
    put_probe(context, probe)
    return context


def measured(
    pybuild: Pybuild, *args: str | Path, env: dict[str, str] | None = None
) -> tuple[int, str, float, int]:
    """Run pybuild: its exit code, progress, seconds, and the most memory it or a child had, in bytes."""
    words, environment = command(pybuild, *args, env=env)
    # By a small process: what this large one is counts for its own children, too.
    code = (
        "import os, subprocess, sys\nrun = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
        "_pid, status, usage = os.wait4(run.pid, 0)\nprint(os.waitstatus_to_exitcode(status), usage.ru_maxrss)"
    )
    started = time.monotonic()
    with tempfile.TemporaryFile() as said:
        done = subprocess.run(
            [sys.executable, "-c", code, *words], env=environment, cwd=pybuild.work,
            stdout=subprocess.PIPE, stderr=said, text=True, check=True,
        )  # fmt: skip
        said.seek(0)
        text = said.read().decode("utf-8", "backslashreplace")
    status, peak = map(int, done.stdout.split())
    return status, text, time.monotonic() - started, peak << 10
