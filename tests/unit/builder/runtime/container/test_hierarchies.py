"""Where groups are made, on imitations of every kind of machine, and which are swept."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cgroup_machines import (
    MACHINES,
    Machine,
    mixed,
    v1,
    v2_service,
    v2_top,
    v2_user,
)
from fake_cgroups import ALL, WORDS, FakeKernel, folders, limits_by, places

from builder.runtime.errors import CgroupError

ON_EVERY = pytest.mark.parametrize("machine", MACHINES, ids=[machine.setup.__name__ for machine in MACHINES])


@ON_EVERY
def test_without_limits(kernel: FakeKernel, machine: Machine) -> None:
    """Groups are made inside our own, in v2 only, and leave nothing behind."""
    machine.setup(kernel)
    before = folders(kernel)
    group = kernel.find().make(b"g", {"pids": 0})
    assert places(kernel) == machine.free
    assert kernel.writes == []
    if machine.free:
        assert os.readlink(f"/proc/self/fd/{group.fd}") == f"{kernel.root / machine.free[0] / 'g'}"
        assert not os.get_inheritable(group.fd)
    else:
        assert group.fd == -1
    group.enter(os.getpid())
    group.kill()
    group.close()
    group.close()
    assert folders(kernel) == before and group.fd == -1


@ON_EVERY
def test_with_limits(kernel: FakeKernel, machine: Machine) -> None:
    """Groups are made where controllers can be had, which are enabled down to there."""
    if not machine.can:
        return
    machine.setup(kernel)
    before = folders(kernel)
    group = kernel.find().make(b"g", limits_by(machine.can.split()))
    assert places(kernel) == list(machine.limited)
    done = [f"{Path(name).parent}{data.decode()}" for name, data in kernel.writes if "subtree" in name]
    assert " ".join(done) == machine.enabled
    written = {
        Path(name).name.partition(".")[0] for name, _data in kernel.writes if Path(name).parent.name == "g"
    }
    assert written == set(machine.can.split())
    group.close()
    assert folders(kernel) == before


@ON_EVERY
def test_can(kernel: FakeKernel, machine: Machine) -> None:
    """What can be limited is found out once; what cannot be is refused with the reason."""
    machine.setup(kernel)
    before = folders(kernel)
    hierarchies = kernel.find()
    assert hierarchies.can == set(machine.can.split())
    assert folders(kernel) == before
    for name in set(ALL.split()) - hierarchies.can:
        with pytest.raises(CgroupError) as caught:
            hierarchies.make(b"g", limits_by([name]))
        why = machine.why.replace("NAME", name).replace("ROOT", str(kernel.root))
        assert str(caught.value) == f"cannot limit {WORDS[name]} of a step: {why}"
        assert folders(kernel) == before


# -- sweep ---------------------------------------------------------------------------------


def test_prefix(kernel: FakeKernel) -> None:
    assert kernel.find().prefix() == b"pybuild-77-%d-1234" % os.getpid()
    (kernel.proc / "self/stat").unlink()
    assert kernel.find().prefix().startswith(b"pybuild-")


def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize("parent", [b"", b"ci"])
@pytest.mark.parametrize("setup", [v2_service, v2_top, v1, mixed])
def test_sweep(kernel: FakeKernel, setup: Callable[[FakeKernel], None], parent: bytes) -> None:
    """What builds left that are gone, and nothing else."""
    setup(kernel)
    mine, dead = os.getpid(), gone()
    kernel.process(os.getppid(), 500)
    stale = [f"pybuild-77-{dead}-5-1", f"pybuild-77-{dead}-5-trial", f"pybuild-77-{mine}-1233-1"]
    others = [f"pybuild-77-{mine}-1234-8", f"pybuild-77-{os.getppid()}-500-1", f"pybuild-78-{dead}-5-1"]
    odd = ["1", f"{dead}-x-1", f"-{dead}-5-1", "0-5-1", "", f"{10**30}-5-1"]
    others += [f"pybuild-77-{name}" for name in odd]
    hierarchies = kernel.find(parent)
    hierarchies.make(b"free", {})
    hierarchies.make(b"limited", limits_by(["memory", "cpuset"]))
    spots = {*places(kernel, "free"), *places(kernel, "limited")}
    for spot in spots:
        for name in (*stale, *others):
            kernel.group(f"{spot}/{name}")
    hierarchies.sweep()
    for spot in spots:
        left = {path.name for path in (kernel.root / spot).iterdir() if path.name.startswith("pybuild")}
        assert left == set(others), spot


def test_sweep_kills(kernel: FakeKernel) -> None:
    v2_top(kernel)
    kernel.group(f"pybuild-77-{gone()}-5-1", procs="4711")
    kernel.find().sweep()
    assert not [path for path in kernel.root.iterdir() if path.is_dir()]
    assert [data for _name, data in kernel.writes] == [b"1"]


def test_sweep_with_the_proc_of_others(kernel: FakeKernel) -> None:
    """/proc of another pid namespace says nothing about the processes of ours."""
    v2_top(kernel)
    name = f"pybuild-77-{gone()}-5-1"
    kernel.group(name)
    hierarchies = kernel.find()
    (kernel.proc / "self").unlink()
    (kernel.proc / "self").symlink_to("1")
    hierarchies.sweep()
    assert places(kernel, name) == ["."]
    (kernel.proc / "self").unlink()
    hierarchies.sweep()
    assert places(kernel, name) == ["."]


# -- --cgroup-parent -----------------------------------------------------------------------


@pytest.mark.parametrize("parent", [b"..", b"/a/../b", b"a/..", b"a\0b"])
def test_parent_outside(kernel: FakeKernel, parent: bytes) -> None:
    v2_top(kernel)
    with pytest.raises(CgroupError, match=r"--cgroup-parent .*: no path below "):
        kernel.find(parent)


@pytest.mark.parametrize("parent", [b"ci/builds", b"/ci/builds/", b"//ci/./builds"])
def test_parent_v2(kernel: FakeKernel, parent: bytes) -> None:
    """It is made, and controllers are passed down to it when they are needed."""
    v2_service(kernel)
    hierarchies = kernel.find(parent)
    assert places(kernel, "ci") == []
    hierarchies.make(b"g", {}).close()
    assert kernel.writes == [] and places(kernel, "builds") == ["ci"]
    hierarchies.make(b"g", {"pids": 1})
    assert places(kernel) == ["ci/builds"]
    done = [name.removesuffix("cgroup.subtree_control") for name, data in kernel.writes if data == b"+pids"]
    assert done == ["", "ci/", "ci/builds/"]
    assert hierarchies.can == set(ALL.split())


def test_parent_top(kernel: FakeKernel) -> None:
    v2_service(kernel)
    kernel.find(b"/").make(b"g", {})
    assert places(kernel) == ["."]


def test_parent_v1(kernel: FakeKernel) -> None:
    """A limit makes it; where it is already, steps are put into it, for it may be limited itself."""
    v1(kernel)
    kernel.mount_v1("blkio", "blkio", "/")
    hierarchies = kernel.find(b"ci")
    assert hierarchies.make(b"g", {})._paths() == []
    hierarchies.make(b"g", {"cpuset": b"1"}).close()
    assert [write for write in kernel.writes if "/ci/cpuset" in write[0]] == [
        ("cpuset/ci/cpuset.mems", b"0"),
        ("cpuset/ci/cpuset.cpus", b"0-3"),
    ]
    kernel.group("blkio/ci")
    group = hierarchies.make(b"g", {"memory": 1})
    assert places(kernel) == ["blkio/ci", "cpuset/ci", "memory/ci"]
    assert (kernel.root / "cpuset/ci/g/cpuset.cpus").read_text() == "0-3"
    group.enter(4711)
    assert len([name for name, data in kernel.writes if data == b"4711"]) == 3


def test_parent_that_cannot_be(kernel: FakeKernel) -> None:
    """Nobody who names a group may get another one, limits or not."""
    v2_user(kernel)
    for names, why in (([], "--cgroup-parent: "), (["memory"], "cannot limit the memory of a step: ")):
        with pytest.raises(CgroupError) as caught:
            kernel.find(b"ci").make(b"g", limits_by(names))
        assert str(caught.value) == f"{why}making {kernel.root}/ci: Permission denied"
    kernel.group("ci")
    with pytest.raises(CgroupError) as caught:  # a process may not leave what is not ours
        kernel.find(b"ci").make(b"g", {})
    assert str(caught.value) == f"--cgroup-parent: {kernel.root}/cgroup.procs is not writable"
    kernel.group("ci", closed=True)
    with pytest.raises(CgroupError, match=r"--cgroup-parent: .*/ci is not writable"):
        kernel.find(b"ci").make(b"g", {})
    assert kernel.find(b"ci").can == set()


def test_parent_with_processes(kernel: FakeKernel) -> None:
    v2_service(kernel)
    kernel.group("ci", procs="4711")
    with pytest.raises(CgroupError, match="/ci holds processes, so groups in it cannot be limited"):
        kernel.find(b"ci").make(b"g", {"memory": 1})
    kernel.find(b"ci").make(b"g", {})
    assert places(kernel) == ["ci"]


def test_parent_without_cgroups(kernel: FakeKernel) -> None:
    with pytest.raises(CgroupError, match=r"--cgroup-parent: no cgroups are mounted at "):
        kernel.find(b"ci").make(b"g", {})
