"""What each probe is answered in a step that chroot and Landlock isolate.

``ACCEPTED`` are known weaknesses of this way, which docs/security.md names. ``LEFT`` are faults that are
still to be mended.
"""

from __future__ import annotations

import errno as E
import os
from pathlib import Path

from confinement import X86

# Root that may chroot again, which has to be asked for, reaches the most.
CHROOT = ("--isolation=chroot", "--network=none", "--no-cache", "--cap-add=SYS_CHROOT")
KEEPING = tuple(option for option in CHROOT if option != "--no-cache")  # what is in cache mounts
NO_EFFECT = 199
USER = 1234
HELD: list[tuple[int, str]] = [
    (E.EACCES, """
        outside_read outside_write outside_append outside_truncate outside_create outside_unnamed outside_list
        outside_mkdir outside_symlink outside_fifo outside_node outside_bind outside_unlink outside_rmdir
        outside_execute outside_rename outside_link outside_smuggle outside_reopen_read outside_reopen_write
        outside_reopen_list outside_reopen_race outside_root shared_reopen_read victim_reopen_memory
        victim_reopen_cmdline victim_reopen_environ terminal_reopen proc_setting_reopen setting_reopen_race
        looser_landlock
     """),
    (E.EXDEV, "outside_steal"),
    (E.ENOENT, """
        victim_environ victim_cmdline victim_status victim_maps victim_task victim_exe victim_cwd victim_fd
        victim_root victim_namespace victim_memory supervisor_environ supervisor_cmdline foreign_listed
        anybodys_environ anybodys_cmdline proc_memory proc_thread_memory proc_task_memory proc_dotted_memory
        proc_map_files proc_pagemap proc_root_up proc_cwd_up proc_cwd_outside sys_firmware sys_up
        terminal_foreign terminal_up terminal_up_process listed_environ
     """),
    (E.EIO, "terminal_reused"),
    (E.EPERM, "nice_user"),
    (E.ESRCH, "kill_hand limit_anybody"),
    (E.ENODEV, "null_mode"),
    (E.ELOOP, "proc_namespace"),
    (E.EROFS, "proc_setting proc_setting_by_link proc_setting_up sys_write"),
    (E.EPERM, """
        outside_mount disk kernel_log_device limit_victim limit_supervisor kill_victim kill_supervisor kill_first kill_thread kill_by_pidfd
        queue_signal getfd_victim trace_victim trace_supervisor compare_victim read_victim write_victim
        abstract_connect abstract_send new_user new_mounts mount_memory mount_proc
        pivot set_namespace keyring bpf user_fault by_handle
     """),
    (E.EAFNOSUPPORT, "socket_inet socket_inet_datagram socket_inet6 socket_packet socket_crypto socket_machine"),
    (E.ENOSYS, "uring open_2 clone_3"),
    (E.EBUSY, "own_listener"),
]  # fmt: skip
HELD_X86: list[tuple[int, str]] = [
    (E.EACCES, "old_outside"),
    (E.ENOENT, "old_memory"),
    (E.EAFNOSUPPORT, "old_socket"),
    (E.EPERM, "old_socketcall old_kill old_limit old_disk"),
    (E.ENOSYS, "old_uring old_open_2 x32_open"),
]
# What Landlock does not hold: root that has left its root by chroot(2) is kept from contents and names alone.
ACCEPTED: dict[str, str] = {
    "escape_chroot": "CAP_SYS_CHROOT",
    **dict.fromkeys(
        "outside_stat outside_access outside_chdir outside_path_only outside_watch outside_chmod outside_chown "
        "outside_utime outside_attribute".split(),
        "Landlock does not know these calls",
    ),
    "outside_connect": "Landlock does not know path-named sockets: docker's, an ssh agent's",
    "memory_foreign": "System V shared memory is that of the machine",
}
# Faults: what is answered today, and why it should be another answer.
LEFT: dict[str, tuple[int, str]] = {
    "terminals_mode": (0, "fchmod(2) of this machine's /dev/ptmx by root, without CAP_SYS_CHROOT too"),
    "dumpable": (E.ENOENT, "0: what is not dumpable does not find itself in /proc"),
}
# What has to work; the same in every step.
OWN = """
    own_read own_write own_truncate own_unnamed own_list own_mkdir own_symlink own_fifo own_node own_rename
    own_link own_chmod own_attribute own_execute own_executable own_chroot own_socket own_abstract
    own_reopen_write own_reopen_path own_reopen_memory own_reopen_pipe own_environ own_cmdline own_status own_maps
    own_first own_thread own_fd own_namespace own_score own_by_number proc_read_setting proc_read_memory sys_read
    own_terminal own_terminal_reopen own_null own_trace own_kill own_process_read own_limit own_nice own_pin own_pair own_memory
    socket_netlink path_at_end_of_page own_filter own_landlock signal_by_owner
"""
OWN_X86 = "old_open old_own"
FAULTS = {"fault_address": E.EFAULT, "high_address": E.EFAULT, "long_path": E.ENAMETOOLONG}
# Where the kernel has capabilities decide: EPERM where who builds has more of them than the step.
BY_CAPABILITIES = "nice_victim schedule_victim pin_victim disk_priority_victim"
# What is there for nobody, and looks empty. To be written to: refused.
HIDDEN = {"proc_kcore": "/proc/kcore", "proc_keys": "/proc/keys", "proc_timers": "/proc/timer_list"}
# USER: nothing of ``ACCEPTED`` is left but memory, as that takes CAP_SYS_CHROOT.
LEAVING = """
    escape_chroot outside_read outside_write outside_append outside_truncate outside_create outside_unnamed
    outside_list outside_mkdir outside_symlink outside_fifo outside_node outside_bind outside_unlink
    outside_rmdir outside_execute outside_rename outside_link outside_smuggle outside_root
    outside_reopen_read outside_reopen_write outside_reopen_list outside_reopen_race outside_steal
    outside_stat outside_access outside_chdir outside_path_only outside_watch outside_chmod outside_chown
    outside_utime outside_attribute outside_connect outside_mount shared_reopen_read victim_reopen_cmdline
    victim_reopen_environ victim_reopen_memory terminal_reopen proc_cwd_outside
"""
USER_HELD: list[tuple[int, str]] = [
    (E.EPERM, LEAVING + "terminals_mode own_node own_chroot listed_environ"),
    (E.ENOENT, "looser_landlock"),
]
USER_HELD_X86: list[tuple[int, str]] = [(E.EPERM, "old_outside")]
# What answers otherwise where nothing but chroot confines the probe.
CONTROL: dict[str, int] = {
    # Of a process that has left its root by chroot(2) /proc leads nowhere.
    **dict.fromkeys(
        "outside_reopen_read outside_reopen_write outside_reopen_list shared_reopen_read victim_reopen_cmdline "
        "victim_reopen_environ victim_reopen_memory terminal_reopen proc_cwd_outside".split(),
        E.ENOENT,
    ),
    "outside_reopen_race": E.EACCES,
    # The kernel itself resolves these inside of the root.
    **dict.fromkeys(("proc_root_up", "proc_cwd_up", "sys_up"), E.ENOENT),
    "socket_crypto": E.EAFNOSUPPORT,  # of this kernel
    "clone_3": E.EINVAL,
    "pivot": E.EBUSY,
    "bpf": E.EINVAL,
    "by_handle": E.ESTALE,
    "new_user": E.EPERM,  # never in a chroot
    "listed_environ": E.EACCES,
    "x32_open": E.ENOSYS,
    **FAULTS,
}


def _spread(table: list[tuple[int, str]]) -> dict[str, int]:
    return {name: answer for answer, names in table for name in names.split()}


def expected() -> dict[str, int]:
    """What a step as root is answered."""
    out = _spread(HELD + (HELD_X86 if X86 else [])) | dict.fromkeys(ACCEPTED, 0) | FAULTS
    out |= {name: answer for name, (answer, _why) in LEFT.items()}
    out |= dict.fromkeys((OWN + (OWN_X86 if X86 else "")).split(), 0)
    out |= {name: E.ENODATA if os.path.exists(path) else E.ENOENT for name, path in HIDDEN.items()}
    out["proc_trigger"] = E.EACCES if os.path.exists("/proc/sysrq-trigger") else E.ENOENT
    ours = int(Path("/proc/self/status").read_text().split("CapPrm:")[1].split()[0], 16)
    return out | dict.fromkeys(BY_CAPABILITIES.split(), E.EPERM if ours & ~0xA80425FB else 0)


def expected_of_user() -> dict[str, int]:
    """The same with USER."""
    out = expected() | _spread(USER_HELD + (USER_HELD_X86 if X86 else []))
    return out | dict.fromkeys(BY_CAPABILITIES.split(), E.EPERM)
