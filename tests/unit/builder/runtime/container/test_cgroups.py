"""What is written to a group, what is read of it, and how it ends, on imitations of machines."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cgroup_machines import (
    mixed,
    v1,
    v2_service,
    v2_top,
)
from fake_cgroups import ALL, FakeKernel, folders, limits_by, open_groups, places

from builder.runtime.errors import CgroupError

V2_WRITES = [
    ("memory.max", b"1073741824"),
    ("memory.swap.max", b"0"),
    ("memory.oom.group", b"1"),
    ("cpu.max", b"150000 100000"),
    ("cpuset.cpus", b"0-1"),
    ("pids.max", b"9"),
]
V1_WRITES = [
    ("memory.limit_in_bytes", b"1073741824"),
    ("memory.memsw.limit_in_bytes", b"1073741824"),
    ("cpu.cfs_period_us", b"100000"),
    ("cpu.cfs_quota_us", b"150000"),
    ("cpuset.mems", b"0"),
    ("cpuset.cpus", b"0-3"),
    ("cpuset.cpus", b"0-1"),
    ("pids.max", b"9"),
]


def written(kernel: FakeKernel) -> list[tuple[str, bytes]]:
    """What was written to the files of groups called g."""
    return [(Path(name).name, data) for name, data in kernel.writes if Path(name).parent.name == "g"]


@pytest.mark.parametrize(
    "without", ["", "memory.swap.max memory.memsw.limit_in_bytes"], ids=["swap", "no swap"]
)
@pytest.mark.parametrize("version", [1, 2])
def test_files(kernel: FakeKernel, version: int, without: str) -> None:
    """A kernel may not account for swap; then there is nothing to set for it."""
    kernel.lacks = set(without.split())
    if version == 1:
        for name in ALL.split():
            kernel.mount_v1(name, name, "/")
    else:
        kernel.mount_v2("", ALL, "/")
    kernel.find().make(b"g", limits_by(ALL.split()))
    expected = V1_WRITES if version == 1 else V2_WRITES
    assert written(kernel) == [write for write in expected if write[0] not in kernel.lacks]


@pytest.mark.parametrize(
    ("setup", "file", "limit", "word"),
    [
        (v1, "memory.memsw.limit_in_bytes", "memory", "the memory"),
        (v1, "cpu.cfs_quota_us", "cpu", "the CPU time"),
        (v1, "cpuset.mems", "cpuset", "the CPUs"),
        (v1, "pids.max", "pids", "the processes"),
        (v2_service, "memory.max", "memory", "the memory"),
        (v2_service, "cpu.max", "cpu", "the CPU time"),
        (v2_service, "cpuset.cpus", "cpuset", "the CPUs"),
        (v2_service, "cgroup.subtree_control", "pids", "the processes"),
        (mixed, "cpuset.cpus", "cpuset", "the CPUs"),
    ],
)
def test_refused_by_the_kernel(
    kernel: FakeKernel, setup: Callable[[FakeKernel], None], file: str, limit: str, word: str
) -> None:
    """The message says what cannot be limited and why, and nothing is left of the group."""
    setup(kernel)
    before = folders(kernel)
    kernel.errors[file] = errno.EINVAL
    with pytest.raises(CgroupError) as caught:
        kernel.find().make(b"g", limits_by([limit, "memory"]))
    said = str(caught.value)
    assert said.startswith("cannot limit ") and word in said.split(" of a step: ")[0], said
    assert said.endswith(f"/{file}: Invalid argument"), said
    assert folders(kernel) == before
    assert open_groups(kernel) == []


def test_name_taken(kernel: FakeKernel) -> None:
    """A limit cannot be set on a group of somebody else's; without one there is just no group."""
    v2_top(kernel)
    hierarchies = kernel.find()
    kernel.group("g")
    with pytest.raises(CgroupError, match=r"cannot limit the memory of a step: making .*/g: File exists"):
        hierarchies.make(b"g", {"memory": 1})
    group = hierarchies.make(b"g", {})
    assert group.fd == -1
    group.close()
    assert places(kernel) == ["."]


def test_enter(kernel: FakeKernel) -> None:
    mixed(kernel)
    group = kernel.find().make(b"g", limits_by(["memory", "cpuset"]))
    kernel.writes.clear()
    group.enter(4711)
    assert kernel.writes == [("cpuset/g/cgroup.procs", b"4711")]
    group.enter(4711, into_v2=True)
    assert kernel.writes[1:] == [("cpuset/g/cgroup.procs", b"4711"), ("unified/g/cgroup.procs", b"4711")]
    kernel.errors["cgroup.procs"] = errno.ESRCH
    with pytest.raises(CgroupError, match=r"putting a step into the cgroup .*/cpuset/g: No such process"):
        group.enter(4711)


def test_usage_v2(kernel: FakeKernel) -> None:
    v2_top(kernel)
    group = kernel.find().make(b"g", {})
    assert vars(group.usage()) == {"peak": 0, "cpu_seconds": 0.0, "oom_kills": -1}
    group.close()
    group = kernel.find().make(b"g", {"memory": 1})
    (kernel.root / "g/memory.peak").write_text("12288\n")
    (kernel.root / "g/memory.events").write_text("low 0\noom 3\noom_kill 2\noom_group_kill 1\n")
    (kernel.root / "g/cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n")
    assert vars(group.usage()) == {"peak": 12288, "cpu_seconds": 1.5, "oom_kills": 2}


def test_usage_v1(kernel: FakeKernel) -> None:
    v1(kernel)
    empty = kernel.find().make(b"g", {})
    assert vars(empty.usage()) == {"peak": 0, "cpu_seconds": -1.0, "oom_kills": -1}
    group = kernel.find().make(b"g", limits_by(["memory", "cpu"]))
    memory = kernel.root / "memory/jobs/7/g"
    (memory / "memory.max_usage_in_bytes").write_text("12288\n")
    (memory / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    (kernel.root / "cpu,cpuacct/g/cpuacct.usage").write_text("1500000999\n")
    assert vars(group.usage()) == {"peak": 12288, "cpu_seconds": 1.5, "oom_kills": 2}


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("setup", [v2_top, v1])
def test_kill_by_number(
    kernel: FakeKernel, sleeper: subprocess.Popen[bytes], setup: Callable[[FakeKernel], None]
) -> None:
    """Without cgroup.kill; 0 stands for processes of other pid namespaces, to kill it would be suicide."""
    setup(kernel)
    kernel.lacks.add("cgroup.kill")
    group = kernel.find().make(b"g", {"pids": 5})
    (kernel.root / places(kernel)[0] / "g/cgroup.procs").write_text(f"0\n{os.getpid()}\n{sleeper.pid}\n0\n")
    group.kill()
    assert sleeper.wait(5) == -9


def test_kill_on_v2(kernel: FakeKernel) -> None:
    v2_top(kernel)
    group = kernel.find().make(b"g", {})
    group.kill()
    assert kernel.writes == [("g/cgroup.kill", b"1")]


def test_close_kills(kernel: FakeKernel) -> None:
    v2_top(kernel)
    group = kernel.find().make(b"g", {})
    (kernel.root / "g/cgroup.procs").write_text("4711\n")
    group.close()
    assert places(kernel) == []


def test_close_gives_up(kernel: FakeKernel) -> None:
    """A group whose processes cannot be killed is left for the next sweep."""
    v1(kernel)
    group = kernel.find().make(b"g", {"memory": 1, "pids": 1})
    for name in ("memory/jobs/7", "pids"):
        (kernel.root / name / "g/cgroup.procs").write_text("0\n")
    begin = time.monotonic()
    group.close()
    assert 0.4 < time.monotonic() - begin < 1
    assert places(kernel) == ["memory/jobs/7", "pids"]
