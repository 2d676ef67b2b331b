"""Containers as Kubernetes starts those of a pod."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemons import program, remove_cgroups, say
from place import ENVIRONMENT, MEMORY, SLEEP, STORE, SUBIDS, Place, bound_folders, make_root, own_mounts

_DOCKERS = """CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT
    KILL AUDIT_WRITE"""
CAPABILITIES = [f"CAP_{name}" for name in _DOCKERS.split()]
_MASKED = """/proc/acpi /proc/asound /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list /proc/timer_stats
    /proc/sched_debug /proc/scsi /sys/firmware /sys/devices/virtual/powercap""".split()
_READ_ONLY = "/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger".split()
_KUBELETS = ("/etc/hosts", "/etc/resolv.conf")
_NAMESPACES = 0x7E020000
_EPERM, _EACCES, _ENOSYS = 1, 13, 38
_MOUNTS = "mount umount umount2 pivot_root open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr".split()
# What the profiles of container engines refuse to a container without CAP_SYS_ADMIN.
_PRIVILEGED = """acct add_key bpf clock_adjtime clock_settime create_module delete_module fanotify_init finit_module
    get_kernel_syms get_mempolicy init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp
    kexec_file_load kexec_load keyctl lookup_dcookie mbind move_pages nfsservctl open_by_handle_at perf_event_open
    pidfd_getfd process_madvise quotactl reboot request_key set_mempolicy setdomainname sethostname setns settimeofday
    stime swapoff swapon sysfs syslog _sysctl umount unshare uselib userfaultfd ustat vhangup vm86 vm86old""".split()


def _refused(names: Sequence[str], code: int, **more: object) -> dict[str, object]:
    return {"names": list(names), "action": "SCMP_ACT_ERRNO", "errnoRet": code, **more}


def _filter(rules: list[dict[str, object]]) -> dict[str, object]:
    machines = {
        "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
    }
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": machines[platform.machine()],
        "syscalls": rules,
    }


def _runtime_default() -> dict[str, object]:
    """What ``RuntimeDefault`` refuses."""
    masks = [1 << bit for bit in range(32) if _NAMESPACES >> bit & 1]
    clones = [
        _refused(
            ["clone"],
            _EPERM,
            args=[{"index": 0, "value": mask, "valueTwo": mask, "op": "SCMP_CMP_MASKED_EQ"}],
        )
        for mask in masks
    ]
    return _filter([_refused([*_PRIVILEGED, *_MOUNTS], _EPERM), _refused(["clone3"], _ENOSYS), *clones])


def no_mounts() -> dict[str, object]:
    """What AppArmor does to a container: user namespaces can be made, and nothing be mounted in them."""
    return _filter([_refused(_MOUNTS, _EACCES)])


@dataclass(frozen=True)
class Pod:
    """What a pod's spec says, as far as it differs."""

    seccomp: Callable[[], dict[str, object]] | None = _runtime_default
    read_only_root: bool = False
    user: int = 0
    own_users: bool = False  # hostUsers: false, with procMount: Unmasked
    store: str = STORE


def _mounts(pod: Pod, work: Path, volumes: Path) -> list[dict[str, object]]:
    def mount(target: str, kind: str, source: str, *options: str) -> dict[str, object]:
        return {"destination": target, "type": kind, "source": source, "options": list(options)}

    plain = ("nosuid", "noexec", "nodev")
    found = [
        mount("/proc", "proc", "proc", *plain),
        mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        mount(
            "/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"
        ),
        mount("/dev/shm", "tmpfs", "shm", *plain, "mode=1777", "size=65536k"),
        mount("/dev/mqueue", "mqueue", "mqueue", *plain),
        mount("/sys", "sysfs", "sysfs", *plain, "ro"),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", *plain, "relatime", "ro"),
        mount(MEMORY, "tmpfs", "tmpfs", "mode=755"),
    ]
    if pod.own_users:  # /sys of another's network cannot be mounted
        found[5] = mount("/sys", "bind", "/sys", "rbind", *plain, "ro")
        del found[6]
    for path in (*bound_folders(), *_KUBELETS):
        found.append(mount(path, "bind", path, "rbind", "ro"))
    found.append(mount(str(work), "bind", str(work), "rbind", "rw"))
    if pod.read_only_root:
        for name in ("store", "tmp"):
            (volumes / name).mkdir()
            (volumes / name).chmod(0o1777 if name == "tmp" else 0o755)
        found.append(mount("/volume", "bind", str(volumes / "store"), "rbind", "rw"))
        found.append(mount("/tmp", "bind", str(volumes / "tmp"), "rbind", "rw"))
    return found


def _config(pod: Pod, work: Path, volumes: Path, name: str, network: str) -> dict[str, Any]:
    """The config.json of containerd for a pod's container."""
    held = [] if pod.user else CAPABILITIES
    spaces = ["pid", "ipc", "uts", "mount", "cgroup", *(["network"] if network == "none" else [])]
    linux: dict[str, object] = {
        "namespaces": [{"type": space} for space in [*spaces, *(["user"] if pod.own_users else [])]],
        "cgroupsPath": f"/places/{volumes.parent.name}",
        "maskedPaths": [] if pod.own_users else _MASKED,
        "readonlyPaths": [] if pod.own_users else _READ_ONLY,
    }
    if pod.own_users:
        ids = [{"containerID": 0, "hostID": SUBIDS, "size": 65536}]
        linux |= {"uidMappings": ids, "gidMappings": ids}
    if pod.seccomp:
        linux["seccomp"] = pod.seccomp()
    return {
        "ociVersion": "1.0.2",
        "hostname": "pod",
        "root": {"path": "rootfs", "readonly": pod.read_only_root},
        "process": {
            "terminal": False,
            "user": {"uid": pod.user, "gid": pod.user},
            "args": SLEEP,
            "env": [f"{key}={value}" for key, value in ENVIRONMENT.items()],
            "cwd": "/",
            "capabilities": {"bounding": held, "effective": held, "permitted": held},
            "noNewPrivileges": bool(pod.user),
        },
        "mounts": _mounts(pod, work, volumes),
        "linux": linux,
    }


@contextmanager
def pod_place(folder: Path, work: Path, network: str, name: str, pod: Pod) -> Iterator[Place]:
    """A container of a pod, started by crun. Its root is an overlay, as containerd's snapshots are."""
    bundle, volumes = folder / "b", folder / "v"
    for path in (folder / "lower", folder / "upper", folder / "work", bundle / "rootfs", volumes):
        path.mkdir(parents=True)
    owner = SUBIDS if pod.own_users else 0
    make_root(folder / "lower", owner)
    if pod.read_only_root:
        (folder / "lower/volume").mkdir()
    if pod.own_users:
        subprocess.run(["chown", f"{owner}:{owner}", folder / "upper", work], check=True)
    (bundle / "config.json").write_text(json.dumps(_config(pod, work, volumes, name, network)))
    layers = f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work"
    with ExitStack() as stack:
        inside = stack.enter_context(own_mounts())
        crun = [*inside, program("crun"), f"--root={folder}/c", "--cgroup-manager=cgroupfs"]
        say([*inside, "mount", "-t", "overlay", "-o", layers, "overlay", bundle / "rootfs"])
        stack.callback(remove_cgroups, "places")
        with (folder / "log").open("wb") as log:  # the container keeps it open
            done = subprocess.run(
                [*crun, "run", "-d", "-b", bundle, name], stdout=log, stderr=log, check=False
            )
        assert done.returncode == 0, (folder / "log").read_text()
        stack.callback(_delete, crun, name)
        yield Place(name, [*crun, "exec", *_user(pod), name], work, pod.store)


def _user(pod: Pod) -> list[str]:
    """How crun executes a command as the container's own user, with no more than that has."""
    caps = [f"--cap={name}" for name in CAPABILITIES] if not pod.user and pod.own_users else []
    return [f"--user={pod.user}:{pod.user}", "--no-new-privs", *caps] if pod.user else caps


def _delete(crun: list[str], name: str) -> None:
    subprocess.run([*crun, "delete", "-f", name], capture_output=True, check=False)
    end = time.monotonic() + 10
    while json.loads(say([*crun, "list", "-f", "json"]) or "null"):
        assert time.monotonic() < end, f"{name} does not end"
        time.sleep(0.05)
