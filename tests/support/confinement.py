"""What the probe (probe.c) is expected to report from inside a step: one table, one report."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import Pybuild

_SUPPORT = Path(__file__).resolve().parent
X86 = platform.machine() == "x86_64"

E = errno
HELD = E.ENOENT  # what a search of the probe answers that found nothing

# The answers that are expected, by the probes that give them. Those of the second half work: a filter
# that refuses everything would be no use.
_ANSWERS: list[tuple[set[int], str]] = [
    ({E.EPERM}, """
        mount_tmpfs mount_proc mount_sysfs mount_devpts mount_mqueue mount_cgroup mount_cgroup2 mount_devtmpfs
        mount_debugfs mount_securityfs mount_binfmt mount_bpf mount_overlay mount_fuse mount_bind mount_move
        mount_remount mount_remount_proc mount_shared umount_mask umount_proc_sys umount_proc umount_resolver
        umount_root fs_open fs_config fs_mount fs_pick open_tree_plain open_tree_clone move_mount mount_setattr
        pivot_root map_files
        unshare_user unshare_mnt unshare_net unshare_pid unshare_uts unshare_ipc unshare_cgroup unshare_time
        clone_user clone_mnt clone_net clone_pid clone_uts clone_ipc clone_cgroup clone_all
        setns_user setns_mnt setns_net setns_pid setns_uts setns_ipc setns_cgroup setns_time setns_pidfd
        ns_parent_user ns_parent_pid uid_map
        pidfd_getfd kcmp process_madvise sched_fifo sched_deadline io_realtime
        limit_files limit_processes limit_memlock limit_core limit_realtime limit_parent
        cap_sys_admin cap_sys_ptrace cap_net_admin cap_dac_read_search cap_ambient set_mm set_mm_exe
        personality_no_randomize personality_read_implies_exec personality_sticky
        keyctl_id keyctl_join keyctl_read keyctl_search keyctl_persistent add_key request_key
        bpf_map bpf_program bpf_next_id perf_event user_fault uring_setup uring_enter uring_register fanotify
        kexec kexec_file module_init module_file module_delete reboot_switch swap_on swap_off accounting
        quota quota_fd set_time set_clock adjust_time adjust_clock set_hostname set_domainname kernel_log hang_up
        dcookie set_mempolicy move_pages migrate_pages open_by_handle open_by_handle_root freeze
        socket_alg socket_alg_upper socket_vsock socket_vsock_upper socket_vsock_top socket_unknown socket_dead
        link_down mknod_whiteout set_trusted chmod_null touch_null
     """),
    ({E.ENOSYS}, "open_tree_attr clone3_plain clone3_user clone3_time clone3_nothing number_400 number_471 number_5000 number_high"),
    ({HELD}, "chroot_escape proc_root proc_root_up proc_cwd_up proc_task_root foreign_processes"),
    ({E.ESRCH}, "kill_all kill_others kill_outside"),
    ({E.EACCES}, "nice_up oom_minus oom_never"),
    ({E.ENOTTY}, "tiocsti tioclinux tiocsctty"),
    ({E.ENXIO}, "tty"),
    ({E.ECONNREFUSED}, "abstract_socket"),
    ({E.EBUSY}, "rename_resolver rename_hosts replace_resolver replace_hosts unlink_resolver unlink_hosts rename_proc"),
    ({E.EROFS}, "chmod_resolver truncate_hosts"),
    ({0}, """
        clone_plain ptrace_parent ptrace_child vm_read pidfd_open nice_down limit_lower oom_more oom_less
        cap_chown keep_securebits personality_ask personality_linux32 ask_time name_to_handle ptmx
        socket_unix socket_inet socket_inet6 socket_netlink socket_packet socket_icmp low_port
        fifo set_owner set_mode set_capability set_attribute be_another be_in_groups change_root landlock filter
        openat2 faccess close_range memory_file shared_memory
     """),
]  # fmt: skip
_ANSWERS_X86: list[tuple[set[int], str]] = [
    ({E.ENOSYS}, """
        x32_getpid x32_unshare x32_mount x32_keyctl x32_bpf x32_socket x32_vsock x32_setns x32_clone3 x32_ptrace
        x32_last old_clone3 old_471 old_5000
     """),
    ({E.EPERM}, """
        iopl ioperm uselib ustat sysfs sysctl
        old_unshare old_mount old_umount old_umount2 old_keyctl old_add_key old_bpf old_socketcall_alg
        old_socketcall_vsock old_socket_alg old_socket_vsock old_clone old_setns old_pivot_root old_fsopen
        old_open_tree old_uring old_personality old_reboot old_iopl old_stime old_vm86 old_handle
     """),
    ({0}, "old_getpid old_socket_unix"),
]  # fmt: skip
TABLE = {
    name: answers for answers, names in _ANSWERS + (_ANSWERS_X86 if X86 else []) for name in names.split()
}
# Probes that are a path, by their first word: it depends on the kernel which of them there are.
_PATHS = {
    "write": {E.EROFS, E.EACCES, E.ENOENT},
    "read": {E.ENODATA, E.EACCES, E.EPERM, E.ENOENT},
    "open": {E.ENOENT, E.EACCES},
    "node": {E.EPERM, E.EACCES},
    "may": {0},
}

# With one id there is nobody else to be; changing owners and groups seems to work, and does nothing.
SINGLE_ID: dict[str, set[int]] = {"be_another": {E.EINVAL}}
# A USER that is not root.
UNPRIVILEGED: dict[str, set[int]] = {
    "chroot_escape": {E.EPERM},
    "cap_chown": {E.EPERM},
    "keep_securebits": {E.EPERM},
    "low_port": {E.EACCES},
    "socket_packet": {E.EPERM},
    "socket_icmp": {E.EPERM},
    "set_owner": {E.EPERM},
    "set_capability": {E.EPERM},
    "be_another": {E.EPERM},
    "be_in_groups": {E.EPERM},
    "change_root": {E.EPERM},
    "truncate_hosts": {E.EACCES},
    "rename_resolver": {E.EACCES},
    "rename_hosts": {E.EACCES},
    "replace_resolver": {E.EACCES},
    "replace_hosts": {E.EACCES},
    "unlink_resolver": {E.EACCES},
    "unlink_hosts": {E.EACCES},
    "rename_proc": {E.EACCES},
}


def expected(name: str) -> set[int]:
    """The answers that a default step may get to the probe *name*."""
    return TABLE[name] if name in TABLE else _PATHS[name.partition(" ")[0]]


def is_hostile(name: str) -> bool:
    """Whether a step is to be refused what the probe *name* tries."""
    return 0 not in expected(name)


def differences(answers: Mapping[str, int], overrides: Mapping[str, set[int]]) -> dict[str, str]:
    """The probes that did not get the answer expected, or were not asked."""
    out = {name: "not asked" for name in TABLE if name not in answers}
    for name, answer in answers.items():
        wanted = overrides.get(name, expected(name))
        if answer not in wanted:
            out[name] = f"{said(answer)}, not {' or '.join(map(said, sorted(wanted)))}"
    return out


def said(answer: int) -> str:
    if answer >= 200:
        return f"signal {answer - 200}"
    return errno.errorcode.get(answer, str(answer)) if answer else "success"


# -- the report ----------------------------------------------------------------------------

CAPABILITIES = "00000000a80425fb"  # the 14 that docker and BuildKit give
DEVICES = "null zero full random urandom tty"
ENTRIES = DEVICES + " core fd mqueue ptmx pts shm stderr stdin stdout"
MASKED = (
    "/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/sched_debug "
    "/proc/scsi /proc/timer_list /proc/timer_stats /proc/tty/driver /sys/devices/virtual/powercap /sys/firmware /sys/fs/selinux"
)
READ_ONLY = "/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger"
_PLAIN = "nosuid,nodev,noexec"


def mounts() -> dict[str, str]:
    """The mount table of a default step: file system, then what counts of its options, by place."""
    out = {
        "/": "overlay rw,nodev",
        "/proc": f"proc rw,{_PLAIN}",
        "/sys": f"sysfs ro,{_PLAIN}",
        "/dev": "tmpfs rw,nosuid",
        "/dev/pts": "devpts rw,nosuid,noexec",
        "/dev/shm": f"tmpfs rw,{_PLAIN}",
        "/dev/mqueue": f"mqueue rw,{_PLAIN}",
        "/etc/resolv.conf": f"tmpfs ro,{_PLAIN}",
        "/etc/hosts": f"tmpfs ro,{_PLAIN}",
    }
    for name in DEVICES.split():
        out[f"/dev/{name}"] = "device"
    for path in MASKED.split():
        if os.path.lexists(path):
            out[path] = f"tmpfs ro,{_PLAIN}" if os.path.isdir(path) else "device"
    for path in READ_ONLY.split():
        if os.path.lexists(path):
            out[path] = f"proc ro,{_PLAIN}"
    return out


@dataclass(frozen=True)
class Report:
    """What the probe said."""

    data: dict[str, Any]

    @property
    def answers(self) -> dict[str, int]:
        found: dict[str, int] = self.data["probes"]
        return found

    def mounts(self) -> dict[str, str]:
        """As ``mounts()`` has it."""
        found: dict[str, str] = {}
        for mount in self.data["mounts"]:
            if mount["point"].count("/") == 2 and mount["root"] in {f"/{name}" for name in DEVICES.split()}:
                found[mount["point"]] = "device"
                continue
            options = mount["options"].split(",")
            kept = [word for word in ("ro", "rw", "nosuid", "nodev", "noexec") if word in options]
            found[mount["point"]] = f"{mount['type']} {','.join(kept)}"
        return found

    def summary(self) -> dict[str, Any]:
        """The parts that are the same in every step, in a form that can be compared."""
        data = self.data
        return {
            **{name: data["status"][name] for name in sorted(data["status"])},
            "Groups": data["status"]["Groups"].strip(),
            **{name: data[name] for name in (
                "pid", "parent", "session", "umask", "cwd", "hostname", "domainname", "maps",
            )},
            "descriptors": {
                name: re.sub(r":\[\d+\]", "", link) for name, link in sorted(data["descriptors"].items())
            },
            "environment": sorted(data["environment"]),
            "keyring": said(data["keyring"]),
            "tty": said(data["tty"]),
            "core": data["rlimits"]["CORE"],
            "cgroup": sorted({line.split(":", 2)[2] for line in data["cgroup"]}),
            "devices": sorted(data["devices"]),
            "root": sorted(data["root"]),
            "processes": [name for name in data["proc"] if name.isdigit()],
            "shared": [mount["point"] for mount in data["mounts"] if mount["shared"]],
        }  # fmt: skip


def summary(uid: int = 0) -> dict[str, Any]:
    """What ``Report.summary`` is to be of a step that probe_context makes, as *uid* with the same gid."""
    held, nothing = CAPABILITIES if uid == 0 else "0" * 16, "0" * 16
    return {
        "CapInh": nothing,
        "CapPrm": held,
        "CapEff": held,
        "CapBnd": CAPABILITIES,
        "CapAmb": nothing,
        "NoNewPrivs": "0",
        "Seccomp": "2",
        "Uid": "\t".join([str(uid)] * 4),
        "Gid": "\t".join([str(uid)] * 4),
        "Groups": str(uid),
        "pid": 1,
        "parent": 0,
        "session": 1,
        "umask": 0o22,
        "cwd": "/",
        "hostname": "buildkitsandbox",
        "domainname": "(none)",
        "maps": ["/probe"],
        "descriptors": {"0": "/dev/null", "1": "pipe", "2": "pipe"},
        "environment": ["HOME", "PATH"],
        "keyring": "EPERM",
        "tty": "ENXIO",
        "core": [0, 0],
        "cgroup": ["/"],
        "devices": sorted(ENTRIES.split()),
        "root": ["Dockerfile", "dev", "etc", "p", "probe", "proc", "sys", "this-is-for-probes"],
        "processes": ["1"],
        "shared": [],
    }


# -- making it run -------------------------------------------------------------------------


def compile_c(source: str, target: Path, *options: str) -> Path:
    """Compile a C program of tests/support."""
    command = [
        "gcc",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        *options,
        "-o",
        str(target),
        str(_SUPPORT / source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def compile_probe(folder: Path) -> Path:
    return compile_c("probe.c", folder / "probe", "-static")


def put_probe(folder: Path, probe: Path) -> None:
    """Put the probe, its mark and the folder it works in into *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(probe, folder / "probe")
    (folder / "probe").chmod(0o755)
    (folder / "this-is-for-probes").touch()
    (folder / "p").mkdir(exist_ok=True)
    (folder / "p").chmod(0o777)


def probe_context(pybuild: Pybuild, probe: Path, lines: Iterable[str] = ()) -> Path:
    """A context whose image is the probe alone, and which leaves its report as /p/report."""
    text = ["FROM scratch", "COPY . /", *lines, 'RUN ["/probe", "report", "/p/report"]']
    context = pybuild.context("\n".join(text) + "\n")
    put_probe(context, probe)
    return context


def read_report(text: str | bytes) -> Report:
    return Report(json.loads(text))
