"""Cgroups: where groups are made and what is written, on imitations of every kind of machine;
then whether the limits work, on this one."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from builder.runtime.container.cgroup_files import CgroupError
from builder.runtime.container.cgroups import Group, Limits
from builder.runtime.container.hierarchies import Hierarchies, find

ALL = "memory cpu cpuset pids"
WORDS = {"memory": "the memory", "cpu": "the CPU time", "cpuset": "the CPUs", "pids": "the processes"}

V1_FILES = {
    "memory": "memory.limit_in_bytes memory.memsw.limit_in_bytes memory.max_usage_in_bytes memory.oom_control",
    "cpu": "cpu.cfs_period_us cpu.cfs_quota_us",
    "cpuacct": "cpuacct.usage",
    "cpuset": "cpuset.cpus cpuset.mems",
    "pids": "pids.max",
}
V2_FILES = {
    "memory": "memory.max memory.swap.max memory.oom.group memory.peak memory.events",
    "cpu": "cpu.max",
    "cpuset": "cpuset.cpus",
    "pids": "pids.max",
}


class FakeKernel:
    """Folders that behave like cgroups, as far as os.mkdir, rmdir, write and access go.

    ``root`` is /sys/fs/cgroup, ``proc`` is /proc; all else is named by its path below ``root``.
    """

    def __init__(self, at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = at / "cgroup"
        self.proc = at / "proc"
        self.writes: list[tuple[str, bytes]] = []
        self.closed: set[str] = set()  # groups in which this process may not write or make anything
        self.errors: dict[str, int] = {}  # what writing to files of this name comes to
        self.lacks: set[str] = set()  # files that groups do not have
        self._v1: dict[Path, list[str]] = {}  # mounts of v1 and their controllers
        self._v2: list[Path] = []
        self.root.mkdir()
        self.process(os.getpid(), 1234)
        self._own = self.proc / str(os.getpid())
        (self._own / "ns").mkdir()
        (self._own / "ns/pid").symlink_to("pid:[77]")
        (self.proc / "self").symlink_to(str(os.getpid()))
        self._mkdir, self._rmdir, self._write, self._access = os.mkdir, os.rmdir, os.write, os.access
        for name in ("mkdir", "rmdir", "write", "access"):
            monkeypatch.setattr(os, name, getattr(self, name))

    def find(self, parent: bytes = b"") -> Hierarchies:
        return find(parent, bytes(self.root), bytes(self.proc))

    # -- what the machine is like ----------------------------------------------------------

    def process(self, pid: int, ticks: int) -> None:
        """/proc of a process that began *ticks* after boot."""
        folder = self.proc / str(pid)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "stat").write_text(f"{pid} (a ) name) S {'0 ' * 18}{ticks} 0 0\n")

    def mount_v1(self, at: str, controllers: str, own: str, shown: str = "/") -> None:
        """Mount v1; the process is in the group *own*, what is mounted is the group *shown*."""
        self._line("cgroup", f"4:{controllers}:{own}")
        self._mount(at, shown, f"cgroup cgroup rw,{controllers}")
        names = [name for name in controllers.split(",") if "=" not in name]
        self._v1[self.root / at] = names
        self._fill(self.root / at, names)

    def mount_v2(
        self, at: str, controllers: str, own: str, shown: str = "/", *, procs: str = "1", root: bool = True
    ) -> None:
        """Mount v2; *root*: what is mounted is the root of all groups."""
        self._line("cgroup", f"0::{own}")
        self._mount(at, shown, "cgroup2 cgroup2 rw,nsdelegate")
        self._v2.append(self.root / at)
        self._fill(self.root / at, controllers.split())
        (self.root / at / "cgroup.procs").write_text(procs)
        if root:
            (self.root / at / "cgroup.type").unlink()

    def group(self, name: str, enabled: str = "", *, procs: str = "", closed: bool = False) -> Path:
        """A group, existing or not; *enabled* is for the groups in it, which are not there yet."""
        path = self.root / name
        if not path.exists():
            self._make(path)
        if enabled:
            (path / "cgroup.subtree_control").write_text(enabled)
        if procs:
            (path / "cgroup.procs").write_text(procs)
        if closed:
            self.closed.add(name)
        return path

    def _mount(self, at: str, shown: str, kind: str) -> None:
        (self.root / at).mkdir(parents=True, exist_ok=True)
        point = str(self.root / at).replace(" ", "\\040")
        self._line("mountinfo", f"30 20 0:30 {shown} {point} rw,nosuid shared:9 - {kind}")

    def _line(self, name: str, line: str) -> None:
        with (self._own / name).open("a") as file:
            file.write(line + "\n")

    # -- the kernel ------------------------------------------------------------------------

    def _inside(self, path: Path) -> bool:
        return any(path.is_relative_to(top) for top in (*self._v1, *self._v2))

    def _fill(self, group: Path, controllers: list[str]) -> None:
        """The files of a new group with *controllers*."""
        top = next((top for top in self._v1 if group.is_relative_to(top)), None)
        files = {"cgroup.procs": ""}
        if top is None:
            files |= {"cgroup.type": "domain\n", "cgroup.controllers": " ".join(controllers)}
            files |= {"cgroup.subtree_control": "", "cgroup.kill": "", "cpu.stat": "usage_usec 0\n"}
        for name in controllers:
            files |= dict.fromkeys((V2_FILES if top is None else V1_FILES).get(name, "").split(), "\n")
        if group == top and "cpuset.mems" in files:
            files |= {"cpuset.mems": "0\n", "cpuset.cpus": "0-3\n"}
        for name in files.keys() - self.lacks:
            (group / name).write_text(files[name])

    def _may_write(self, group: Path) -> bool:
        return str(group.relative_to(self.root)) not in {top.removesuffix("/") or "." for top in self.closed}

    def mkdir(self, path: bytes | Path, mode: int = 0o777) -> None:
        group = Path(os.fsdecode(path))
        if not self._inside(group):
            return self._mkdir(path, mode)
        if not self._may_write(group.parent):
            raise PermissionError(errno.EACCES, "Permission denied")
        self._make(group)

    def _make(self, group: Path) -> None:
        self._mkdir(group, 0o755)
        names = [names for top, names in self._v1.items() if group.is_relative_to(top)]
        enabled = group.parent / "cgroup.subtree_control"
        self._fill(group, names[0] if names else enabled.read_text().split())

    def rmdir(self, path: bytes | Path) -> None:
        group = Path(os.fsdecode(path))
        if self._inside(group) and group.exists():
            if (group / "cgroup.procs").read_text().strip():
                raise OSError(errno.EBUSY, "Device or resource busy")
            for file in group.iterdir():
                file.unlink()
        self._rmdir(path)

    def write(self, fd: int, data: bytes) -> int:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if not self._inside(path):
            return self._write(fd, data)
        code = self.errors.get(path.name, 0 if self._may_write(path.parent) else errno.EACCES)
        if path.name == "cgroup.subtree_control" and not code:
            code = self._enable(path.parent, data.decode().removeprefix("+"))
        if code:
            raise OSError(code, os.strerror(code))
        self.writes.append((str(path.relative_to(self.root)), data))
        if path.name == "cgroup.kill":
            (path.parent / "cgroup.procs").write_text("")
        elif path.name != "cgroup.subtree_control":
            path.write_bytes(data)
        return len(data)

    def _enable(self, group: Path, name: str) -> int:
        if name not in (group / "cgroup.controllers").read_text().split():
            return errno.ENOENT
        if (group / "cgroup.type").exists() and (group / "cgroup.procs").read_text():
            return errno.EBUSY
        enabled = group / "cgroup.subtree_control"
        enabled.write_text(f"{enabled.read_text()} {name}")
        for child in group.iterdir():
            if child.is_dir():
                has = child / "cgroup.controllers"
                has.write_text(f"{has.read_text()} {name}")
        return 0

    def access(self, path: bytes | str, mode: int, **how: bool) -> bool:
        place = Path(os.fsdecode(path))
        if mode & os.W_OK and self._inside(place):
            return place.exists() and self._may_write(place if place.is_dir() else place.parent)
        return self._access(path, mode, **how)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    fake = FakeKernel(tmp_path, monkeypatch)
    yield fake
    for fd in open_groups(fake):
        os.close(fd)


def open_groups(kernel: FakeKernel) -> list[int]:
    """The descriptors of groups that this process holds."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith(f"{kernel.root}/"):
                found.append(int(fd))
        except FileNotFoundError:
            pass  # that of the listing itself
    return found


# -- kinds of machines ---------------------------------------------------------------------

USER = "user.slice/user@1000.service"


def v2_user(kernel: FakeKernel) -> None:
    """What systemd gives a user: all but the cpuset controller, below user@1000.service."""
    kernel.mount_v2("", ALL, f"/{USER}/app.slice/term.scope")
    kernel.group("", "memory cpu pids", closed=True)
    kernel.group("user.slice", "memory cpu pids", closed=True)
    kernel.group(USER, "memory pids")
    kernel.group(f"{USER}/app.slice", "memory")
    kernel.group(f"{USER}/app.slice/term.scope", procs="1 2")


def v2_login(kernel: FakeKernel) -> None:
    """A session over ssh: the user may write nowhere near."""
    kernel.mount_v2("", ALL, "/user.slice/session-2.scope")
    for name in ("", "user.slice", "user.slice/session-2.scope"):
        kernel.group(name, "memory pids", closed=True)


def v2_service(kernel: FakeKernel) -> None:
    """A service of root's."""
    kernel.mount_v2("", ALL, "/system.slice/ci.service")
    kernel.group("", "memory")
    kernel.group("system.slice")
    kernel.group("system.slice/ci.service", procs="1")


def v2_top(kernel: FakeKernel) -> None:
    """A machine without systemd: everything is in the root of all groups."""
    kernel.mount_v2("", ALL, "/")


def v2_read_only(kernel: FakeKernel) -> None:
    """A container as docker makes it."""
    kernel.mount_v2("", ALL, "/", root=False)
    kernel.group("", closed=True)


def v2_privileged(kernel: FakeKernel) -> None:
    """A privileged container with a cgroup namespace: its top looks like the root but is not."""
    kernel.mount_v2("", ALL, "/", root=False)


def v2_prepared(kernel: FakeKernel) -> None:
    """The same, after docker's entry script: its processes have been moved out of the way."""
    kernel.mount_v2("", ALL, "/init", root=False, procs="")
    kernel.group("", ALL)
    kernel.group("init", procs="1 2")


def v2_threaded(kernel: FakeKernel) -> None:
    """Our group is one of threads; no process could be put into a group in it."""
    kernel.mount_v2("", ALL, "/vm/threads")
    (kernel.group("vm") / "cgroup.type").write_text("domain threaded\n")
    (kernel.group("vm/threads", procs="1") / "cgroup.type").write_text("threaded\n")


def v2_part(kernel: FakeKernel) -> None:
    """A part of the hierarchy is mounted, a container's without a cgroup namespace."""
    kernel.mount_v2("", ALL, "/docker/1/build", shown="/docker/1", root=False, procs="")
    kernel.group("build", procs="1")


def v2_entered(kernel: FakeKernel) -> None:
    """This process came into a container's namespaces, but not into its group."""
    kernel.mount_v2("", ALL, "/../shell.scope", root=False, procs="")


def v2_above(kernel: FakeKernel) -> None:
    """The host's groups are mounted in a container; which of them is ours cannot be said."""
    kernel.mount_v2("", ALL, "/", shown="/../..", root=False, procs="")


def v2_twice(kernel: FakeKernel) -> None:
    """Only the second mount shows our own group; over it another was mounted."""
    kernel.mount_v2("a", ALL, "/box/own", shown="/else")
    (kernel.proc / "self/cgroup").write_text("")
    kernel.mount_v2("b c", "", "/box/own", shown="/nothing")
    (kernel.proc / "self/cgroup").write_text("")
    kernel.mount_v2("b c", ALL, "/box/own", shown="/box")
    kernel.group("b c/own", procs="1")


def v1(kernel: FakeKernel) -> None:
    kernel.mount_v1("memory", "memory", "/jobs/7")
    kernel.mount_v1("cpu,cpuacct", "cpu,cpuacct", "/")
    kernel.mount_v1("cpuset", "cpuset", "/jobs")
    kernel.mount_v1("pids", "pids", "/")
    kernel.mount_v1("systemd", "name=systemd", "/")
    for name in ("memory/jobs", "memory/jobs/7", "cpuset/jobs"):
        kernel.group(name)


def v1_part(kernel: FakeKernel) -> None:
    """In a container; one hierarchy has more of our path than is mounted, one less, one is not ours."""
    kernel.mount_v1("memory", "memory", "/docker/1/own", shown="/docker/1")
    kernel.mount_v1("pids", "pids", "/docker/1", shown="/docker/1")
    kernel.mount_v1("cpu", "cpu", "/docker/12", shown="/docker/1")
    kernel.mount_v1("cpuset", "cpuset", "/", shown="/..")
    kernel.group("memory/own")


def v1_closed(kernel: FakeKernel) -> None:
    """Not everything on v1 may be written to."""
    for name in ALL.split():
        kernel.mount_v1(name, name, "/")
    for name in ("cpu", "cpuset", "pids"):
        kernel.group(name, closed=True)


def hybrid(kernel: FakeKernel) -> None:
    """v1 with controllers, v2 without."""
    kernel.mount_v1("memory", "memory", "/")
    kernel.mount_v2("unified", "", "/box")
    kernel.group("unified/box", procs="1")


def mixed(kernel: FakeKernel) -> None:
    """Some controllers on v1, others on v2."""
    kernel.mount_v2("unified", "memory pids", "/box")
    kernel.mount_v1("cpuset", "cpuset", "/")
    kernel.group("unified/box", procs="1")


def nothing(kernel: FakeKernel) -> None:
    kernel.process(1, 1)


class Machine(NamedTuple):
    """A kind of machine and what is to come of it."""

    setup: Callable[[FakeKernel], None]
    free: list[str]  # where groups without limits are made
    can: str
    limited: Sequence[str] = ()  # where those with all limits there can be are made
    enabled: str = ""  # what is written to subtree_control first
    why: str = ""  # what is said of limits that cannot be


MACHINES = [
    Machine(
        v2_user,
        [f"{USER}/app.slice/term.scope"],
        "memory cpu pids",
        [f"{USER}/app.slice"],
        f"{USER}+cpu {USER}/app.slice+cpu {USER}/app.slice+pids",
        "writing +cpuset to ROOT/cgroup.subtree_control: Permission denied",
    ),
    Machine(v2_login, [], "", why="ROOT/user.slice is not writable"),
    Machine(
        v2_service,
        ["system.slice/ci.service"],
        ALL,
        ["system.slice"],
        "system.slice+memory .+cpu system.slice+cpu .+cpuset system.slice+cpuset .+pids system.slice+pids",
    ),
    Machine(v2_top, ["."], ALL, ["."], ".+memory .+cpu .+cpuset .+pids"),
    Machine(v2_read_only, [], "", why="ROOT is not writable"),
    Machine(v2_privileged, ["."], "", why="ROOT holds processes, so groups in it cannot be limited"),
    Machine(v2_prepared, ["init"], ALL, ["."]),
    Machine(v2_threaded, [], "", why="ROOT/vm is of the type domain threaded"),
    Machine(v2_part, ["build"], ALL, ["."], ".+memory .+cpu .+cpuset .+pids"),
    Machine(v2_entered, [], "", why="cgroup v2 at ROOT does not show the group of this process"),
    Machine(v2_above, [], "", why="cgroup v2 at ROOT does not show the group of this process"),
    Machine(v2_twice, ["b c/own"], ALL, ["b c"], "b c+memory b c+cpu b c+cpuset b c+pids"),
    Machine(v1, [], ALL, ["cpu,cpuacct", "cpuset/jobs", "memory/jobs/7", "pids"]),
    Machine(
        v1_part,
        [],
        "memory pids",
        ["memory/own", "pids"],
        why="cgroup v1 at ROOT/NAME does not show the group of this process",
    ),
    Machine(v1_closed, [], "memory", ["memory"], why="ROOT/NAME is not writable"),
    Machine(
        hybrid,
        ["unified/box"],
        "memory",
        ["memory", "unified/box"],
        why="cgroup v2 at ROOT/unified has no NAME controller",
    ),
    Machine(
        mixed,
        ["unified/box"],
        "memory cpuset pids",
        ["cpuset", "unified"],
        "unified+memory unified+pids",
        "cgroup v2 at ROOT/unified has no NAME controller",
    ),
    Machine(nothing, [], "", why="no cgroups with this controller are mounted at ROOT"),
]
ON_EVERY = pytest.mark.parametrize("machine", MACHINES, ids=[machine.setup.__name__ for machine in MACHINES])


def places(kernel: FakeKernel, name: str = "g") -> list[str]:
    """Where groups of this name are."""
    return sorted(str(path.parent.relative_to(kernel.root)) for path in kernel.root.rglob(name))


def folders(kernel: FakeKernel) -> set[Path]:
    return {path for path in kernel.root.rglob("*") if path.is_dir()}


def limits_by(controllers: list[str]) -> Limits:
    limits: Limits = {}
    if "memory" in controllers:
        limits["memory"] = 1 << 30
    if "cpu" in controllers:
        limits["cpu_quota"] = 150000
    if "cpuset" in controllers:
        limits["cpuset"] = b"0-1"
    if "pids" in controllers:
        limits["pids"] = 9
    return limits


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


# -- what is written -----------------------------------------------------------------------

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


# -- kill, close and sweep -----------------------------------------------------------------


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


# -- this machine --------------------------------------------------------------------------


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
