"""seccomp user notifications: the system calls of a step that wait for an answer, and how it is given.

A filter (seccomp_unotify(2)) hands the calls that take a path to the supervisor, as far as the number
and the plain arguments can tell; all others pass. The structures are those of linux/seccomp.h.

This is not a security boundary: a path may change between the supervisor's read and the kernel's. Access is
limited by chroot, ids and Landlock.
"""

import errno
import fcntl
import functools
import os
import struct
from typing import NamedTuple

from builder.runtime.container.devices import DEVICES

AT_FDCWD = 0xFFFFFF9C  # as an unsigned int
_AT_EMPTY_PATH = 0x1000

# ioctl numbers of linux/seccomp.h.
_RECEIVE = 0xC0502100
_SEND = 0xC0182101
_ADD_FD = 0x40182103
_SET_FLAGS = 0x40082104
_SYNC_WAKE_UP = 1
_CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_ADD_FD_AND_ANSWER = 2  # SECCOMP_ADDFD_FLAG_SEND, since Linux 5.14

_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_ANSWER = struct.Struct("=QqiI")
_NEW_FD = struct.Struct("=QIIII")
_ZEROS = bytes(_NOTIFICATION.size)

# Instructions of classic BPF (linux/bpf_common.h) and answers of seccomp(2).
_LOAD, _JUMP, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN, _AND = 0x20, 0x05, 0x15, 0x35, 0x06, 0x54
Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, value
_ALLOW, _ASK, _ERROR = 0x7FFF0000, 0x7FC00000, 0x00050000
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16
_X32 = 0x40000000

_AUDIT = {"x86_64": 0xC000003E, "i386": 0x40000003, "aarch64": 0xC00000B7, "arm": 0x40000028}
# The ABIs that a machine can run, its own first.
_ABIS = {"x86_64": ("x86_64", "i386"), "aarch64": ("aarch64", "arm")}

# The numbers of the calls that are asked about, by ABI. Of the 32-bit ABIs, the stat family passes:
# its structures are others, and the files that are really there answer well enough.
_NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {
        "open": 2, "stat": 4, "lstat": 6, "access": 21, "execve": 59, "readlink": 89,
        "openat": 257, "newfstatat": 262, "readlinkat": 267, "faccessat": 269, "execveat": 322,
        "statx": 332, "faccessat2": 439,
    },
    "i386": {
        "open": 5, "execve": 11, "access": 33, "readlink": 85, "openat": 295, "readlinkat": 305,
        "faccessat": 307, "execveat": 358, "statx": 383, "faccessat2": 439,
    },
    "aarch64": {
        "faccessat": 48, "openat": 56, "readlinkat": 78, "newfstatat": 79, "execve": 221,
        "execveat": 281, "statx": 291, "faccessat2": 439,
    },
    "arm": {
        "open": 5, "execve": 11, "access": 33, "readlink": 85, "openat": 322, "readlinkat": 332,
        "faccessat": 334, "execveat": 387, "statx": 397, "faccessat2": 439,
    },
}  # fmt: skip
# What is asked about only with the working directory: names relative to a descriptor lead nowhere special.
_RELATIVE = frozenset(("openat", "newfstatat", "readlinkat", "faccessat", "faccessat2", "statx", "execveat"))
# Not there, so that programs fall back to calls that are seen: openat2, and io_uring, which opens unseen.
_ABSENT = (437, 425, 426, 427)
# Calls that change what a name is, and which of their arguments are names: they are asked about only in
# steps with something that is not to be changed.
CHANGES = {
    "chmod": (0,), "chown": (0,), "lchown": (0,), "creat": (0,), "fchmodat": (1,), "fchmodat2": (1,),
    "fchownat": (1,), "link": (1,), "linkat": (3,), "mkdir": (0,), "mkdirat": (1,),
    "rename": (0, 1), "renameat": (1, 3), "renameat2": (1, 3), "rmdir": (0,),
    "setxattr": (0,), "lsetxattr": (0,), "removexattr": (0,), "symlink": (1,), "symlinkat": (2,),
    "truncate": (0,), "unlink": (0,), "unlinkat": (1,), "utime": (0,), "utimensat": (1,), "utimes": (0,),
}  # fmt: skip
_CHANGE_NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {
        "truncate": 76, "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86, "unlink": 87,
        "symlink": 88, "chmod": 90, "chown": 92, "lchown": 94, "utime": 132, "setxattr": 188,
        "lsetxattr": 189, "removexattr": 197, "utimes": 235, "mkdirat": 258,
        "fchownat": 260, "unlinkat": 263, "renameat": 264, "linkat": 265, "symlinkat": 266,
        "fchmodat": 268, "utimensat": 280, "renameat2": 316, "fchmodat2": 452,
    },
    "aarch64": {
        "setxattr": 5, "lsetxattr": 6, "removexattr": 14, "mkdirat": 34, "unlinkat": 35,
        "symlinkat": 36, "linkat": 37, "renameat": 38, "truncate": 45, "fchmodat": 53, "fchownat": 54,
        "utimensat": 88, "renameat2": 276, "fchmodat2": 452,
    },
}  # fmt: skip
# Calls that set limits and priorities, of the caller where an argument is 0. Landlock does not know them.
OF_PROCESSES = {
    "prlimit64": 0, "sched_setattr": 0, "sched_setparam": 0, "sched_setscheduler": 0,
    "sched_setaffinity": 0, "setpriority": 1, "ioprio_set": 1,
}  # fmt: skip
_PROCESS_NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {
        "setpriority": 141, "sched_setparam": 142, "sched_setscheduler": 144, "sched_setaffinity": 203,
        "ioprio_set": 251, "prlimit64": 302, "sched_setattr": 314,
    },
    "i386": {
        "setpriority": 97, "sched_setparam": 154, "sched_setscheduler": 156, "sched_setaffinity": 241,
        "ioprio_set": 289, "prlimit64": 340, "sched_setattr": 351,
    },
    "aarch64": {
        "ioprio_set": 30, "sched_setparam": 118, "sched_setscheduler": 119, "sched_setaffinity": 122,
        "setpriority": 140, "prlimit64": 261, "sched_setattr": 274,
    },
    "arm": {
        "setpriority": 97, "sched_setparam": 154, "sched_setscheduler": 156, "sched_setaffinity": 241,
        "ioprio_set": 314, "prlimit64": 369, "sched_setattr": 380,
    },
}  # fmt: skip
# mknod, and which of its arguments is the mode; the device follows. No step opens a disk.
_MKNODS = {
    "x86_64": ((133, 1), (259, 2)),
    "i386": ((14, 1), (297, 2)),
    "aarch64": ((33, 2),),
    "arm": ((14, 1), (324, 2)),
}
_CHARACTER, _BLOCK, _FORMAT = 0o020000, 0o060000, 0o170000
# Those of /dev; and 0:0, with which layers remove.
_DEVICES = (0, *(os.makedev(*device) for device in DEVICES.values()))
# Done without being made: a step's root is thrown away, and what it leaves is made durable with its layer.
_SYNCS = {
    "x86_64": (74, 75, 162, 277, 306),  # fsync, fdatasync, sync, sync_file_range, syncfs
    "i386": (118, 148, 36, 314, 344),
    "aarch64": (82, 83, 81, 84, 267),
    "arm": (118, 148, 36, 341, 373),
}
_CHROOT = {"x86_64": 161, "i386": 61, "aarch64": 51, "arm": 61}
_SOCKET = {"x86_64": 41, "i386": 359, "aarch64": 198, "arm": 281}
_LOCAL = (1, 16)  # AF_UNIX, AF_NETLINK


# Where the fields of a received call are: what names it, the thread, the number, the ABI, six arguments.
COOKIE, PID, NUMBER, ABI, ARGUMENTS = 0, 1, 3, 4, 6


class Notification(NamedTuple):
    """A system call that waits for an answer. ``pid`` is the thread's, as seen from here."""

    cookie: int
    pid: int
    abi: int
    arguments: tuple[int, ...]


def can_ask(machine: str) -> bool:
    """Return whether there is a filter for *machine*, as ``os.uname`` names it."""
    return machine in _ABIS


@functools.cache
def calls(machine: str) -> dict[tuple[int, int], str]:
    """Return the names of the calls that wait for an answer, by AUDIT_ARCH and number."""
    return {
        (_AUDIT[abi], number): name
        for abi in _ABIS[machine]
        for table in (_NUMBERS, _CHANGE_NUMBERS, _PROCESS_NUMBERS, {abi: {"chroot": _CHROOT[abi]}})
        for name, number in table.get(abi, {}).items()
    }


def own_abi(machine: str) -> int:
    """Return AUDIT_ARCH of the machine's own ABI."""
    return _AUDIT[machine]


@functools.cache
def program(machine: str, internet: bool, changes: bool = False, chroots: bool = False) -> bytes:
    """Return the filter, as struct sock_filter items.

    Without *internet* it refuses sockets of the internet. With *changes* the calls of ``CHANGES`` wait for an
    answer too; without *chroots* chroot(2) does.
    """
    out: list[Instruction] = [(_LOAD, 0, 0, _ARCH)]
    for abi in _ABIS[machine]:
        section = _section(abi, internet, changes, chroots)
        out += [(_JUMP_EQUAL, 1, 0, _AUDIT[abi]), (_JUMP, 0, 0, len(section)), *section]
    out.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in out)


def _section(abi: str, internet: bool, changes: bool, chroots: bool) -> list[Instruction]:
    out = [(_LOAD, 0, 0, _NUMBER)]
    if abi == "x86_64":
        out += [(_JUMP_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _ALLOW)]  # our other filter refuses it
    for name, number in _NUMBERS[abi].items():
        if name in _RELATIVE:
            test = [
                (_LOAD, 0, 0, _FIRST_ARGUMENT),
                (_JUMP_EQUAL, 0, 1, AT_FDCWD),
                (_RETURN, 0, 0, _ASK),
                (_RETURN, 0, 0, _ALLOW),
            ]
            out += [(_JUMP_EQUAL, 0, len(test), number), *test]
        else:
            out += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ASK)]
    if changes:
        for number in _CHANGE_NUMBERS.get(abi, {}).values():
            out += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ASK)]
    for number in _ABSENT:
        out += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERROR | errno.ENOSYS)]
    for number in _SYNCS[abi]:
        out += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERROR)]
    if not chroots:
        out += [(_JUMP_EQUAL, 0, 1, _CHROOT[abi]), (_RETURN, 0, 0, _ASK)]
    for name, number in _PROCESS_NUMBERS[abi].items():
        if OF_PROCESSES[name]:  # another argument says what is named: a process, a group, a user
            out += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ASK)]
            continue
        test = [(_LOAD, 0, 0, _FIRST_ARGUMENT), (_JUMP_EQUAL, 1, 0, 0), (_RETURN, 0, 0, _ASK)]
        out += _when(number, [*test, (_RETURN, 0, 0, _ALLOW)])
    for number, place in _MKNODS[abi]:
        out += _when(number, _mknod(_FIRST_ARGUMENT + 8 * place))
    if not internet:
        test = [(_LOAD, 0, 0, _FIRST_ARGUMENT)]
        for family in _LOCAL:
            test += [(_JUMP_EQUAL, 0, 1, family), (_RETURN, 0, 0, _ALLOW)]
        out += _when(_SOCKET[abi], [*test, (_RETURN, 0, 0, _ERROR | errno.EAFNOSUPPORT)])
    return [*out, (_RETURN, 0, 0, _ALLOW)]


def _when(number: int, test: list[Instruction]) -> list[Instruction]:
    """Return *test*, which ends in a verdict, for the call *number* only."""
    return [(_JUMP_EQUAL, 0, len(test), number), *test]


def _mknod(mode: int) -> list[Instruction]:
    """Refuse devices but those that every container has; *mode* is where that argument is."""
    devices: list[Instruction] = [(_LOAD, 0, 0, mode + 8)]
    for device in _DEVICES:
        devices += [(_JUMP_EQUAL, 0, 1, device), (_RETURN, 0, 0, _ALLOW)]
    devices.append((_RETURN, 0, 0, _ERROR | errno.EPERM))
    return [
        *((_LOAD, 0, 0, mode), (_AND, 0, 0, _FORMAT)),
        *((_JUMP_EQUAL, 0, 1, _BLOCK), (_RETURN, 0, 0, _ERROR | errno.EPERM)),
        *((_JUMP_EQUAL, 1, 0, _CHARACTER), (_RETURN, 0, 0, _ALLOW)),
        *devices,
    ]


class Listener:
    """The descriptor on which the calls of a step arrive."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._buffer = bytearray(_NOTIFICATION.size)
        self._adds_and_answers = True
        try:  # the step and its supervisor take turns: waking the other at once saves a third of the time
            fcntl.ioctl(fd, _SET_FLAGS, _SYNC_WAKE_UP)
        except OSError:
            pass  # before Linux 6.6

    def receive(self) -> tuple[int, ...] | None:
        """Receive the next call; None if its thread was killed meanwhile.

        It is the plain fields of a struct seccomp_notif, as most calls pass at once.
        """
        buffer = self._buffer
        buffer[:] = _ZEROS
        try:
            fcntl.ioctl(self.fd, _RECEIVE, buffer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        return _NOTIFICATION.unpack(buffer)

    def let_pass(self, cookie: int) -> None:
        """Have the kernel make the call *cookie* as it is."""
        self._send(_ANSWER.pack(cookie, 0, 0, _CONTINUE))

    def answer(self, cookie: int, value: int) -> None:
        """Have the call *cookie* return *value*."""
        self._send(_ANSWER.pack(cookie, value, 0, 0))

    def fail(self, cookie: int, code: int) -> None:
        """Have the call *cookie* fail with the errno *code*."""
        self._send(_ANSWER.pack(cookie, 0, -code, 0))

    def give(self, cookie: int, fd: int, close_on_exec: bool) -> None:
        """Have the call *cookie* return a new descriptor of what *fd* is open on here."""
        flags = os.O_CLOEXEC if close_on_exec else 0
        if self._adds_and_answers:
            try:
                fcntl.ioctl(self.fd, _ADD_FD, _NEW_FD.pack(cookie, _ADD_FD_AND_ANSWER, fd, 0, flags))
                return
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINPROGRESS):  # killed, or answered already
                    return
                if error.errno != errno.EINVAL:
                    self.fail(cookie, error.errno or errno.EIO)  # as many as it may have, it has
                    return
                self._adds_and_answers = False
        try:
            request = bytearray(_NEW_FD.pack(cookie, 0, fd, 0, flags))  # of bytes no number is returned
            self.answer(cookie, fcntl.ioctl(self.fd, _ADD_FD, request))
        except OSError as error:
            self.fail(cookie, error.errno or errno.EIO)

    def _send(self, answer: bytes) -> None:
        while True:
            try:
                fcntl.ioctl(self.fd, _SEND, answer)
                return
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EINPROGRESS):  # killed, or answered already
                    raise
                return
