"""Whether limits work, in the cgroups of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_cgroups import limits_by

from builder.runtime.container.cgroups import Group, Limits
from builder.runtime.container.hierarchies import Hierarchies, find
from builder.runtime.errors import CgroupError


@pytest.fixture
def real() -> Iterator[Hierarchies]:
    """The cgroups of this machine; at the end no group of this process is left in them."""
    if os.geteuid():
        pytest.skip("needs root to make cgroups")
    found = find()
    yield found
    prefix = os.fsdecode(found.prefix())
    assert not [folder for folder, *_ in os.walk("/sys/fs/cgroup") if prefix in folder]


@pytest.fixture
def made(real: Hierarchies) -> Iterator[Callable[[Limits], Group]]:
    """A way to make groups with limits; what cannot be limited here is not tested."""
    groups: list[Group] = []

    def make(limits: Limits) -> Group:
        lacking = {name.removesuffix("_quota") for name in limits} - real.can
        if lacking:
            pytest.skip(f"the cgroups of this machine cannot limit {', '.join(sorted(lacking))} here")
        groups.append(real.make(b"%s-%d" % (real.prefix(), len(groups)), limits))
        return groups[-1]

    yield make
    for group in groups:
        group.close()


def run_in(group: Group, script: str) -> tuple[int, str]:
    """Run a script of Python in a group: how it ended and what it printed."""
    script = f"import os, sys, time\nsys.stdin.read()\n{script}"
    with subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            group.enter(process.pid, into_v2=True)
            out, _err = process.communicate(timeout=10)
        finally:
            process.kill()
    return process.returncode, out


def test_real_memory(made: Callable[[Limits], Group]) -> None:
    """Who takes too much is killed, and it can be seen afterwards; who takes little is not."""
    group = made({"memory": 64 << 20})
    assert run_in(group, "print(len(bytearray(8 << 20)))") == (0, f"{8 << 20}\n")
    assert group.usage().oom_kills == 0
    assert run_in(group, "b = b'x' * (200 << 20)\nprint('survived')") == (-9, "")
    usage = group.usage()
    assert usage.oom_kills in (1, 2)  # v2 may count the process that it kills the group for twice
    assert 32 << 20 < usage.peak <= 64 << 20
    group.close()


def test_real_pids(made: Callable[[Limits], Group]) -> None:
    """A fork bomb comes to its end, and what it leaves is killed with the group."""
    group = made({"pids": 7})
    script = """
children = []
try:
    while True:
        pid = os.fork()
        if not pid:
            os.close(1)
            time.sleep(60)
        children.append(pid)
except BlockingIOError:
    print(*children)
"""
    code, out = run_in(group, script)
    children = [int(pid) for pid in out.split()]
    assert code == 0 and len(children) == 6
    group.close()
    for pid in children:
        assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()


def test_real_cpu(made: Callable[[Limits], Group]) -> None:
    """A tenth of a CPU: half a second of the clock is about 50 ms of work."""
    group = made({"cpu_quota": 10000})
    script = """
before, end = time.process_time(), time.monotonic() + 0.5
while time.monotonic() < end:
    pass
print(time.process_time() - before)
"""
    code, out = run_in(group, script)
    assert code == 0 and float(out) < 0.25
    assert group.usage().cpu_seconds > 0.01


def test_real_cpuset(made: Callable[[Limits], Group]) -> None:
    last = max(os.sched_getaffinity(0))
    assert run_in(made({"cpuset": b"%d" % last}), "print(*os.sched_getaffinity(0))") == (0, f"{last}\n")


def test_real_refusal(real: Hierarchies) -> None:
    if "cpuset" not in real.can:
        pytest.skip("the cgroups of this machine cannot limit cpuset here")
    with pytest.raises(
        CgroupError, match=r"cannot limit the CPUs of a step: writing x to .*: Invalid argument"
    ):
        real.make(real.prefix() + b"-1", {"memory": 1 << 30, "cpuset": b"x"})


def test_real_group(real: Hierarchies) -> None:
    """Without limits: a v2 group, if anything, which can be killed."""
    group = real.make(real.prefix() + b"-1", {})
    try:
        if group.fd < 0:
            pytest.skip("no v2 hierarchy can be written to here")
        assert os.readlink(f"/proc/self/fd/{group.fd}").endswith(os.fsdecode(real.prefix()) + "-1")
        with subprocess.Popen(["sleep", "60"]) as sleeper:
            group.enter(sleeper.pid, into_v2=True)
            assert f"{os.fsdecode(real.prefix())}-1\n" in Path(f"/proc/{sleeper.pid}/cgroup").read_text()
            group.kill()
            assert sleeper.wait(5) == -9
        assert group.usage().cpu_seconds >= 0
    finally:
        group.close()


@pytest.mark.parametrize("limits", [{}, limits_by(["memory", "pids"])], ids=["free", "limited"])
def test_real_sweep(real: Hierarchies, limits: Limits) -> None:
    """A build was killed and its step lives on, until the next build comes."""
    if limits and not {"memory", "pids"} <= real.can:
        pytest.skip("the cgroups of this machine cannot limit memory and processes here")
    with subprocess.Popen(["sleep", "60"]) as builder, subprocess.Popen(["sleep", "60"]) as step:
        start = Path(f"/proc/{builder.pid}/stat").read_text().split()[21]
        prefix = real.prefix().rsplit(b"-", 2)[0]
        left = real.make(b"%s-%d-%s-1" % (prefix, builder.pid, start.encode()), limits)
        try:
            if not left._paths():
                pytest.skip("no v2 hierarchy can be written to here")
            left.enter(step.pid, into_v2=True)
            find().sweep()
            assert step.poll() is None
            builder.kill()
            builder.wait()
            find().sweep()
            assert step.wait(5) == -9
            assert not [path for path in left._paths() if os.path.exists(path)]
        finally:
            builder.kill()
            step.kill()
            left.close()
