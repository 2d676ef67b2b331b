"""The hierarchies of cgroups, v1, hybrid and v2, and the groups of steps in them.

Unless --cgroup-parent names a group, groups are made inside the group of this process, so that the limits of
this build limit its steps too. Groups with limits on v2 are the exception: they are made next to the group of
this process. A group that holds processes, as this one does, cannot pass controllers on (except the root
group).

Starting a process in a v2 group costs nothing; moving one into a v1 group takes the kernel about 10 ms. So a
v2 group is made if possible. In a v1 hierarchy a group is made only for a limit, or for a --cgroup-parent
that exists there, which may have limits.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from builder.runtime.container.cgroup_files import read, write_or_explain
from builder.runtime.container.cgroups import Group, remove_groups
from builder.runtime.errors import CgroupError

if TYPE_CHECKING:
    from builder.runtime.container.cgroups import Limits

_PREFIX = b"pybuild"
CONTROLLERS = ("memory", "cpu", "cpuset", "pids")
_WORDS = {"memory": "the memory", "cpu": "the CPU time", "cpuset": "the CPUs", "pids": "the processes"}

# The files that set a limit, in the order they have to be written; @ stands for the limit.
_FILES_V2: dict[str, tuple[tuple[bytes, bytes], ...]] = {
    "memory": ((b"memory.max", b"@"), (b"memory.swap.max", b"0"), (b"memory.oom.group", b"1")),
    "cpu": ((b"cpu.max", b"@ 100000"),),
    "cpuset": ((b"cpuset.cpus", b"@"),),
    "pids": ((b"pids.max", b"@"),),
}
_FILES_V1: dict[str, tuple[tuple[bytes, bytes], ...]] = {
    "memory": ((b"memory.limit_in_bytes", b"@"), (b"memory.memsw.limit_in_bytes", b"@")),
    "cpu": ((b"cpu.cfs_period_us", b"100000"), (b"cpu.cfs_quota_us", b"@")),
    "cpuset": ((b"cpuset.cpus", b"@"),),
    "pids": ((b"pids.max", b"@"),),
}
_OPTIONAL = (b"memory.swap.max", b"memory.memsw.limit_in_bytes")  # a kernel need not account for swap

_SWEEP_PATIENCE = 1.0  # seconds


# -- hierarchies ---------------------------------------------------------------------------


class _Hierarchy:
    """One mounted hierarchy and our own group in it, empty where the mount does not show it."""

    def __init__(self, top: bytes, own: bytes, controllers: list[str]) -> None:
        self.top = top
        self.controllers = controllers  # of v1; those of v2 differ from group to group
        self.unified = not controllers
        self.files = _FILES_V2 if self.unified else _FILES_V1
        self._own = own
        self._places: dict[bool, bytes] = {}

    def __str__(self) -> str:
        return f"cgroup {'v2' if self.unified else 'v1'} at {os.fsdecode(self.top)}"

    def spot(self, parent: bytes, limited: bool) -> bytes:
        """Return the directory where groups are to be made, *limited* or not; empty if there is none."""
        if parent:
            return os.path.normpath(self.top + b"/" + parent)
        if limited and self.unified and self._own not in (b"", self.top):
            return os.path.dirname(self._own)
        return self._own

    def place(self, parent: bytes, limited: bool) -> bytes:
        """Return the directory where groups can be made. Raises CgroupError if there is none."""
        place = self._places.get(limited, b"")
        if not place:
            place = self.spot(parent, limited)
            if not place:
                raise CgroupError(f"{self} does not show the group of this process")
            if parent:
                self._make_parent(place)
            self._check(place)
            self._places[limited] = place
        return place

    def enable(self, group: bytes, controller: str) -> None:
        """Have *controller* limit the groups in the v2 *group*; raises CgroupError if it cannot.

        What was enabled stays so: another build may rely on it by now.
        """
        if controller.encode() in read(group + b"/cgroup.subtree_control").split():
            return
        if controller.encode() not in read(group + b"/cgroup.controllers").split():
            if group == self.top:
                raise CgroupError(f"{self} has no {controller} controller")
            self.enable(os.path.dirname(group), controller)
        # Some controllers the kernel would enable, with groups that no process can be put into.
        if _has_type(group) and read(group + b"/cgroup.procs").strip():
            raise CgroupError(f"{os.fsdecode(group)} holds processes, so groups in it cannot be limited")
        write_or_explain(group + b"/cgroup.subtree_control", b"+" + controller.encode())

    def fill_cpuset(self, group: bytes) -> None:
        """Give a v1 group CPUs and memory nodes; until it has both, no process can be moved into it."""
        for name in (b"/cpuset.mems", b"/cpuset.cpus"):
            if group != self.top and not read(group + name).strip():
                above = os.path.dirname(group)
                self.fill_cpuset(above)
                write_or_explain(group + name, read(above + name).strip())

    def _make_parent(self, path: bytes) -> None:
        if path == self.top or os.path.isdir(path):
            return
        self._make_parent(os.path.dirname(path))
        try:
            os.mkdir(path, 0o755)
        except FileExistsError:
            pass  # another build was faster
        except OSError as error:
            raise CgroupError(f"making {os.fsdecode(path)}: {error.strerror}") from None

    def _check(self, place: bytes) -> None:
        """Raise CgroupError if no process of ours can be put into a group made at *place*."""
        if not os.access(place, os.W_OK | os.X_OK):
            raise CgroupError(f"{os.fsdecode(place)} is not writable")
        if not self.unified:
            return
        # To move a process, one needs write access to the closest group above both ends.
        shared = os.path.commonpath([place, self._own or place])
        if not os.access(shared + b"/cgroup.procs", os.W_OK):
            raise CgroupError(f"{os.fsdecode(shared)}/cgroup.procs is not writable")
        if _has_type(place) and (kind := read(place + b"/cgroup.type").strip()) != b"domain":
            raise CgroupError(f"{os.fsdecode(place)} is of the type {os.fsdecode(kind)}")


def _has_type(group: bytes) -> bool:
    """Return True if a v2 group is not the root group."""
    return os.access(group + b"/cgroup.type", os.F_OK)


class Hierarchies:
    """The hierarchies of this machine, and where in them this process can make groups."""

    def __init__(self, parent: bytes, root: bytes, proc: bytes, mounted: list[_Hierarchy]) -> None:
        self._parent = parent
        self._root = root
        self._proc = proc
        self._mounted = mounted
        self._v2 = next((hierarchy for hierarchy in mounted if hierarchy.unified), None)
        self._v1 = {name: hierarchy for hierarchy in mounted for name in hierarchy.controllers}
        self._can: frozenset[str] | None = None

    @property
    def can(self) -> frozenset[str]:
        """Those of memory, cpu, cpuset and pids that can be limited; tried once."""
        if self._can is None:
            self._can = frozenset(name for name in CONTROLLERS if self._try(name))
        return self._can

    def make(self, name: bytes, limits: Limits) -> Group:
        """Make the group *name* with *limits*; raises CgroupError if it cannot have one of them.

        It has a part in v2 wherever one can be made, and in each hierarchy of v1 that a limit
        needs. It may have none.
        """
        values = _values(limits)
        wanted: dict[_Hierarchy, list[str]] = {}
        for hierarchy in self._mounted:
            if hierarchy.unified or (self._parent and os.path.isdir(hierarchy.top + b"/" + self._parent)):
                wanted[hierarchy] = []
        for controller in values:
            wanted.setdefault(self._holder(controller), []).append(controller)
        if self._parent and not self._mounted:
            raise CgroupError(f"--cgroup-parent: no cgroups are mounted at {os.fsdecode(self._root)}")
        group = Group()
        try:
            for hierarchy, controllers in wanted.items():
                path = self._add(group, hierarchy, name, controllers)
                for controller in controllers:
                    _limit(path, controller, hierarchy.files[controller], values[controller])
        except BaseException:
            group.close()
            raise
        return group

    def sweep(self) -> None:
        """Remove the groups of builds that were killed; never raises.

        Their names (see ``prefix``) say who made them: a process of our pid namespace that is
        gone.
        """
        try:
            if int(os.readlink(self._proc + b"/self")) != os.getpid():
                return  # this /proc counts otherwise than the names do
            ours = b"%s-%d-" % (_PREFIX, _pid_namespace(self._proc))
        except (OSError, ValueError):
            return
        stale = []
        for place in {h.spot(self._parent, limited) for h in self._mounted for limited in (False, True)}:
            try:
                names = os.listdir(place)
            except OSError:
                continue
            for name in names:
                if name.startswith(ours) and _is_stale(name, self._proc):
                    stale.append(b"%s/%s" % (place, name))
        remove_groups(stale, _SWEEP_PATIENCE)

    def prefix(self) -> bytes:
        """Return how the names of this process's groups begin; a dash and a number follow."""
        namespace, start = 0, time.monotonic_ns()
        try:
            namespace, start = _pid_namespace(self._proc), _start_time(self._proc, b"self")
        except (OSError, ValueError):
            pass  # without /proc nothing is swept either
        return b"%s-%d-%d-%d" % (_PREFIX, namespace, os.getpid(), start)

    def _holder(self, controller: str) -> _Hierarchy:
        """Return the hierarchy with *controller*; the kernel gives each to one."""
        hierarchy = self._v1.get(controller, self._v2)
        if hierarchy is None:
            where = os.fsdecode(self._root)
            raise CgroupError(
                f"{_cannot([controller])}no cgroups with this controller are mounted at {where}"
            )
        return hierarchy

    def _add(self, group: Group, hierarchy: _Hierarchy, name: bytes, controllers: list[str]) -> bytes:
        """Make the part of *group* in *hierarchy*, ready for limits by *controllers*; its path."""
        try:
            place = hierarchy.place(self._parent, bool(controllers))
            for controller in controllers if hierarchy.unified else ():
                hierarchy.enable(place, controller)
            path = b"%s/%s" % (place, name)
            try:
                os.mkdir(path, 0o755)
            except OSError as error:
                raise CgroupError(f"making {os.fsdecode(path)}: {error.strerror}") from None
            group.add(path, hierarchy.unified)
            if "cpuset" in hierarchy.controllers:
                hierarchy.fill_cpuset(path)
        except CgroupError as error:
            if not controllers and not self._parent:
                return b""  # the step runs without it
            raise CgroupError(f"{_cannot(controllers)}{error}") from None
        return path

    def _try(self, controller: str) -> bool:
        trial = Group()
        try:
            hierarchy = self._holder(controller)
            path = self._add(trial, hierarchy, self.prefix() + b"-trial", [controller])
            needed = (name for name, _value in hierarchy.files[controller] if name not in _OPTIONAL)
            return all(os.access(path + b"/" + name, os.W_OK) for name in needed)
        except CgroupError:
            return False
        finally:
            trial.close()


# -- limits --------------------------------------------------------------------------------


def _values(limits: Limits) -> dict[str, bytes]:
    """Return the limits by their controllers, as they are written to the kernel."""
    values = {}
    if limits.get("memory"):
        values["memory"] = b"%d" % limits["memory"]
    if limits.get("cpu_quota"):
        values["cpu"] = b"%d" % limits["cpu_quota"]
    if limits.get("cpuset"):
        values["cpuset"] = limits["cpuset"]
    if limits.get("pids"):
        values["pids"] = b"%d" % limits["pids"]
    return values


def _limit(group: bytes, controller: str, files: tuple[tuple[bytes, bytes], ...], value: bytes) -> None:
    for name, template in files:
        path = group + b"/" + name
        if name in _OPTIONAL and not os.access(path, os.F_OK):
            continue
        try:
            write_or_explain(path, template.replace(b"@", value))
        except CgroupError as error:
            raise CgroupError(f"{_cannot([controller])}{error}") from None


def _cannot(controllers: list[str]) -> str:
    """Return how a message begins if groups for *controllers* cannot be made."""
    if not controllers:
        return "--cgroup-parent: "
    return f"cannot limit {' and '.join(_WORDS[name] for name in controllers)} of a step: "


def find(parent: bytes = b"", root: bytes = b"/sys/fs/cgroup", proc: bytes = b"/proc") -> Hierarchies:
    """Return the hierarchies mounted at or below *root*. Nothing is made yet.

    *parent*, the value of --cgroup-parent, is a path below each hierarchy's mount where groups
    are made instead of near our own; what is missing of it is made, and stays.
    """
    if b".." in parent.split(b"/") or b"\0" in parent:
        raise CgroupError(f"--cgroup-parent {os.fsdecode(parent)}: no path below {os.fsdecode(root)}")
    mounts = _mounts(root, proc)
    mounted: list[_Hierarchy] = []
    for line in read(proc + b"/self/cgroup").splitlines():
        _id, names, own = line.split(b":", 2)  # v2 has no names
        controllers = [name.decode() for name in names.split(b",") if name and not name.startswith(b"name=")]
        if names and not (controllers if parent else set(controllers) & set(CONTROLLERS)):
            continue  # nothing is ever made there
        wanted = set(names.split(b","))
        seen = [
            (_locate(top, shown, own), top) for top, (shown, options) in mounts.items() if wanted <= options
        ]
        if seen:
            place, top = max(seen)  # a mount that shows our own group, if one does
            mounted.append(_Hierarchy(top, place, controllers))
    return Hierarchies(parent, root, proc, mounted)


def _mounts(root: bytes, proc: bytes) -> dict[bytes, tuple[bytes, set[bytes]]]:
    """Return the mounts of hierarchies: the group shown at each, and its options, an empty one for v2."""
    mounts = {}
    for line in read(proc + b"/self/mountinfo").splitlines():
        if b" - cgroup" not in line:
            continue
        mount, _dash, source = line.partition(b" - ")
        shown, top = (_unescape(field) for field in mount.split(b" ")[3:5])
        kind, _name, options = source.split(b" ", 2)
        if top == root or top.startswith(root + b"/"):  # a later mount hides those before it
            mounts[top] = (shown, {b""} if kind == b"cgroup2" else set(options.split(b",")))
    return mounts


def _unescape(path: bytes) -> bytes:
    """Return a path of mountinfo, where blanks are written ``\\040``."""
    head, *rest = path.split(b"\\")
    return head + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


def _locate(top: bytes, shown: bytes, own: bytes) -> bytes:
    """Return the directory of the group *own* in a mount of the group *shown*; empty if it is not in it."""
    shown, own = shown.rstrip(b"/"), own.rstrip(b"/")
    if own != shown and not own.startswith(shown + b"/"):
        return b""
    below = own[len(shown) :]
    return b"" if b".." in below.split(b"/") else top + below


def _pid_namespace(proc: bytes) -> int:
    """Return the inode of this pid namespace."""
    return int(os.readlink(proc + b"/self/ns/pid").removeprefix(b"pid:[").removesuffix(b"]"))


def _start_time(proc: bytes, pid: bytes) -> int:
    """Return when a process began, in ticks since boot; 0 if it has ended and is not reaped yet.

    Raises ValueError if there is none.
    """
    _name, closed, rest = read(b"%s/%s/stat" % (proc, pid)).rpartition(b")")
    if not closed:
        raise ValueError("no such process")
    fields = rest.split()  # from field 3 of proc(5) on; the name, field 2, may hold anything
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def _is_stale(name: bytes, proc: bytes) -> bool:
    """Return True if the process of this pid namespace that made the group *name* is gone."""
    try:
        pid, start = (int(field) for field in name.split(b"-")[2:4])
        try:
            os.kill(pid, 0)
        except PermissionError:
            pass  # so it exists
        return _start_time(proc, b"%d" % pid) != start
    except ProcessLookupError:
        return True
    except (OSError, ValueError, OverflowError):
        return False  # unknown
