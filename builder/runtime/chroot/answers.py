"""The answers of a supervisor to system calls: about /proc, /sys and /dev, and about read-only mounts."""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable

from builder.runtime import syscalls as sc
from builder.runtime.chroot import skeleton
from builder.runtime.chroot.files import Files, Place, is_directory, special
from builder.runtime.chroot.notify import (
    ABI,
    ARGUMENTS,
    CHANGES,
    COOKIE,
    NUMBER,
    OF_PROCESSES,
    PID,
    Listener,
    Notification,
    calls,
    own_abi,
)
from builder.runtime.chroot.processes import Processes
from builder.runtime.container.devices import DEVICES
from builder.runtime.spec import ContainerSpec
from cache.kernel import open_in_root

_MACHINE = os.uname().machine
_DEVICES = tuple(b"/dev/" + name for name in DEVICES if name != b"tty")
_AT_SYMLINK_NOFOLLOW = 0x100
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# What setpriority and ioprio_set call a process, and how many more than that its group.
_KINDS = {"setpriority": 0, "ioprio_set": 1}
_ONE, _GROUP = 0, 1
_NO_CHROOT = b"pybuild: warning: chroot is refused in this isolation; --cap-add SYS_CHROOT allows it\n"
_TIOCGPTN = 0x80045430
_MOST_TERMINALS = 64
_SPOTS = 1000  # links to programs that are executed as /proc/PID/exe, used in turn

# Which argument of a call is its path.
_PATHS = {
    "open": 0, "stat": 0, "lstat": 0, "access": 0, "execve": 0, "readlink": 0, "openat": 1, "newfstatat": 1,
    "readlinkat": 1, "faccessat": 1, "execveat": 1, "statx": 1, "faccessat2": 1,
}  # fmt: skip
_OPENS = frozenset(("open", "openat"))
_EXECS = frozenset(("execve", "execveat"))


class Answers:
    """Answers to the calls of one step."""

    def __init__(
        self, spec: ContainerSpec, root: int, path: bytes, processes: Processes, errors: int
    ) -> None:
        """*root* is a descriptor of the step's root, *path* its path here, *errors* standard error."""
        self._errors = errors
        self._root = root
        self._path = path
        self._processes = processes
        self._files = Files(processes, spec["frame"]["masked"], spec["placed"])
        self._devices_work = spec["devices_work"]
        self._fixed = {target.rstrip(b"/") for target, _, read_only in spec["placed"] if read_only}
        self._terminals: dict[bytes, int] = {}  # handles of those that the step has made, by path
        self._executed = 0
        self._said = False

    def close(self) -> None:
        """Close what is kept open of the step's processes and terminals."""
        self._processes.close()
        for fd in self._terminals.values():
            os.close(fd)
        self._terminals.clear()

    def to(self, listener: Listener) -> Callable[[], None]:
        """Return a function that takes one call from *listener* and answers it.

        Most calls take a short way.
        """
        receive, let_pass, read_path = listener.receive, listener.let_pass, self._processes.read_path
        forget, is_fixed = self._processes.forget, self._is_fixed
        table = {
            key: (ARGUMENTS + _PATHS.get(name, 0), name, name in _OPENS, name in _EXECS)
            for key, name in calls(_MACHINE).items()
        }
        fixed = bool(self._fixed)

        def step() -> None:
            received = receive()
            if received is None:
                return
            cookie, pid = received[COOKIE], received[PID]
            where, name, opens, executes = table[received[ABI], received[NUMBER]]
            if name == "chroot":
                self._refuse_chroot(listener, cookie)
                return
            if name in OF_PROCESSES:
                if self._may_set(pid, name, received[ARGUMENTS:]):
                    let_pass(cookie)
                else:
                    listener.fail(cookie, errno.EPERM)
                return
            if fixed and (name in CHANGES or (opens and received[where + 1] & _WRITES)):
                places = CHANGES.get(name) or (where - ARGUMENTS,)
                if any(is_fixed(pid, received[ARGUMENTS + place]) for place in places):
                    listener.fail(cookie, errno.EROFS)
                    return
                if name in CHANGES:
                    let_pass(cookie)
                    return
            path = read_path(pid, received[where])
            if path is not None:
                if path[:1] != b"/":
                    if b"proc/" in path or b"dev/" in path:
                        path = self._absolute(pid, path)
                elif opens and received[where + 1] & os.O_ACCMODE and not special(path):
                    path = self._link_at(path)  # a log file is often a link to /dev/stdout
                if special(path):
                    call = Notification(cookie, pid, received[ABI], received[ARGUMENTS:])
                    if self._answered(listener, call, name, where - ARGUMENTS, path):
                        return
            let_pass(cookie)
            if executes:
                forget(pid)

        return step

    def _may_set(self, pid: int, name: str, arguments: tuple[int, ...]) -> bool:
        """Return whether a call that sets limits or priorities names processes of this step alone."""
        wanted = arguments[OF_PROCESSES[name]] & 0xFFFFFFFF
        if name in _KINDS:
            kind = (arguments[0] & 0xFFFFFFFF) - _KINDS[name]
            if kind != _ONE and (kind != _GROUP or wanted):
                return False
        if wanted in (0, pid):
            return True
        try:
            return wanted == self._processes.group(pid) or self._processes.owns(wanted)
        except (OSError, KeyError, ValueError):
            return False

    def _refuse_chroot(self, listener: Listener, cookie: int) -> None:
        """Say once why chroot(2) fails: root of a step has no capability for it unless it is asked for."""
        if not self._said:
            with contextlib.suppress(OSError):
                os.write(self._errors, _NO_CHROOT)
            self._said = True
        listener.fail(cookie, errno.EPERM)

    def _is_fixed(self, pid: int, address: int) -> bool:
        """Return True if the path at *address* is inside a read-only mount, as far as its text tells."""
        path = self._processes.read_path(pid, address)
        if path is None:
            return False
        target = self._absolute(pid, path)
        return any(target == place or target.startswith(place + b"/") for place in self._fixed)

    def _answered(self, listener: Listener, call: Notification, name: str, where: int, path: bytes) -> bool:
        """Answer a call that may be about a file outside the root; True if it was."""
        try:
            return self._answer(listener, call, name, where, path)
        except OSError as error:
            listener.fail(call.cookie, error.errno or errno.EIO)
            return True
        except OverflowError:
            listener.fail(call.cookie, errno.EINVAL)
            return True
        except (KeyError, ValueError):  # it has just ended
            return False

    def _link_at(self, path: bytes) -> bytes:
        try:
            target = os.readlink(path.lstrip(b"/"), dir_fd=self._root)
        except (OSError, ValueError):
            return path
        return target if special(target) else path

    def _absolute(self, pid: int, path: bytes) -> bytes:
        """Return *path* as an absolute path, as far as its text tells."""
        if path.startswith(b"/"):
            return os.path.normpath(path)
        try:
            with self._processes.as_owner(pid):
                cwd = self._processes.inside(os.readlink(b"/proc/%d/cwd" % pid))
        except (OSError, KeyError, ValueError):
            return path
        return os.path.normpath(cwd + b"/" + path)

    def _answer(self, listener: Listener, call: Notification, name: str, where: int, path: bytes) -> bool:
        """Answer a call that may be about a file outside the root; True if it was."""
        arguments = call.arguments
        if name in _EXECS:
            place = self._files.resolve(call.pid, path, True)
            return place is not None and place.kind == "inside" and self._execute(call, where, path, place)
        follow = name not in ("lstat", "readlink", "readlinkat")
        if name == "newfstatat":
            follow = not arguments[where + 2] & _AT_SYMLINK_NOFOLLOW
        elif name in ("statx", "faccessat2"):
            flags = arguments[where + 1] if name == "statx" else arguments[where + 2]
            follow = not flags & _AT_SYMLINK_NOFOLLOW
        elif name in _OPENS:
            follow = not arguments[where + 1] & os.O_NOFOLLOW
        follow = follow or path.endswith(b"/")
        if path.startswith(b"/dev/"):
            found = self._device(listener, call, name, where, path)
            if found is not None:
                return found
        place = self._files.resolve(call.pid, path, follow)
        if place is None:
            if path.rstrip(b"/") == b"/proc" and name in _OPENS:
                skeleton.list_processes(self._root, [1, *self._processes.all()])
            return False
        if place.kind == "none":
            listener.fail(call.cookie, place.code)
            return True
        if name in _OPENS:
            return self._open(listener, call, arguments[where + 1] & 0xFFFFFFFF, place)
        if name in ("readlink", "readlinkat"):
            if place.kind != "link":
                listener.fail(call.cookie, errno.EINVAL)
                return True
            data = place.path[: arguments[where + 2]]
            if not self._processes.write(call.pid, arguments[where + 1], data):
                return False
            listener.answer(call.cookie, len(data))
            return True
        if name in ("access", "faccessat", "faccessat2"):
            return self._access(listener, call, arguments[where + 1] & 0xFFFFFFFF, place)
        return self._stat(listener, call, name, where, place)

    def _open(self, listener: Listener, call: Notification, flags: int, place: Place) -> bool:
        wants_directory = bool(flags & os.O_DIRECTORY)
        if place.kind == "link":
            listener.fail(call.cookie, errno.ELOOP)  # O_NOFOLLOW
            return True
        mode = flags & os.O_ACCMODE
        fd = -1
        try:
            if place.kind == "text":
                if mode != os.O_RDONLY:
                    raise PermissionError(errno.EACCES, "")
                fd = os.memfd_create("text", os.MFD_CLOEXEC)
                os.write(fd, place.path)
                os.lseek(fd, 0, os.SEEK_SET)
            elif place.kind == "inside":
                if mode != os.O_RDONLY or flags & (os.O_CREAT | os.O_TRUNC):
                    raise PermissionError(errno.EACCES, "")
                with self._processes.as_owner(call.pid):
                    fd = open_in_root(self._root, place.path, (flags & ~os.O_CREAT) | os.O_NONBLOCK)
            elif place.kind == "open":
                fd = self._open_again(call.pid, place, flags)
            elif is_directory(place.path):
                fd = self._list(place)
            elif wants_directory:
                raise NotADirectoryError(errno.ENOTDIR, "")
            else:
                if mode != os.O_RDONLY and not place.pid:
                    raise OSError(errno.EROFS, "")
                kept = flags & (os.O_ACCMODE | os.O_APPEND) | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
                with self._processes.as_owner(call.pid):
                    fd = os.open(place.path, kept | os.O_NOFOLLOW)
            if not flags & os.O_NONBLOCK:
                os.set_blocking(fd, True)
            listener.give(call.cookie, fd, bool(flags & os.O_CLOEXEC))
        finally:
            if fd >= 0:
                os.close(fd)
        return True

    def _open_again(self, pid: int, place: Place, flags: int) -> int:
        """Open a file again that a process has open; outside its root, only one that it could open by name.

        All is decided by one descriptor: the process may replace its own meanwhile.
        """
        with self._processes.as_owner(place.pid):
            handle = os.open(place.path, os.O_PATH | os.O_CLOEXEC)
        try:
            mode = os.fstat(handle).st_mode
            own = os.fsencode(f"/proc/self/fd/{handle}")
            target = os.readlink(own)
            if stat.S_ISSOCK(mode):
                raise OSError(errno.ENXIO, "")
            inside = self._processes.inside(target) != target or target == self._path
            if not inside and target.startswith(b"/") and not target.startswith(b"/memfd:"):
                return self._open_outside(pid, target, flags)
            kept = flags & (os.O_ACCMODE | os.O_APPEND | os.O_TRUNC | os.O_PATH | os.O_DIRECTORY)
            with self._processes.as_owner(pid):
                return os.open(own, kept | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        finally:
            os.close(handle)

    def _open_outside(self, pid: int, path: bytes, flags: int) -> int:
        """Open a device, or a file of /proc or /sys that the step may read. Raises OSError."""
        kept = flags & os.O_ACCMODE | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | os.O_NOFOLLOW
        if path in _DEVICES:
            return os.open(path, kept)
        if (terminal := self._terminals.get(path)) is not None:
            return os.open(f"/proc/self/fd/{terminal}", kept & ~os.O_NOFOLLOW)
        place = self._files.resolve(pid, path, False) if special(path) else None
        if place is None or place.kind != "file" or is_directory(place.path) or flags & os.O_ACCMODE:
            raise PermissionError(errno.EACCES, "")
        with self._processes.as_owner(pid):
            return os.open(place.path, kept)

    def _list(self, place: Place) -> int:
        """Return a descriptor of a directory in the root that shows the machine's directory at *place*."""
        if not place.pid:
            return skeleton.list_directory(self._root, place.path)
        links = {}
        with self._processes.as_owner(place.pid):
            for name in os.listdir(place.path):
                with contextlib.suppress(OSError):
                    links[name] = self._processes.inside(os.readlink(place.path + b"/" + name))
        return skeleton.list_directory(self._root, place.path, links)

    def _access(self, listener: Listener, call: Notification, wanted: int, place: Place) -> bool:
        if wanted & ~7:
            raise OSError(errno.EINVAL, "")
        if place.kind in ("text", "link"):
            allowed = not wanted & os.W_OK
        elif place.kind == "inside":
            with self._processes.as_owner(call.pid):
                fd = open_in_root(self._root, place.path, os.O_PATH)
                allowed = os.access(f"/proc/self/fd/{fd}", wanted, effective_ids=True)
                os.close(fd)
        else:
            if wanted & os.W_OK and place.kind == "file" and not place.pid:
                raise OSError(errno.EROFS, "")
            with self._processes.as_owner(call.pid):
                allowed = os.access(place.path, wanted, effective_ids=True)
                os.stat(place.path)
        if allowed:
            listener.answer(call.cookie, 0)
        else:
            listener.fail(call.cookie, errno.EACCES)
        return True

    def _stat(self, listener: Listener, call: Notification, name: str, where: int, place: Place) -> bool:
        """Answer a call of the stat family with the kernel's answer for the file that is meant."""
        fd, directory, path, flags = -1, -100, place.path, 0
        if place.kind == "text":
            path = b"/proc/version"
        elif place.kind == "link":
            path, flags = b"/proc/self/exe", _AT_SYMLINK_NOFOLLOW
        try:
            with self._processes.as_owner(call.pid):
                if place.kind == "inside":
                    fd = directory = open_in_root(self._root, place.path, os.O_PATH)
                    path, flags = b"", 0x1000
                if name == "statx":
                    flags |= call.arguments[where + 1] & 0x6000  # AT_STATX_SYNC_TYPE
                    data = sc.raw_statx(directory, path, flags, call.arguments[where + 2] & 0xFFFFFFFF)
                    address = call.arguments[where + 3]
                elif call.abi != own_abi(_MACHINE):
                    return False
                else:
                    data = sc.raw_stat(directory, path, flags)
                    address = call.arguments[where + 1]
        finally:
            if fd >= 0:
                os.close(fd)
        if not self._processes.write(call.pid, address, data):
            return False
        listener.answer(call.cookie, 0)
        return True

    def _execute(self, call: Notification, where: int, path: bytes, place: Place) -> bool:
        """Have the kernel execute the target of /proc/PID/exe, by a symlink in place of that path."""
        self._executed += 1
        spot = b"x%02x" % (self._executed % _SPOTS)
        link = b"/proc/%s/exe" % spot  # named so, as the kernel names the process after it, and no longer
        if len(link) <= len(path):
            skeleton.link(self._root, spot, b"exe", place.path)
            self._processes.write(call.pid, call.arguments[where], link + b"\0")
        return False

    def _device(
        self, listener: Listener, call: Notification, name: str, where: int, path: bytes
    ) -> bool | None:
        """Answer for pseudo-terminals, and for devices where the root cannot have any; None for others."""
        if path in (b"/dev/ptmx", b"/dev/pts/ptmx") and name in _OPENS:
            return self._open_device(listener, call, where, b"/dev/ptmx")
        real = b""
        if (terminal := self._terminals.get(path)) is not None:
            real = b"/proc/self/fd/%d" % terminal
        elif not self._devices_work and path in _DEVICES:
            real = path
        if not real:
            return None
        if name in _OPENS:
            return self._open_device(listener, call, where, real)
        if name in ("readlink", "readlinkat"):
            return None
        if name in ("access", "faccessat", "faccessat2"):
            listener.answer(call.cookie, 0)
            return True
        return self._stat(listener, call, name, where, Place("file", real))

    def _open_device(self, listener: Listener, call: Notification, where: int, path: bytes) -> bool:
        """Give the step a descriptor of a device of this machine, opened as it asked."""
        flags = call.arguments[where + 1]
        fd = os.open(path, flags & (os.O_ACCMODE | os.O_NONBLOCK) | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            if path == b"/dev/ptmx":
                self._keep_terminal(fd)
            listener.give(call.cookie, fd, bool(flags & os.O_CLOEXEC))
        finally:
            os.close(fd)
        return True

    def _keep_terminal(self, fd: int) -> None:
        """Keep the other side of the pseudo-terminal *fd* open: another one may get its number later."""
        number = bytearray(4)
        fcntl.ioctl(fd, _TIOCGPTN, number)
        path = b"/dev/pts/%d" % int.from_bytes(number, "little")
        if (old := self._terminals.pop(path, None)) is not None:
            os.close(old)
        while len(self._terminals) >= _MOST_TERMINALS:
            os.close(self._terminals.pop(next(iter(self._terminals))))
        self._terminals[path] = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
