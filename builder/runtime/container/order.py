"""The lists of operations that make a container, in the order in which they are applied.

Two lists make a step with namespaces: the frame, which is applied before the step is known, and the step. Two
others make a step in a chroot.
"""

from __future__ import annotations

import resource

from builder.runtime import syscalls as sc
from builder.runtime.container import operations as op
from builder.runtime.container.devices import DEVICES, LINKS
from builder.runtime.spec import CAP_SYS_CHROOT, ContainerSpec, FrameSpec, MountSpec
from cache.kernel import keeps_owners

TYPE_CHECKING = False
if TYPE_CHECKING:
    from builder.runtime.container.operations import (
        ChrootOperation,
        FrameOperation,
        ProcessOperation,
        RootOperation,
    )

KERNEL_FILES = (b"proc", b"sys", b"dev")

_MASKED = (
    b"proc/acpi",
    b"proc/asound",
    b"proc/interrupts",
    b"proc/kcore",
    b"proc/keys",
    b"proc/latency_stats",
    b"proc/sched_debug",
    b"proc/scsi",
    b"proc/timer_list",
    b"proc/timer_stats",
    b"proc/tty/driver",  # only the machine's root may list it: `find /` of a step would fail
    b"sys/devices/virtual/powercap",
    b"sys/firmware",
    b"sys/fs/selinux",
)
# Only host root may read these. They are masked if the step's root has host uid 0.
_OF_MACHINES_ROOT = (
    b"proc/kpagecgroup",
    b"proc/kpagecount",
    b"proc/kpageflags",
    b"proc/pagetypeinfo",
    b"proc/slabinfo",
    b"proc/vmallocinfo",
    b"sys/kernel/slab",
)
# File systems that are mounted inside the machine's /sys.
_MOUNTED_IN_SYS = (
    b"sys/fs/bpf",
    b"sys/fs/cgroup",
    b"sys/fs/fuse/connections",
    b"sys/fs/pstore",
    b"sys/kernel/config",
    b"sys/kernel/debug",
    b"sys/kernel/security",
    b"sys/kernel/tracing",
)
_READ_ONLY = (b"proc/bus", b"proc/fs", b"proc/irq", b"proc/sys", b"proc/sysrq-trigger")


def frame_operations(frame: FrameSpec) -> list[FrameOperation]:
    """Return the operations that prepare a container in the staging directory, before its step is known."""
    own_network = frame["network"] in ("none", "default")
    out: list[FrameOperation] = [
        op.Isolate(),
        op.NewProc(),
        op.Staging(b"1m"),
        op.Sysfs(own_network),
        op.MaskForeignProcesses(),
        op.FileSystem(b"dev", b"tmpfs", sc.MOUNT_ATTR_NOSUID, ((b"mode", b"0755"), (b"size", b"64m"))),
    ]
    devices = {b"/dev/" + name: number for name, number in DEVICES.items()}
    out += [op.Device(path[1:], path, devices[path]) for path in devices if path not in frame["devices"]]
    out += [
        op.GivenDevice(target[1:], source, index)
        for index, (target, source) in enumerate(frame["devices"].items())
    ]
    out += [op.Link(b"dev/" + name, target) for name, target in LINKS.items()]
    terminals: op.Options = ((b"newinstance", None), (b"ptmxmode", b"0666"), (b"mode", b"0620"))
    if keeps_owners():
        terminals = (*terminals, (b"gid", b"5"))
    shared_memory = ((b"mode", b"1777"), (b"size", b"%d" % frame["shm_size"]))
    out += [
        op.FileSystem(b"dev/pts", b"devpts", sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NOEXEC, terminals),
        op.FileSystem(b"dev/shm", b"tmpfs", sc.MOUNT_ATTR_NO_EXEC, shared_memory),
        op.FileSystem(b"dev/mqueue", b"mqueue", sc.MOUNT_ATTR_NO_EXEC, ()),
    ]
    if frame["masked"]:
        out += [op.Mask(path, "always") for path in _MASKED]
        out += [op.Mask(path, "outer sysfs") for path in _MOUNTED_IN_SYS]
        out += [op.Mask(path, "machine root") for path in _OF_MACHINES_ROOT]
        # Counters that tell what other work the machine does (RT-11).
        out.append(op.MaskEach(b"sys/devices/system/cpu", b"thermal_throttle"))
        out += [op.ReadOnly(path) for path in _READ_ONLY]
    if own_network:
        out.append(op.Loopback())
    return out


def step_operations(spec: ContainerSpec) -> list[RootOperation | ProcessOperation]:
    """Return the operations that start the step in a prepared container.

    Cover comes before MoveIn, so that a symlink of the image cannot lead it to a file of the kernel. MoveIn
    comes before mounts and volumes, so that these may lie below /dev.
    """
    out: list[RootOperation | ProcessOperation] = [op.Undumpable()]
    if spec["filtered"]:
        out.append(op.ReadFilter(spec["capabilities"], spec["any_socketcall"], not keeps_owners()))
    out += [op.EnterStore(), op.Root(spec["lowers"], spec["upper"], spec["work"])]
    out += [op.Cover(path, content) for path, content in spec["files"].items()]
    out += [op.MoveIn(name) for name in KERNEL_FILES]
    out += [op.Script(name, content) for name, content in spec["scripts"].items()]
    if spec["address"]:
        out.append(op.Address(*spec["address"]))
    out += [_mount_operation(mount) for mount in spec["mounts"]]
    for volume in spec["volumes"]:
        out.append(op.Volume(volume["target"], volume["source"], volume["read_only"]))
    out += [op.FindUser(spec["user"]), op.Hostname(spec["hostname"]), op.PivotRoot(), op.Descriptors()]
    out += [op.WorkingDirectory(spec["cwd"]), *_limits(spec)]
    if spec["frame"]["network"] == "shared":
        out.append(op.HideAbstractSockets())
    if spec["no_new_privileges"]:
        out.append(op.NoNewPrivileges())
    if spec["filtered"]:  # before capabilities are dropped, and after the calls that the filter refuses
        out.append(op.InstallFilter())
    return [*out, op.Identity(spec["capabilities"]), *_command(spec)]


def chroot_frame_operations() -> list[ChrootOperation | ProcessOperation]:
    """Return the operations that prepare a process for a step in a chroot."""
    return [op.EnterChroot(), op.RestrictScope(), op.NoNewPrivileges()]


def chroot_operations(spec: ContainerSpec, held: int) -> list[ChrootOperation | ProcessOperation]:
    """Return the operations that start the step in a prepared process.

    *held* is the mask of capabilities that the process can have.
    """
    network = spec["frame"]["network"]
    capabilities = spec["capabilities"] & held
    out: list[ChrootOperation | ProcessOperation] = []
    if spec["filtered"]:
        any_socketcall = spec["any_socketcall"] and network != "none"
        # Without the capability to chroot, the supervisor refuses the call and reports it.
        out.append(op.ReadFilter(spec["capabilities"] | CAP_SYS_CHROOT, any_socketcall, False))
    out.append(op.FindUser(spec["user"]))
    if spec["filtered"]:
        out.append(op.InstallFilter())
    read_only = any(read_only for *_, read_only in spec["placed"])
    out.append(op.Listen(network != "none", read_only, bool(capabilities & CAP_SYS_CHROOT)))
    out += [op.Descriptors(), op.WorkingDirectory(spec["cwd"]), *_limits(spec)]
    return [*out, op.Identity(capabilities), *_command(spec)]


def _mount_operation(mount: MountSpec) -> RootOperation:
    target = mount["target"]
    match mount["kind"]:
        case "tmpfs":
            return op.Tmpfs(target, mount["size"], mount["read_only"])
        case "store":
            return op.Bind(target, mount["path"], mount["source"], mount["read_only"])
        case "bind":
            upper, work = mount.get("upper", b""), mount.get("work", b"")
            return op.Overlay(target, mount["source"], mount["lowers"], upper, work, mount["read_only"])
        case "file":
            return op.File(target, mount["content"], mount["mode"], mount["uid"], mount["gid"])


def _limits(spec: ContainerSpec) -> list[op.Limit]:
    """Return the resource limits: no core files, and those of the command line."""
    limits = {resource.RLIMIT_CORE: (0, 0)} | spec["rlimits"]
    return [op.Limit(number, soft, hard) for number, (soft, hard) in limits.items()]


def _command(spec: ContainerSpec) -> list[ProcessOperation]:
    return [op.WaitForClock(spec["not_before"]), op.Execute(spec["argv"], spec["env"])]
