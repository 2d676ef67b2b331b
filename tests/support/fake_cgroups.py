"""Directories that behave like cgroups, and what the tests of cgroups share."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from builder.runtime.container.cgroups import Limits
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
