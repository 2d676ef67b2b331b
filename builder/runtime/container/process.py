"""Apply the operations on the process itself: its user, filter, limits, working directory and command.

They are the same for a step in namespaces and for one in a chroot.
"""

import errno
import os
import resource
import signal
import time
from typing import TYPE_CHECKING, assert_never

from builder.runtime import syscalls as sc
from builder.runtime.container import operations as op
from builder.runtime.container.seccomp import program
from builder.runtime.container.users import User, find_user
from builder.runtime.errors import SetupError
from builder.runtime.spec import CANNOT_EXECUTE, DEFAULT_PATH, NOT_FOUND
from cache.kernel import hide_abstract_sockets, keeps_owners

if TYPE_CHECKING:
    from builder.runtime.container.operations import ProcessOperation

_STATUS_FD = 3
_COARSE_CLOCK = 5  # CLOCK_REALTIME_COARSE
_MACHINE = os.uname().machine


class Process:
    """The process that becomes the step.

    ``root`` is a descriptor of its root, -1 before there is one, ``channel`` the descriptor on which errors
    are reported.
    """

    def __init__(self, channel: int, stdio: list[int], root: int = -1) -> None:
        self.channel = channel
        self.root = root
        self._stdio = stdio
        self._user = User(0, 0, [0], b"/")
        self._filter = b""

    def apply(self, operation: "ProcessOperation") -> None:
        """Apply one operation. Raises SetupError and OSError."""
        match operation:
            case op.FindUser(text):
                self._user = find_user(self.root, text)
            case op.ReadFilter(capabilities, any_socketcall, fake_owners):
                self._filter = program(_MACHINE, capabilities, any_socketcall, fake_owners)
                if not self._filter:
                    raise SetupError(
                        f"there is no filter of system calls for {_MACHINE} (pybuild doctor says more)"
                    )
            case op.InstallFilter():
                sc.set_seccomp_filter(self._filter)
            case op.Descriptors():
                _keep_only(self.channel, self._stdio)
                self.channel = _STATUS_FD
            case op.WorkingDirectory(path):
                _change_directory(path, self._user)
            case op.Limit(number, soft, hard):
                _limit(number, soft, hard)
            case op.HideAbstractSockets():
                hide_abstract_sockets()
            case op.NoNewPrivileges():
                sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
            case op.Identity(capabilities):
                _become(self._user, capabilities)
            case op.WaitForClock(moment):
                while time.clock_gettime_ns(_COARSE_CLOCK) <= moment:
                    time.sleep(0.0005)
            case op.Execute(argv, env):
                env = dict(env)
                env.setdefault(b"HOME", self._user.home)
                env.setdefault(b"PATH", DEFAULT_PATH)
                _execute(argv, env)
            case _:
                assert_never(operation)


def set_owner(path: int | bytes, uid: int, gid: int) -> None:
    """Change the owner of a file; where there is only one ID, nothing is changed."""
    if keeps_owners():
        os.chown(path, uid, gid)


def set_groups(groups: list[int]) -> None:
    """Take *groups*, unless the user namespace forbids it (user_namespaces(7), setgroups)."""
    try:
        os.setgroups(groups)
    except OSError:
        with open("/proc/self/setgroups", "rb") as file:
            if file.read().strip() != b"deny":
                raise


def _keep_only(channel: int, stdio: list[int]) -> None:
    """Renumber to 0, 1, 2 and the status channel, and close the rest before any chdir.

    A WORKDIR of /proc/self/fd/N must not find a directory of the machine (RT-01).
    """
    high = [os.dup(fd) for fd in (*stdio, channel)]
    for number, fd in enumerate(high):
        os.dup2(fd, number, inheritable=number < _STATUS_FD)
    sc.close_range(_STATUS_FD + 1)


def _change_directory(path: bytes, user: User) -> None:
    """Enter WORKDIR. A directory that the image does not have is made, with the step's owner."""
    try:
        os.chdir(path)
    except FileNotFoundError:
        built = b""
        for name in path.split(b"/"):
            built += name + b"/"
            try:
                os.mkdir(built, 0o755)
            except FileExistsError:
                continue
            set_owner(built, user.uid, user.gid)
        os.chdir(path)
    except OSError as error:
        raise SetupError(f"WORKDIR {os.fsdecode(path)}: {error.strerror}") from None
    if not os.getcwdb().startswith(b"/"):
        raise SetupError(f"WORKDIR {os.fsdecode(path)} is outside the image")


def _limit(number: int, soft: int, hard: int) -> None:
    """Set a resource limit; the launcher has already raised the hard limit where it may."""
    try:
        resource.setrlimit(number, (soft, hard))
    except (OSError, ValueError):
        names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
        name = next(name for name in names if getattr(resource, name) == number)
        highest = resource.getrlimit(number)[1]
        raise SetupError(f"--ulimit {name[7:].lower()}: this user may not have more than {highest}") from None


def _become(user: User, capabilities: int) -> None:
    """Take the step's identity; root keeps *capabilities*, others none."""
    try:
        sc.drop_bounding(capabilities)
    except PermissionError:  # no more is gained by an exec where no_new_privs is set (capabilities(7))
        if not sc.has_no_new_privileges():
            raise
    set_groups(user.groups)
    try:
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    except OSError:
        raise SetupError(
            f"USER {user.uid}:{user.gid}: this build has no such id; it runs without root, and with few ids "
            "of its own"
        ) from None
    sc.capset(capabilities if user.uid == 0 else 0)
    sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)


def _execute(argv: list[bytes], env: dict[bytes, bytes]) -> None:
    """Replace the process; PATH is searched here because execvpe imports as it goes."""
    name = argv[0]
    if b"/" in name:
        candidates = [name]
    else:
        candidates = [(directory or b".") + b"/" + name for directory in env[b"PATH"].split(b":")]
    failure = errno.ENOENT
    for candidate in candidates:
        try:
            os.execve(candidate, argv, env)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                failure = error.errno or failure
    shown = os.fsdecode(name)
    code = NOT_FOUND if failure == errno.ENOENT else CANNOT_EXECUTE
    if failure == errno.ENOENT and b"/" not in name:
        raise SetupError(f'exec: "{shown}": executable file not found in $PATH', code)
    hint = ""
    if failure == errno.ENOENT and any(os.path.lexists(candidate) for candidate in candidates):
        hint = " (it exists: is its interpreter, the loader or the #! program, in the image?)"
    elif failure == errno.ENOEXEC:
        hint = " (no #! line, or a program for another architecture)"
    raise SetupError(f'exec: "{shown}": {os.strerror(failure)}{hint}', code)
