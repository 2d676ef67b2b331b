"""How steps are kept apart from this machine: which ways there are, and whether this place allows them."""

import errno
import os
import select
import signal
import socket

from builder.runtime import probe
from builder.runtime import syscalls as sc

NAMESPACES, CHROOT = "namespaces", "chroot"
WAYS = (NAMESPACES, CHROOT)
_PATIENCE = 5000  # milliseconds for an answer
_PROBED = b"/pybuild-probe"


def missing_for_chroot() -> str:
    """What this place lacks for steps by chroot, "" if nothing. It is tried by processes of its own."""
    if os.geteuid() != 0:
        return "only root may chroot"
    able, said = probe.attempt(_try_chroot)
    return "" if able else said


def missing_for_namespaces() -> str:
    """What this place lacks for a user namespace with mounts in it, "" if nothing."""
    from builder.runtime.rootless import RootlessError, enter

    def work() -> str:
        try:
            enter(protect=False)
        except RootlessError as error:
            raise OSError(errno.EPERM, error.message) from None
        return ""

    able, said = probe.attempt(work)
    return "" if able else said


def _try_chroot() -> str:
    """Chroot, and answer a call of a child by way of its memory. Raises OSError."""
    from builder.runtime.chroot.notify import (
        ABI,
        ARGUMENTS,
        COOKIE,
        PID,
        Listener,
        Notification,
        can_ask,
        program,
    )
    from builder.runtime.chroot.processes import Processes

    machine = os.uname().machine
    if not can_ask(machine):
        raise OSError(errno.ENOSYS, f"there is no filter of system calls for {machine}")
    try:
        os.chroot("/")
    except OSError as error:
        raise OSError(errno.EPERM, f"root has no CAP_SYS_CHROOT here: {error.strerror}") from None
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
            socket.send_fds(theirs, [b"L"], [sc.set_seccomp_listener(program(machine, True))])
            os.stat(_PROBED)
        except OSError as error:
            code = 0 if error.errno == errno.EXDEV else 1
        finally:
            os._exit(code)
    theirs.close()
    try:
        _message, fds, _flags, _address = socket.recv_fds(ours, 1, 1)
        if not fds:
            raise OSError(errno.ENOSYS, "the kernel or a filter forbids seccomp notifications")
        listener, poll = Listener(fds[0]), select.poll()
        poll.register(fds[0], select.POLLIN)
        received = listener.receive() if poll.poll(_PATIENCE) else None
        if received is None:
            raise OSError(errno.ENOSYS, "seccomp notifications do not arrive")
        call = Notification(received[COOKIE], received[PID], received[ABI], received[ARGUMENTS:])
        processes = Processes(b"/", pid)
        if all(processes.read_path(pid, address) != _PROBED for address in call.arguments[:2]):
            raise OSError(errno.EPERM, "the memory of a child may not be read (yama, ptrace)")
        listener.fail(call, errno.EXDEV)
        if os.waitpid(pid, 0)[1]:
            raise OSError(errno.ENOSYS, "seccomp notifications are not answered")
        pid = 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return ""
