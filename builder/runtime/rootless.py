"""Without root: enter a user namespace once, at the start, and be root of that.

There every path of the builder sees one set of ids, and may mount, chown and make namespaces as
root may (architecture.md 5.11). The ids are

* those that /etc/subuid and /etc/subgid give the user, mapped by newuidmap and newgidmap;
* for a root that is not the machine's (in a container), all that it has;
* else the user's own alone: owners cannot be kept then, changing them does nothing.

To be called while there is one thread and little memory: unshare(2) wants the first, fork the second.
"""

import errno
import os
import shutil

from builder.runtime import syscalls as sc

_CAP_SYS_ADMIN = 21
_FIRST_SUBID = 1  # id 0 is the user itself
_ENTERED = "_PYBUILD_ENTERED"  # set for the program that is executed anew


class RootlessError(Exception):
    """No user namespace can be had; ``hint`` says what to allow."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def is_real_root() -> bool:
    """Whether this process is root and may mount: of the machine, or of a namespace we have entered."""
    if os.geteuid() != 0:
        return False
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return False


def entered() -> bool:
    """Whether ids are those of a namespace that ``enter`` made."""
    return _ENTERED in os.environ


def enter(protect: bool = True) -> None:
    """Become root of a new user and mount namespace. Raises RootlessError.

    With *protect* a Python that the user could write to is executed anew from a read-only mount:
    steps could reach it as /proc/self/exe (CVE-2019-5736).
    """
    outside = os.geteuid(), os.getegid()
    interpreter = os.path.realpath("/proc/self/exe")  # inside, it would be the path in another namespace
    helper, ready = _map_from_outside()
    try:
        sc.unshare(sc.CLONE_NEWUSER | sc.CLONE_NEWNS)
    except OSError as error:
        os.close(ready)
        os.waitpid(helper, 0)
        raise RootlessError(
            f"this user may not make a user namespace: {error.strerror}", _hint_for(error.errno)
        ) from None
    os.write(ready, b"1")
    os.close(ready)
    _pid, status = os.waitpid(helper, 0)
    if os.waitstatus_to_exitcode(status):
        _map_own_id(outside)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    sc.mount(b"", b"/", b"", sc.MS_REC | sc.MS_PRIVATE, b"")
    os.environ[_ENTERED] = "1"
    if protect:
        _protect(interpreter)


def _hint_for(code: int | None) -> str:
    """What to change where unshare(2) fails with *code*."""
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
    return (
        "in a container it has to be allowed from outside: docker run --security-opt seccomp=unconfined "
        "--security-opt apparmor=unconfined --security-opt systempaths=unconfined, or podman run "
        "--security-opt unmask=ALL"
    )


# -- id maps -------------------------------------------------------------------------------


def _map_from_outside() -> tuple[int, int]:
    """Fork who will map ids, as that is done from outside; its pid, and where to write when to do it.

    It ends with 0 if it has mapped a range.
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
            code = 0 if _map_range(target) else 1
    finally:
        os._exit(code)
    raise AssertionError("not reached")


def _map_range(target: int) -> bool:
    if os.geteuid() == 0:
        return _map_all(target)
    uid, gid = os.geteuid(), os.getegid()
    names = (_user_name(uid), str(uid))
    rows = []
    for own, file, program in (
        (uid, "/etc/subuid", "newuidmap"),
        (gid, "/etc/subgid", "newgidmap"),
    ):
        ranges = _subids(file, names)
        path = shutil.which(program)
        if not ranges or path is None:
            return False
        row, inside = [path, str(target), "0", str(own), "1"], _FIRST_SUBID
        for first, count in ranges:
            row += [str(inside), str(first), str(count)]
            inside += count
        rows.append(row)
    return all(_succeeds(row) for row in rows)


def _map_all(target: int) -> bool:
    """Map what a root in a container has, to the same ids."""
    try:
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/self/{name}", encoding="ascii") as file:
                rows = [line.split() for line in file]
            text = "\n".join(f"{inside} {inside} {count}" for inside, _outside, count in rows)
            with open(f"/proc/{target}/{name}", "w", encoding="ascii") as file:
                file.write(text)
    except OSError:
        return False
    return True


def _map_own_id(outside: tuple[int, int]) -> None:
    """The last resort: nothing but ourselves. Raises RootlessError."""
    try:
        uid, gid = outside
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    except OSError as error:
        raise RootlessError(
            f"mapping ids in a user namespace: {error.strerror}", _hint_for(error.errno)
        ) from None


def ranges() -> int:
    """How many ids besides their own the files give this user."""
    names = (_user_name(os.geteuid()), str(os.geteuid()))
    counts = [sum(count for _, count in _subids(path, names)) for path in ("/etc/subuid", "/etc/subgid")]
    return min(counts)


def _user_name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def _subids(path: str, names: tuple[str, ...]) -> list[tuple[int, int]]:
    """The ranges that a file like /etc/subuid gives a user, by name or by number (subuid(5))."""
    found = []
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, rest = line.strip().partition(":")
                first, _, count = rest.partition(":")
                if name and name in names and first.isdigit() and count.isdigit() and int(count):
                    found.append((int(first), int(count)))
    except OSError:
        pass
    return found


def _succeeds(arguments: list[str]) -> bool:
    pid = os.posix_spawn(arguments[0], arguments, os.environ)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# -- the interpreter -----------------------------------------------------------------------


def _protect(path: str) -> None:
    """Execute ourselves anew from a read-only mount of the interpreter *path*, if it is ours to write."""
    import sys

    if not os.access(path, os.W_OK):
        return
    tree = sc.open_tree(sc.AT_FDCWD, os.fsencode(path))
    sc.mount_setattr(tree, b"", sc.MOUNT_ATTR_RDONLY)
    sc.move_mount(tree, sc.AT_FDCWD, os.fsencode(path))
    os.close(tree)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
