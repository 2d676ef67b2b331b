"""Containers as docker, podman and Kubernetes start them, with nothing allowed besides, and pybuild in each.

Each is a container that sleeps, in which commands are executed. It has a root of a few files; programs are
this machine's /usr, the checkout and its Python, read-only. What is exchanged is in a folder that has the
same path inside.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemons import LIMITS, dockerd, program, remove_cgroups, say
from harness import PYBUILD, Result

ROOT = Path(__file__).resolve().parents[2]
STORE = "/var/lib/pybuild"  # on the container's own root
MEMORY = "/memory"  # a tmpfs, which a step's programs can be executed from
# What a test of this machine's own settings may see; of the rest a container gets nothing.
_KEPT = {
    name: value
    for name, value in os.environ.items()
    if name.startswith(("PIP_", "SSL_CERT", "NODE_EXTRA")) or name.lower().endswith("_proxy")
}
_ENVIRONMENT = {
    "PATH": f"{Path(PYBUILD).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "CONTAINERS_REGISTRIES_CONF": os.devnull,
}
_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib32": "usr/lib32", "lib64": "usr/lib64"}
_FOLDERS = "usr etc root tmp var run proc sys dev memory var/lib var/tmp"
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n",
    "etc/group": "root:x:0:\nuser:x:1000:\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}
_SLEEP = ["/usr/bin/sleep", "infinity"]
_SUBIDS = 300000  # where the ids of a container with a user namespace begin on this machine


@dataclass(frozen=True)
class Process:
    """A process of a place, as its own ps shows it."""

    pid: int
    state: str
    command: str


class Place:
    """A container that runs. *words* before a command execute it there."""

    def __init__(
        self,
        name: str,
        words: Sequence[str | Path],
        work: Path,
        store: str = STORE,
        anew: Sequence[str | Path] = (),
    ) -> None:
        """*anew* are the words that start a container of a command, "first", where a program has any."""
        self.name = name
        self.words = [str(word) for word in words]
        self.work = work
        self.store = store
        self.anew = [str(word) for word in anew]

    def command(self, *command: str | Path, store: str = "", anew: bool = False) -> list[str]:
        """What executes *command* in the place, or *anew* as the first process of another."""
        env = {**_ENVIRONMENT, **_KEPT, "PYBUILD_ROOT": store or self.store}
        settings = [f"{name}={value}" for name, value in env.items()]
        words = self.anew if anew else self.words
        return [*words, "/usr/bin/env", "-C", str(self.work), *settings, *map(str, command)]

    def do(self, *command: str | Path, store: str = "", stdin: bytes = b"", timeout: float = 120) -> Result:
        """Execute *command* to its end."""
        done = subprocess.run(
            self.command(*command, store=store),
            input=stdin,
            capture_output=True,
            check=False,
            timeout=timeout,
        )
        out, err = (data.decode("utf-8", "backslashreplace") for data in (done.stdout, done.stderr))
        return Result(done.returncode, out, err)

    def __call__(
        self, *args: str | Path, store: str = "", stdin: bytes = b"", timeout: float = 120
    ) -> Result:
        """Execute pybuild to its end."""
        return self.do(PYBUILD, *args, store=store, stdin=stdin, timeout=timeout)

    def processes(self) -> list[Process]:
        """What runs in the place, but for what sleeps there and what looks."""
        lines = self.do("/usr/bin/ps", "-eo", "pid=,stat=,args=").ok().out.splitlines()
        rows = [
            Process(int(pid), state, rest) for pid, state, rest in (line.split(None, 2) for line in lines)
        ]
        return [row for row in rows if not row.command.endswith((" infinity", "pid=,stat=,args="))]


# -- what all have -------------------------------------------------------------------------


def _make_root(folder: Path, owner: int = 0) -> None:
    """Make a root file system of a few files; the rest is mounted."""
    for name in _FOLDERS.split():
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, text in _FILES.items():
        (folder / name).write_text(text)
    for name, target in _LINKS.items():
        if os.path.exists(f"/{name}"):
            (folder / name).symlink_to(target)
    for bound in _bound():
        (folder / bound.strip("/")).mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "var/tmp"):
        (folder / name).chmod(0o1777)
    if owner:
        subprocess.run(["chown", "-hR", f"{owner}:{owner}", folder], check=True)


def _bound() -> list[str]:
    """Folders of this machine that programs need, bound read-only at the same path."""
    wanted = [Path("/usr"), Path("/etc/ssl"), Path("/etc/ca-certificates"), Path(sys.base_prefix), ROOT]
    found = [path.resolve() for path in wanted if path.exists()]
    inner = {path for path in found if any(other in path.parents for other in found)}
    return [str(path) for path in dict.fromkeys(found) if path not in inner]


def _root_archive() -> bytes:
    """The same root as a tar."""
    with tempfile.TemporaryDirectory() as folder:
        _make_root(Path(folder))
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            tar.add(folder, ".")
        return out.getvalue()


def _volumes(work: Path) -> list[str]:
    return [*(f"-v={path}:{path}:ro" for path in _bound()), f"-v={work}:{work}"]


# -- docker and podman ---------------------------------------------------------------------


@contextmanager
def _docker(folder: Path, work: Path, network: str) -> Iterator[Place]:
    """``docker run``, as it is."""
    tools = {name: program(name) for name in ("docker", "dockerd")}
    try:
        with dockerd(tools, folder) as client:
            subprocess.run(
                [*client, "import", "-", "place"], input=_root_archive(), check=True, capture_output=True
            )
            memory = f"--tmpfs={MEMORY}:exec"
            run = [*client, "run", f"--network={network}", memory, *_volumes(work)]
            say([*run, "-d", "--name=place", "place", *_SLEEP])
            try:
                anew = [*run, "--name=first", "place"]
                yield Place("docker", [*client, "exec", "-i", "place"], work, anew=anew)
            finally:
                say([*client, "rm", "-f", "place"])
    finally:
        # The daemon leaves this machine's own network namespace mounted.
        subprocess.run(["umount", folder / "exec/netns/default"], capture_output=True, check=False)
        remove_cgroups("docker")


@contextmanager
def _podman(folder: Path, work: Path, network: str, runtime: str) -> Iterator[Place]:
    """``podman run``, as it is."""
    with ExitStack() as stack:
        inside = stack.enter_context(_own_mounts())
        client = [
            *inside,
            program("podman"),
            f"--root={folder}/r",
            f"--runroot={folder}/n",
            f"--runtime={runtime}",
        ]
        client += ["--cgroup-manager=cgroupfs", "--events-backend=none", f"--tmpdir={folder}/t"]
        subprocess.run(
            [*client, "import", "-", "place"], input=_root_archive(), check=True, capture_output=True
        )
        options = [f"--network={network}", f"--tmpfs={MEMORY}:exec", *LIMITS]
        stack.callback(remove_cgroups, "libpod_parent")
        stack.callback(_wait_for, folder)
        run = [*client, "run", *options, *_volumes(work)]
        say([*run, "-d", "--name=place", "place", *_SLEEP])
        stack.callback(say, [*client, "rm", "-af", "-t", "0"])
        yield Place(
            f"podman-{runtime}", [*client, "exec", "-i", "place"], work, anew=[*run, "--name=first", "place"]
        )


def _wait_for(folder: Path) -> None:
    """Wait for what podman starts at a container's end, to clean up."""
    end = time.monotonic() + 10
    while any(os.fsencode(folder) in data for data in _command_lines()):
        assert time.monotonic() < end, f"podman does not end in {folder}"
        time.sleep(0.05)


def _command_lines() -> Iterator[bytes]:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                yield (entry / "cmdline").read_bytes()


@contextmanager
def _own_mounts() -> Iterator[list[str]]:
    """What executes a command in a mount namespace of its own, whose mounts end with it.

    Of cgroups one version is left there, where there are two: crun can do nothing with both.
    """
    script = "umount /sys/fs/cgroup/unified 2>/dev/null; echo; exec sleep infinity"
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline()
            yield ["nsenter", f"--mount=/proc/{holder.pid}/ns/mnt"]
        finally:
            holder.kill()


# -- pods ----------------------------------------------------------------------------------

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


def _no_mounts() -> dict[str, object]:
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
    for path in (*_bound(), *_KUBELETS):
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
        ids = [{"containerID": 0, "hostID": _SUBIDS, "size": 65536}]
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
            "args": _SLEEP,
            "env": [f"{key}={value}" for key, value in _ENVIRONMENT.items()],
            "cwd": "/",
            "capabilities": {"bounding": held, "effective": held, "permitted": held},
            "noNewPrivileges": bool(pod.user),
        },
        "mounts": _mounts(pod, work, volumes),
        "linux": linux,
    }


@contextmanager
def _pod(folder: Path, work: Path, network: str, name: str, pod: Pod) -> Iterator[Place]:
    """A container of a pod, started by crun. Its root is an overlay, as containerd's snapshots are."""
    bundle, volumes = folder / "b", folder / "v"
    for path in (folder / "lower", folder / "upper", folder / "work", bundle / "rootfs", volumes):
        path.mkdir(parents=True)
    owner = _SUBIDS if pod.own_users else 0
    _make_root(folder / "lower", owner)
    if pod.read_only_root:
        (folder / "lower/volume").mkdir()
    if pod.own_users:
        subprocess.run(["chown", f"{owner}:{owner}", folder / "upper", work], check=True)
    (bundle / "config.json").write_text(json.dumps(_config(pod, work, volumes, name, network)))
    layers = f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work"
    with ExitStack() as stack:
        inside = stack.enter_context(_own_mounts())
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


# -- all -----------------------------------------------------------------------------------

PODS = {
    "pod": Pod(),
    "pod-read-only": Pod(read_only_root=True, store="/volume/store"),
    "pod-user-1000": Pod(user=1000),
    "pod-own-users": Pod(seccomp=None, own_users=True),
    "no-mounts": Pod(seccomp=_no_mounts),
}
# The places a build works in, and how its steps are isolated there.
CHOSEN = {
    "docker": "chroot",
    "podman-crun": "namespaces",
    "podman-runc": "namespaces",
    "pod": "chroot",
    "pod-read-only": "chroot",
    "pod-own-users": "namespaces",
    "no-mounts": "chroot",
}
REFUSING = ("pod-user-1000",)


@contextmanager
def opened(name: str, network: str = "none") -> Iterator[Place]:
    """The place *name*, for as long as the block lasts. *network* is "none", or "host" for this machine's."""
    folder = Path(tempfile.mkdtemp(prefix="p", dir="/dev/shm"))  # podman takes no long paths
    folder.chmod(0o755)
    work = folder / "w"
    work.mkdir()
    try:
        runtime = name.removeprefix("podman-")
        if name == "docker":
            made = _docker(folder, work, network)
        elif runtime != name:
            made = _podman(folder, work, network, runtime)
        else:
            made = _pod(folder, work, network, name, PODS[name])
        with made as place:
            yield place
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)
