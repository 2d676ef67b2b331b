"""Without root: enter a user namespace once, at the start, and be root of that.

There the builder sees one set of ids, and may mount, chown and make namespaces as root may. The ids are

* those that /etc/subuid and /etc/subgid give the user, mapped by newuidmap and newgidmap;
* for a root that is not the machine's (in a container), all that it has;
* otherwise the user's own only: owners cannot be kept then, and changing them does nothing.

It is entered while there is one thread, for unshare(2), and little memory, for fork(2).
"""

import errno
import os

from builder.runtime import syscalls as sc
from builder.runtime.errors import RootlessError

_CAP_SYS_ADMIN = 21
_FIRST_SUBID = 1  # id 0 is the user itself
# Says to the program that is executed anew which namespace was entered, and what its root is.
_ENTERED = "_PYBUILD_ENTERED"
_ROOT, _REAL = "root", "real"
_NEWGIDMAP_FAILED = 2


def is_real_root() -> bool:
    """Return True if this process is root, of the machine or of a namespace, and may mount."""
    if os.geteuid() != 0:
        return False
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return False


def entered() -> bool:
    """Return True if this process is in a namespace that ``enter`` made."""
    return os.environ.get(_ENTERED, "").partition(" ")[0] == _namespace()


def has_machines_root() -> bool:
    """Return True if root in the namespace that was entered has the number of the machine's own root.

    The machine trusts that number: root's files in /proc/sys are writable for it, without any capability.
    """
    return entered() and _ROOT in os.environ[_ENTERED].split()


def was_real_root() -> bool:
    """Return True if real root entered it, because mounts with mapped ids are unavailable."""
    return entered() and _REAL in os.environ[_ENTERED].split()


def _namespace() -> str:
    return os.readlink("/proc/self/ns/user")


def leave_chroot() -> None:
    """Make the root directory the root of a mount namespace of its own, if it is that of a chroot.

    The kernel forbids user namespaces inside a chroot. To be called as real root, with one thread. A failure
    is ignored here; making a namespace reports it.
    """
    try:
        if _mount_of("/") == _mount_of("/proc/1/root/"):
            return
    except OSError:
        pass  # it is hidden from this process
    if not _is_chrooted():
        return
    try:
        path = os.getcwd()
        directory = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        tree = sc.open_tree(sc.AT_FDCWD, b"/", recursive=True)
        sc.unshare(sc.CLONE_NEWNS)
        namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        sc.setns(namespace, sc.CLONE_NEWNS)  # which also brings us to its root
        os.close(namespace)
        sc.mount(b"", b"/", b"", sc.MS_REC | sc.MS_PRIVATE, b"")
        sc.move_mount(tree, sc.AT_FDCWD, b"/")
        os.fchdir(tree)
        os.chroot(".")
        os.close(tree)
        os.chdir(path)
    except OSError:
        os.fchdir(directory)
    finally:
        os.close(directory)


def _mount_of(path: str) -> str:
    """Return the line of /proc that numbers the mount of *path*: a bind mount of / has its inode, too."""
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{handle}", encoding="ascii") as file:
            return next(line for line in file if line.startswith("mnt_id:"))
    finally:
        os.close(handle)


def _is_chrooted() -> bool:
    """Return True if the kernel refuses a user namespace, as it does inside a chroot."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            sc.unshare(sc.CLONE_NEWUSER)
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] != 0


def enter(protect: bool = True) -> None:
    """Become root of a new user and mount namespace. Raises RootlessError.

    With *protect* a Python that the user could write to is executed again from a read-only mount: steps could
    reach it as /proc/self/exe (CVE-2019-5736).
    """
    outside = os.geteuid(), os.getegid()
    kinds = [_REAL] if is_real_root() else []
    with open("/proc/self/uid_map", encoding="ascii") as file:
        if outside[0] == 0 and file.readline().split()[:2] == ["0", "0"]:
            kinds.append(_ROOT)
    interpreter = os.path.realpath("/proc/self/exe")  # inside, it would be the path in another namespace
    helper, ready = _map_from_outside()
    try:
        sc.unshare(sc.CLONE_NEWUSER | sc.CLONE_NEWNS)
    except OSError as error:
        os.close(ready)
        os.waitpid(helper, 0)
        raise RootlessError(
            f"this user may not make a user namespace: {error.strerror}", hint_for(error.errno)
        ) from None
    os.write(ready, b"1")
    os.close(ready)
    _pid, status = os.waitpid(helper, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == _NEWGIDMAP_FAILED:
        raise RootlessError(
            "newgidmap did not map the ids that /etc/subgid gives this user",
            "make it setuid root, or give it cap_setgid, and check the ranges",
        )
    if code:
        _map_own_id(outside)
    try:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        sc.mount(b"", b"/", b"", sc.MS_REC | sc.MS_PRIVATE, b"")
        os.environ[_ENTERED] = " ".join([_namespace(), *kinds])
        if protect:
            _protect(interpreter)
    except OSError as error:  # AppArmor lets a user make a user namespace, and do nothing in it
        raise RootlessError(
            f"this user may not mount anything in a user namespace: {error.strerror}", hint_for(error.errno)
        ) from None


def hint_for(code: int | None) -> str:
    """Return what to change if unshare(2) fails with *code*."""
    if code == errno.ENOSPC:
        return "raise the sysctl user.max_user_namespaces"
    knobs = []
    for path, wanted in (
        ("kernel/unprivileged_userns_clone", "1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "0"),
    ):
        try:
            with open(f"/proc/sys/{path}", encoding="ascii") as file:
                if file.read().strip() != wanted:
                    knobs.append(f"sysctl -w {path.replace('/', '.')}={wanted}")
        except OSError:
            pass
    if knobs:
        return f"root can allow it with {' and '.join(knobs)}"
    if os.geteuid() == 0:
        return (
            "in a container they are allowed from outside, by docker run --security-opt seccomp=unconfined "
            "--security-opt apparmor=unconfined, or a pod with hostUsers: false (docs/containers.md)"
        )
    return (
        "in a container there are three ways out: run as its root, which needs nothing more; a pod with "
        "hostUsers: false; a seccomp and AppArmor profile that allows user namespaces, as docker run "
        "--security-opt seccomp=unconfined --security-opt apparmor=unconfined (docs/containers.md)"
    )


# -- id maps -------------------------------------------------------------------------------


def _map_from_outside() -> tuple[int, int]:
    """Fork a process that maps ids, as that is done from outside; its pid, and a pipe that starts it.

    It ends with 0 if it has mapped ranges, with 1 if it has mapped nothing.
    """
    waiting, ready = os.pipe()
    target = os.getpid()
    helper = os.fork()
    if helper:
        os.close(waiting)
        return helper, ready
    code = 1
    try:
        os.close(ready)
        if os.read(waiting, 1):
            code = _map_ranges(target)
    finally:
        os._exit(code)
    raise AssertionError("not reached")


def _map_ranges(target: int) -> int:
    if os.geteuid() == 0:
        return 0 if _map_all(target) else 1
    uid, gid = os.geteuid(), os.getegid()
    import shutil

    names = (_user_name(uid), str(uid))
    rows = []
    for own, file, program in (
        (uid, "/etc/subuid", "newuidmap"),
        (gid, "/etc/subgid", "newgidmap"),
    ):
        ranges = _subids(file, names, own)
        path = shutil.which(program)
        if not ranges or path is None:
            return 1
        row, inside = [path, str(target), "0", str(own), "1"], _FIRST_SUBID
        for first, count in ranges:
            row += [str(inside), str(first), str(count)]
            inside += count
        rows.append(row)
    if not _succeeds(rows[0]):
        return 1
    return 0 if _succeeds(rows[1]) else _NEWGIDMAP_FAILED


def _map_all(target: int) -> bool:
    """Map all ids of a root in a container, each to itself."""
    from builder.runtime.id_maps import own_maps, write_maps  # seldom needed

    try:
        write_maps(target, own_maps())
    except OSError:
        return False
    return True


def _map_own_id(outside: tuple[int, int]) -> None:
    """Map the ids of this process only, as the last resort. Raises RootlessError."""
    try:
        uid, gid = outside
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    except OSError as error:
        raise RootlessError(
            f"mapping ids in a user namespace: {error.strerror}", hint_for(error.errno)
        ) from None


def ranges() -> int:
    """Return how many additional ids the files give this user."""
    names = (_user_name(os.geteuid()), str(os.geteuid()))
    files = (("/etc/subuid", os.geteuid()), ("/etc/subgid", os.getegid()))
    return min(sum(count for _, count in _subids(path, names, own)) for path, own in files)


def has_name() -> bool:
    """Return True if this user has an entry in passwd, without which newuidmap maps nothing."""
    return bool(_user_name(os.geteuid()))


def _user_name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def _subids(path: str, names: tuple[str, ...], own: int) -> list[tuple[int, int]]:
    """Return the ranges that a file like /etc/subuid gives a user, by name or by number (subuid(5)).

    Of ranges that overlap only the first is taken, and the user's *own* id is cut out: none can be mapped
    twice.
    """
    found: list[tuple[int, int]] = []
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, rest = line.strip().partition(":")
                start, _, number = rest.partition(":")
                if not name or name not in names or not (start.isdigit() and number.isdigit()):
                    continue
                first, count = int(start), int(number)
                if count and not any(first < low + many and low < first + count for low, many in found):
                    found.append((first, count))
    except OSError:
        pass
    cut = []
    for first, count in found:
        if first <= own < first + count:
            cut += [(first, own - first), (own + 1, first + count - own - 1)]
        else:
            cut.append((first, count))
    return [(first, count) for first, count in cut if count]


def _succeeds(arguments: list[str]) -> bool:
    pid = os.posix_spawn(arguments[0], arguments, os.environ)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# -- the interpreter -----------------------------------------------------------------------


def _protect(path: str) -> None:
    """Execute this program again from a read-only mount of the interpreter *path*, if it is writable."""
    import sys

    if not os.access(path, os.W_OK):
        return
    tree = sc.open_tree(sc.AT_FDCWD, os.fsencode(path))
    sc.mount_setattr(tree, b"", sc.MOUNT_ATTR_RDONLY)
    sc.move_mount(tree, sc.AT_FDCWD, os.fsencode(path))
    os.close(tree)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
