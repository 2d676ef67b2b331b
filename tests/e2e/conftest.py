"""After every test: nothing left mounted, running, or wired."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rootless import Installation, installed
from shards import FREE


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    """Ordinary users, and a copy of the program for them."""
    with installed() as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """A census of what a build makes on the machine, before and after."""
    if request.path.name in FREE:
        yield
        return
    stores = f"PYBUILD_ROOT={tmp_path_factory.getbasetemp()}".encode()
    before = _census(stores)
    yield
    end = time.monotonic() + 5
    while (left := _census(stores) - before) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left, f"left behind: {sorted(left)}"


def _census(stores: bytes) -> set[str]:
    mounts = {line.split(" ", 4)[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    links = set(subprocess.check_output(["ip", "-br", "link"], text=True).split("\n"))
    cgroups = {folder for folder, *_ in os.walk("/sys/fs/cgroup") if "pybuild" in os.path.basename(folder)}
    return {
        *(f"mount {mount}" for mount in mounts if "pybuild" in mount),
        *(f"link {link}" for link in links if "pybuild" in link),
        *(f"cgroup {path}" for path in cgroups),
        *(f"process {pid}: {command}" for pid, command in _processes(stores)),
    }


def _processes(stores: bytes) -> Iterator[tuple[int, str]]:
    """Our processes and what runs in the user namespaces they made."""
    own = os.readlink("/proc/self/ns/user")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environment = (entry / "environ").read_bytes()
            elsewhere = os.readlink(entry / "ns/user") != own
        except OSError:
            continue  # it ended, or is a kernel thread
        if stores in environment or (elsewhere and b"PYBUILD_TEST=1" in environment):
            yield int(entry.name), command
