"""Features of the machine, found by trying them in a process that leaves nothing behind."""

import contextlib
import errno
import os
import select
import signal
import socket

from builder.runtime import syscalls as sc
from builder.runtime.chroot.notify import (
    ARGUMENTS,
    COOKIE,
    Listener,
    can_ask,
    program,
)
from builder.runtime.chroot.process_tree import own_capabilities
from builder.runtime.chroot.processes import Processes
from builder.runtime.errors import RootlessError
from builder.runtime.id_maps import open_user_namespace, own_maps, shifted_maps, write_maps
from builder.runtime.rootless import enter
from builder.runtime.spec import CAPABILITY_NAMES
from cache.kernel import keeps_owners

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_CONTAINER = sc.CLONE_NEWUSER | sc.CLONE_NEWNS | sc.CLONE_NEWPID | sc.CLONE_NEWNET
_WORDS = 4000  # bytes of an answer
_PATIENCE = 5000  # milliseconds for an answer to a system call
_PROBED = b"/pybuild-probe"
_NEEDED = ("chown", "dac_override", "fowner", "setgid", "setuid", "sys_chroot")  # for a chroot and its files


def attempt(work: "Callable[[], str]") -> tuple[bool, str]:
    """Call *work* in a child process; whether it succeeded, and its answer or what went wrong."""
    answers, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            answers.close()
            _silence()
            try:
                said = work()
                code = 0
            except OSError as error:
                said = error.strerror or str(error)
            except Exception as error:  # whatever it is, it does not work
                said = str(error)
            theirs.send(said.encode("utf-8", "replace")[:_WORDS])
        finally:
            os._exit(code)
    theirs.close()
    with answers:
        said = answers.recv(_WORDS).decode("utf-8", "replace")
    _pid, status = os.waitpid(pid, 0)
    return status == 0, said


def _silence() -> None:
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.close(null)


def in_container(work: "Callable[[], None]", identity: bool) -> None:
    """Call *work* as root of namespaces such as a step has, but for the network's rules.

    With *identity* ids are what they are here, else shifted as those of root's steps. Raises OSError
    with what it could not do.
    """
    ready, go = os.pipe2(os.O_CLOEXEC)
    answers, answer = os.pipe2(os.O_CLOEXEC)
    try:
        pid, pidfd = sc.clone3(_CONTAINER)
    except OSError:
        for fd in (ready, go, answers, answer):
            os.close(fd)
        raise
    if pid == 0:
        try:
            os.close(go)
            if os.read(ready, 1):
                os.setresgid(0, 0, 0)
                os.setresuid(0, 0, 0)
                sc.mount(b"", b"/", b"", sc.MS_REC | sc.MS_PRIVATE, b"")
                work()
                os.write(answer, b"+")
        except OSError as error:
            os.write(answer, str(error.strerror or error).encode("utf-8", "replace"))
        finally:
            os._exit(0)
    os.close(answer)
    os.close(ready)
    try:
        write_maps(pid, own_maps() if identity else shifted_maps())
        os.write(go, b"1")
    finally:
        os.close(go)
        said = os.read(answers, _WORDS)
        os.close(answers)
        os.waitpid(pid, 0)
        os.close(pidfd)
    if said != b"+":
        raise OSError(said.decode("utf-8", "replace") or "it could not be tried")


def mount_overlay(directory: str) -> None:
    """Mount an overlay in the empty *directory*, and write to it. Raises OSError."""
    for name in ("lower", "upper", "work", "merged"):
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.join(directory, name))
    os.chdir(directory)
    options = b"userxattr,xino=off,volatile,lowerdir=lower,upperdir=upper,workdir=work"
    sc.mount(b"overlay", b"merged", b"overlay", sc.MS_NODEV, options)
    os.close(os.open("merged/file", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
    sc.umount2(b"merged", sc.MNT_DETACH)


def mount_proc() -> None:
    os.close(sc.new_mount(b"proc", 0))


def mount_sysfs() -> None:
    os.close(sc.new_mount(b"sysfs", 0))


def can_overlay(directory: str) -> bool:
    """Return True if a step can have an overlay of directories in *directory*, which is made for that."""
    os.mkdir(directory, 0o755)

    def work() -> str:
        in_container(lambda: mount_overlay(directory), True)
        return ""

    return attempt(work)[0]


def can_map_mounts(path: str) -> bool:
    """Return True if the file system of *path* can be mounted with mapped ids; only root can try."""
    os.makedirs(path, exist_ok=True)
    try:
        namespace = open_user_namespace(shifted_maps())
        try:
            tree = sc.open_tree(sc.AT_FDCWD, os.fsencode(path))
            try:
                sc.mount_setattr(tree, b"", sc.MOUNT_ATTR_IDMAP, namespace)
            finally:
                os.close(tree)
        finally:
            os.close(namespace)
    except OSError:
        return False
    return True


# -- isolation -----------------------------------------------------------------------------


def missing_for_chroot() -> str:
    """Return what this machine lacks for steps in chroots, "" if nothing. Other processes try it."""
    if os.geteuid() != 0:
        return "only root may chroot"
    if not keeps_owners():
        return "there is one user ID here, and files of steps could belong to nobody else"
    held = own_capabilities()
    if lacking := [name for name in _NEEDED if not held >> CAPABILITY_NAMES.index(name) & 1]:
        return "root lacks " + ", ".join(f"CAP_{name.upper()}" for name in lacking)
    able, said = attempt(_try_chroot)
    return "" if able else said


def missing_for_namespaces() -> str:
    """Return what this machine lacks for a user namespace with mounts in it, "" if nothing."""

    def work() -> str:
        try:
            enter(protect=False)
        except RootlessError as error:
            raise OSError(errno.EPERM, error.message) from None
        return ""

    able, said = attempt(work)
    return "" if able else said


def _try_chroot() -> str:
    """Chroot, and answer a call of a child by way of its memory. Raises OSError."""
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
        paths = received[ARGUMENTS : ARGUMENTS + 2]
        processes = Processes(b"/", pid)
        if all(processes.read_path(pid, address) != _PROBED for address in paths):
            raise OSError(errno.EPERM, "the memory of a child may not be read (yama, ptrace)")
        listener.fail(received[COOKIE], errno.EXDEV)
        if os.waitpid(pid, 0)[1]:
            raise OSError(errno.ENOSYS, "seccomp notifications are not answered")
        pid = 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return ""
