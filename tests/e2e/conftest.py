"""After every test: nothing left mounted, running, or wired."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
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
    """A census of what a build makes on the machine, before and after.

    What belongs to a build of another test process that is running is not counted (shards.py).
    """
    if request.path.name in FREE:
        yield
        return
    own = str(tmp_path_factory.getbasetemp())
    marked = b"PYBUILD_TEST" in request.path.read_bytes()
    before = _census(own, marked)
    yield
    end = time.monotonic() + 5
    while (left := _census(own, marked) - before) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left, f"left behind: {sorted(left)}"


def _census(own: str, marked: bool) -> set[str]:
    """*own* is the folder of this test process; with *marked* its steps say so in their environment."""
    mounts = {line.split(" ", 4)[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    links = os.listdir("/sys/class/net")
    cgroups = {folder for folder, *_ in os.walk("/sys/fs/cgroup") if "pybuild" in os.path.basename(folder)}
    return {
        *(f"mount {mount}" for mount in mounts if own in mount),
        *(f"mount {mount}" for mount in mounts if "pybuild" in mount and "/dev/shm/pybuild" not in mount),
        *(f"link {link}" for link in links if link.startswith("pyb") and not _is_used_network(link)),
        *(f"cgroup {path}" for path in cgroups if not _is_used_cgroup(path)),
        *(
            f"process {pid}: {command}"
            for pid, command in _processes(f"PYBUILD_ROOT={own}/".encode(), marked)
        ),
    }


def _is_used_network(link: str) -> bool:
    """Whether a build that runs holds the number of a step's link (builder.runtime.network.setup)."""
    number = link.removeprefix("pyb").partition("v")[0]
    with contextlib.suppress(FileNotFoundError), open(f"/run/pybuild/net{number}") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _is_used_cgroup(path: str) -> bool:
    """Whether the process that a cgroup is named for still runs; of other pid namespaces nobody knows."""
    match = re.match(r"pybuild-(\d+)-(\d+)-", os.path.basename(path))
    space = re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
    return match is not None and match[1] == space and os.path.exists(f"/proc/{match[2]}")


def _processes(stores: bytes, marked: bool) -> Iterator[tuple[int, str]]:
    """Our processes and what runs in the user namespaces they made."""
    own = os.readlink("/proc/self/ns/user")
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/environ", "rb", buffering=0) as file:
                environment = file.readall() or b""
            if not environment:
                continue  # a kernel thread
            ours = stores in environment
            if marked and not ours and b"PYBUILD_TEST=1" in environment:
                ours = os.readlink(f"/proc/{name}/ns/user") != own
            if ours:
                command = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ")
                yield int(name), command.decode(errors="replace")
        except OSError:
            continue  # it ended
