"""Ordinary users and a server; and after every test: nothing left mounted, running, or wired."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import ZYGOTE
from rootless import Installation, installed
from servers import Misbehaving


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    """Ordinary users, and a copy of the program for them."""
    with installed() as made:
        yield made


@pytest.fixture
def web() -> Iterator[Misbehaving]:
    """A server that gives whatever a test tells it to."""
    server = Misbehaving()
    yield server
    server.close()


@pytest.fixture(scope="session")
def stale() -> set[str]:
    """Links and cgroups that were there before the first test, or that a test was blamed for."""
    return _links() | _cgroups()


@pytest.fixture(autouse=True)
def nothing_is_left(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, stale: set[str]
) -> Iterator[None]:
    """Fail a test that leaves mounts, links, cgroups or processes of a build on the machine.

    Another test process has pid and mount namespaces of its own (support/alone).
    """
    own = str(tmp_path_factory.getbasetemp())
    marked = b"PYBUILD_TEST" in request.path.read_bytes()
    mounts, processes = _mounts(own), set(os.listdir("/proc"))
    yield
    end = time.monotonic() + 5
    while True:
        new = set(os.listdir("/proc")) - processes
        left = {
            *(_mounts(own) - mounts),
            *((_links() | _cgroups()) - stale),
            *_processes(new, f"PYBUILD_ROOT={own}/".encode(), marked),
        }
        if not left or time.monotonic() > end:
            break
        time.sleep(0.05)
    stale |= left
    assert not left, f"left behind: {sorted(left)}"


def _mounts(own: str) -> set[str]:
    """Mounts of builds; *own* is the folder of this test process."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    mounts = {line.split(" ", 4)[4] for line in lines}
    return {
        f"mount {mount}"
        for mount in mounts
        if own in mount or ("pybuild" in mount and "/dev/shm/pybuild" not in mount)
    }


def _links() -> set[str]:
    """Network interfaces of steps that do not run."""
    names = os.listdir("/sys/class/net")
    return {f"link {link}" for link in names if link.startswith("pyb") and not _is_used_network(link)}


def _cgroups() -> set[str]:
    """Cgroups of builds in this pid namespace that do not run."""
    folders = (folder for folder, *_ in os.walk("/sys/fs/cgroup") if "pybuild" in os.path.basename(folder))
    return {f"cgroup {path}" for path in folders if _is_left(path)}


def _is_used_network(link: str) -> bool:
    """Whether a build that runs holds the number of a step's link (builder.runtime.network.setup)."""
    number = link.removeprefix("pyb").partition("v")[0]
    with contextlib.suppress(FileNotFoundError), open(f"/run/pybuild/net{number}") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _is_left(path: str) -> bool:
    """Whether a cgroup is of no process that runs; those of other pid namespaces are another's concern."""
    match = re.match(r"pybuild-(\d+)-(\d+)-", os.path.basename(path))
    space = re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
    if match is None:
        return True
    return match[1] == space and not os.path.exists(f"/proc/{match[2]}")


def _processes(new: set[str], stores: bytes, marked: bool) -> Iterator[str]:
    """Our processes of those in *new*, and what runs in the user namespaces they made.

    With *marked*, steps of the test say so in their environment.
    """
    own = os.readlink("/proc/self/ns/user")
    for name in filter(str.isdigit, new):
        if int(name) == ZYGOTE.pid:
            continue
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
                yield f"process {name}: {command.decode(errors='replace')}"
        except OSError:
            continue  # it ended
