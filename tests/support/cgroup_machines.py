"""Kinds of machines, by what cgroups they have, and where groups are made on each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from fake_cgroups import ALL, FakeKernel

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
