"""Positive controls: what the probe tries works where no step is confined."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest
from confinement import TABLE, X86, Report, is_hostile, put_probe, read_report

pytestmark = pytest.mark.e2e

# What real root can do in namespaces that are not user namespaces; the filter's answer is never among these.
ROOT_ONLY: dict[str, set[int]] = {
    "swap_on": {errno.ENOENT},
    "swap_off": {errno.ENOENT},
    "quota": {errno.ENOTBLK},
    "bpf_next_id": {0, errno.ENOENT},
    **{
        name: {0}
        for name in (
            "mount_devtmpfs mount_debugfs mount_securityfs mount_bpf mount_shared map_files process_madvise "
            "nice_up sched_fifo sched_deadline io_realtime bpf_map bpf_program accounting set_time adjust_time "
            "adjust_clock kernel_log hang_up open_by_handle set_trusted"
        ).split()
    },
    **{name: {0} for name in ("node null", "node kmsg", "read /proc/kmsg", "open /dev/kmsg")},
}
# What is not to be found from a root that was entered by chroot alone.
FOUND_BY_CHROOT = ("chroot_escape", "proc_root_up", "proc_cwd_up")


def unsandboxed(probe: Path, root: Path, *arguments: str, user: bool, pivot: bool = True) -> Report:
    """The probe in a root and namespaces of its own, without any of the step's confinement."""
    put_probe(root, probe)
    for name in ("etc", "proc", "sys", "dev", "old"):
        (root / name).mkdir()
    for name in ("hosts", "resolv.conf"):
        (root / "etc" / name).write_text("x\n")
    (root / "busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "busybox").chmod(0o755)
    enter = (
        "cd $1 && pivot_root . old && /busybox umount -l /old && shift && exec /probe"
        if pivot
        else "exec chroot"
    )
    script = (
        "mount --bind $1 $1 && mount -t proc proc $1/proc && mount -t sysfs sys $1/sys && mount --rbind /dev $1/dev && "
        + enter + (' "$@"' if pivot else ' "$1" /probe "$2" "$3" "$4" "$5"')
    )  # fmt: skip
    spaces = ["--mount", "--pid", "--fork", "--net", "--uts", "--ipc", "--cgroup", "--kill-child"]
    done = subprocess.run(
        ["setsid", "--wait", "unshare", *(["--user", "--map-root-user"] if user else []), *spaces,
         "sh", "-c", script, "sh", root, *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return read_report(done.stdout)


def test_control_in_a_user_namespace(probe: Path, tmp_path: Path) -> None:
    """Most of what a step is refused works without its confinement, with root of a user namespace alone."""
    answers = unsandboxed(probe, tmp_path / "root", "report", user=True).answers
    works = {name for name, answer in answers.items() if is_hostile(name) and answer == 0}
    must = (
        "mount_tmpfs mount_proc mount_sysfs mount_bind mount_cgroup fs_open open_tree_clone move_mount mount_setattr "
        "pivot_root unshare_user unshare_mnt unshare_net clone_user clone_pid clone3_user setns_mnt setns_net "
        "pidfd_getfd kcmp cap_sys_admin personality_no_randomize keyctl_join add_key perf_event user_fault "
        "uring_setup set_hostname socket_vsock socket_vsock_upper link_down limit_core unlink_hosts "
        "truncate_hosts"
    ).split()
    if X86:
        must += "old_unshare old_mount old_keyctl old_socketcall_vsock old_socket_vsock old_uring".split()
    assert not set(must) - works
    assert len(works) >= 100


def test_control_as_root(probe: Path, tmp_path: Path) -> None:
    """What needs the machine's own root works for it: devices, programs in the kernel, the clock's right."""
    answers = unsandboxed(probe, tmp_path / "root", "try", *ROOT_ONLY, user=False).answers
    wrong = {name: answer for name, answer in answers.items() if answer not in ROOT_ONLY[name]}
    assert wrong == {} and set(answers) == set(ROOT_ONLY)
    assert all(is_hostile(name) for name in answers)


def test_control_of_searches(probe: Path, tmp_path: Path) -> None:
    """The searches find what is there to be found: a chroot is left, a neighbour is seen."""
    found = unsandboxed(probe, tmp_path / "root", "try", *FOUND_BY_CHROOT, user=True, pivot=False).answers
    assert found == dict.fromkeys(FOUND_BY_CHROOT, 0)
    neighbours = ("kill_all", "kill_others", "foreign_processes")
    put_probe(tmp_path / "two", probe)
    script = f"cd {tmp_path}/two && chroot . /probe try {' '.join(neighbours)}"
    outside = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c",
         f"mkdir -p {tmp_path}/two/proc && mount -t proc proc {tmp_path}/two/proc; sleep 100 & {script}; exit"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert read_report(outside.stdout).answers == dict.fromkeys(neighbours, 0)


def test_table_and_probe_agree(probe: Path, tmp_path: Path) -> None:
    """The probe knows every name of the table: none is left unasked by a slip of the pen."""
    answers = unsandboxed(probe, tmp_path / "root", "report", user=True).answers
    assert not set(TABLE) - set(answers)
