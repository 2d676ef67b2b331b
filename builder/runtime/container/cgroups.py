"""Cgroups of steps: v1, hybrid and v2, whatever is writable.

Unless --cgroup-parent names a place, groups are made inside our own group, so that whatever
limits this build limits its steps too. The one exception are groups with limits on v2: they
are made beside our own group, because one that holds processes, as ours does, cannot pass
controllers on (only the root of all groups can).

Starting a process in a v2 group costs nothing; putting one into a v1 group takes the kernel
about 10 ms. So a v2 group is made wherever one can be, and in a v1 hierarchy only for a limit,
or for a --cgroup-parent that exists there, which somebody may have limited.
"""

import errno
import os
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypedDict

    class Limits(TypedDict, total=False):
        """What a step may use at most; what is missing or nothing is not limited.

        ``memory``     bytes; there is no swap besides
        ``cpu_quota``  microseconds of CPU time in every 100 ms
        ``cpuset``     the CPUs it may run on, like ``b"0-3,5"``
        ``pids``       processes and threads
        """

        memory: int
        cpu_quota: int
        cpuset: bytes
        pids: int

else:
    Limits = dict

_PREFIX = b"pybuild"
_CONTROLLERS = ("memory", "cpu", "cpuset", "pids")
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

_CLOSE_PATIENCE = 0.5
_SWEEP_PATIENCE = 1.0
_KILL_PASSES = 10


class CgroupError(Exception):
    """A group cannot be made or does not take its limits; the message is for the user."""


class Usage:
    """What a step has used."""

    def __init__(self, peak: int, cpu_seconds: float, oom_kills: int) -> None:
        self.peak = peak  # bytes of memory; 0 where it is not known
        self.cpu_seconds = cpu_seconds  # -1.0 where it is not known
        self.oom_kills = oom_kills  # of processes, v2 may count one twice; -1 where it is not known


# -- groups --------------------------------------------------------------------------------


class Group:
    """The group of one step: at most one directory in each hierarchy, perhaps none at all."""

    def __init__(self) -> None:
        self.fd = -1  # the v2 part, for clone3 with CLONE_INTO_CGROUP; -1 if there is none
        self._v2 = b""
        self._v1: list[bytes] = []

    def add(self, path: bytes, unified: bool) -> None:
        """Take in the directory *path*, just made."""
        if not unified:
            self._v1.append(path)
            return
        self._v2 = path
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise CgroupError(f"opening the cgroup {os.fsdecode(path)}: {error.strerror}") from None

    def enter(self, pid: int, *, into_v2: bool = False) -> None:
        """Put the process *pid* into every v1 part, and into the v2 part unless clone3 has done so."""
        for path in (*self._v1, self._v2) if into_v2 and self._v2 else self._v1:
            try:
                _write(path + b"/cgroup.procs", b"%d" % pid)
            except OSError as error:
                why = f"putting a step into the cgroup {os.fsdecode(path)}: {error.strerror}"
                raise CgroupError(why) from None

    def usage(self) -> Usage:
        """What the processes of the group have used so far."""
        peak, microseconds, oom_kills = -1, -1, -1
        if self._v2:
            peak = _number(self._v2 + b"/memory.peak")
            microseconds = _number(self._v2 + b"/cpu.stat", b"usage_usec")
            oom_kills = _number(self._v2 + b"/memory.events", b"oom_kill")
        for path in self._v1:
            peak = max(peak, _number(path + b"/memory.max_usage_in_bytes"))
            oom_kills = max(oom_kills, _number(path + b"/memory.oom_control", b"oom_kill"))
            if microseconds < 0 and (nanoseconds := _number(path + b"/cpuacct.usage")) >= 0:
                microseconds = nanoseconds // 1000
        return Usage(max(peak, 0), microseconds / 1e6 if microseconds >= 0 else -1.0, oom_kills)

    def kill(self) -> None:
        """Kill every process of the group."""
        for path in self._paths():
            _kill(path)

    def close(self) -> None:
        """Kill what is left in the group and remove it."""
        _remove(self._paths(), _CLOSE_PATIENCE)
        if self.fd >= 0:
            os.close(self.fd)
        self.fd, self._v2, self._v1 = -1, b"", []

    def _paths(self) -> list[bytes]:
        return [self._v2, *self._v1] if self._v2 else self._v1


def _kill(path: bytes) -> None:
    try:
        _write(path + b"/cgroup.kill", b"1")
        return
    except OSError:
        pass  # v1, or a kernel before 5.14
    seen: set[int] = set()
    for _ in range(_KILL_PASSES):  # they may fork meanwhile
        found = {int(pid) for pid in _read(path + b"/cgroup.procs").split()}
        if found <= seen:
            return
        seen |= found
        for pid in found - {0, os.getpid()}:  # 0: a process that this pid namespace has no number for
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass


def _remove(paths: list[bytes], patience: float) -> None:
    """Remove groups; kill what is in them. Those that have died may need a moment to be gone."""
    left = [path for path in paths if not _is_removed(path)]
    end, pause = time.monotonic() + patience if left else 0.0, 0.001
    while left:
        for path in left:
            _kill(path)
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
        left = [path for path in left if not _is_removed(path)]
        if time.monotonic() > end:
            return


def _is_removed(path: bytes) -> bool:
    """Try to remove a group; false if trying again may help."""
    try:
        os.rmdir(path)
    except OSError as error:
        return error.errno not in (errno.EBUSY, errno.ENOTEMPTY)
    return True


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
        """Where groups are to be made, *limited* or not; empty if nowhere."""
        if parent:
            return os.path.normpath(self.top + b"/" + parent)
        if limited and self.unified and self._own not in (b"", self.top):
            return os.path.dirname(self._own)
        return self._own

    def place(self, parent: bytes, limited: bool) -> bytes:
        """Where groups can be made; raises CgroupError if nowhere."""
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
        if controller.encode() in _read(group + b"/cgroup.subtree_control").split():
            return
        if controller.encode() not in _read(group + b"/cgroup.controllers").split():
            if group == self.top:
                raise CgroupError(f"{self} has no {controller} controller")
            self.enable(os.path.dirname(group), controller)
        # Some controllers the kernel would enable, with groups that no process can be put into.
        if _has_type(group) and _read(group + b"/cgroup.procs").strip():
            raise CgroupError(f"{os.fsdecode(group)} holds processes, so groups in it cannot be limited")
        _write_or_say(group + b"/cgroup.subtree_control", b"+" + controller.encode())

    def fill_cpuset(self, group: bytes) -> None:
        """Give a v1 group CPUs and memory nodes; until it has both, no process can be put into it."""
        for name in (b"/cpuset.mems", b"/cpuset.cpus"):
            if group != self.top and not _read(group + name).strip():
                above = os.path.dirname(group)
                self.fill_cpuset(above)
                _write_or_say(group + name, _read(above + name).strip())

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
        # Who moves a process needs the right to do so in the closest group above both ends.
        shared = os.path.commonpath([place, self._own or place])
        if not os.access(shared + b"/cgroup.procs", os.W_OK):
            raise CgroupError(f"{os.fsdecode(shared)}/cgroup.procs is not writable")
        if _has_type(place) and (kind := _read(place + b"/cgroup.type").strip()) != b"domain":
            raise CgroupError(f"{os.fsdecode(place)} is of the type {os.fsdecode(kind)}")


def _has_type(group: bytes) -> bool:
    """Whether a v2 group is not the root of them all."""
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
        """Which of memory, cpu, cpuset and pids can be limited; found out by trying, once."""
        if self._can is None:
            self._can = frozenset(name for name in _CONTROLLERS if self._try(name))
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
        _remove(stale, _SWEEP_PATIENCE)

    def prefix(self) -> bytes:
        """What the names of this process's groups begin with: a dash and a number are to follow."""
        namespace, start = 0, time.monotonic_ns()
        try:
            namespace, start = _pid_namespace(self._proc), _start_time(self._proc, b"self")
        except (OSError, ValueError):
            pass  # without /proc nothing is swept either
        return b"%s-%d-%d-%d" % (_PREFIX, namespace, os.getpid(), start)

    def _holder(self, controller: str) -> _Hierarchy:
        """The hierarchy with *controller*; the kernel gives each to one."""
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
                return b""  # it would have been of use, no more
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


def find(parent: bytes = b"", root: bytes = b"/sys/fs/cgroup", proc: bytes = b"/proc") -> Hierarchies:
    """The hierarchies mounted at or below *root*. Nothing is made yet.

    *parent*, the value of --cgroup-parent, is a path below each hierarchy's mount where groups
    are made instead of near our own; what is missing of it is made, and stays.
    """
    if b".." in parent.split(b"/") or b"\0" in parent:
        raise CgroupError(f"--cgroup-parent {os.fsdecode(parent)}: no path below {os.fsdecode(root)}")
    mounts = _mounts(root, proc)
    mounted: list[_Hierarchy] = []
    for line in _read(proc + b"/self/cgroup").splitlines():
        _id, names, own = line.split(b":", 2)  # v2 has no names
        controllers = [name.decode() for name in names.split(b",") if name and not name.startswith(b"name=")]
        if names and not (controllers if parent else set(controllers) & set(_CONTROLLERS)):
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
    """Where hierarchies are mounted: the group shown there, and options, an empty one for v2."""
    mounts = {}
    for line in _read(proc + b"/self/mountinfo").splitlines():
        if b" - cgroup" not in line:
            continue
        mount, _dash, source = line.partition(b" - ")
        shown, top = (_unescape(field) for field in mount.split(b" ")[3:5])
        kind, _name, options = source.split(b" ", 2)
        if top == root or top.startswith(root + b"/"):  # a later mount hides those before it
            mounts[top] = (shown, {b""} if kind == b"cgroup2" else set(options.split(b",")))
    return mounts


def _unescape(path: bytes) -> bytes:
    """A path of mountinfo, where blanks are written ``\\040``."""
    head, *rest = path.split(b"\\")
    return head + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


def _locate(top: bytes, shown: bytes, own: bytes) -> bytes:
    """The directory of the group *own* in a mount of the group *shown*; empty if it is not in it."""
    shown, own = shown.rstrip(b"/"), own.rstrip(b"/")
    if own != shown and not own.startswith(shown + b"/"):
        return b""
    below = own[len(shown) :]
    return b"" if b".." in below.split(b"/") else top + below


# -- limits --------------------------------------------------------------------------------


def _values(limits: Limits) -> dict[str, bytes]:
    """The limits by their controllers, as the kernel is told."""
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
            _write_or_say(path, template.replace(b"@", value))
        except CgroupError as error:
            raise CgroupError(f"{_cannot([controller])}{error}") from None


def _cannot(controllers: list[str]) -> str:
    """How the message begins when groups for *controllers* cannot be had."""
    if not controllers:
        return "--cgroup-parent: "
    return f"cannot limit {' and '.join(_WORDS[name] for name in controllers)} of a step: "


# -- files ---------------------------------------------------------------------------------


def _read(path: bytes) -> bytes:
    """What a file holds; nothing if it cannot be read."""
    data = b""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while more := os.read(fd, 1 << 16):
                data += more
        finally:
            os.close(fd)
    except OSError:
        pass
    return data


def _write(path: bytes, value: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value)
    finally:
        os.close(fd)


def _write_or_say(path: bytes, value: bytes) -> None:
    try:
        _write(path, value)
    except OSError as error:
        said = f"writing {os.fsdecode(value)} to {os.fsdecode(path)}: {error.strerror}"
        raise CgroupError(said) from None


def _number(path: bytes, name: bytes = b"") -> int:
    """The number in a file, or after *name* in one with lines of names and numbers; -1 if none."""
    for line in _read(path).splitlines():
        key, _blank, value = line.rpartition(b" ")
        if key == name and value.isdigit():
            return int(value)
    return -1


def _pid_namespace(proc: bytes) -> int:
    """The inode of our pid namespace."""
    return int(os.readlink(proc + b"/self/ns/pid").removeprefix(b"pid:[").removesuffix(b"]"))


def _start_time(proc: bytes, pid: bytes) -> int:
    """When a process began, in ticks since boot, 0 for one that has ended and is not reaped yet;
    raises ValueError if there is none.
    """
    _name, closed, rest = _read(b"%s/%s/stat" % (proc, pid)).rpartition(b")")
    if not closed:
        raise ValueError("no such process")
    fields = rest.split()  # from field 3 of proc(5) on; the name, field 2, may hold anything
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def _is_stale(name: bytes, proc: bytes) -> bool:
    """Whether the process of our pid namespace that made the group *name* is gone."""
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
        return False  # nobody can tell
