"""The child of a step: from the first instruction after clone3 to execve, read top to bottom.

It runs in its own user, mount, pid, uts, ipc, cgroup and (unless the host's is asked for)
net namespace. All mounts are made in the step's own mount namespace, so the kernel removes
them when the last process of the step ends. Nothing is imported, looked up by name service
or executed between entering the image's root and execve: every module used
here was loaded by the launcher, paths and texts are bytes, and passwd is parsed by hand.
"""

import contextlib
import errno
import fcntl
import os
import resource
import signal
import socket
import stat
import struct
import time

from builder.runtime import syscalls as sc
from builder.runtime.container.kernel_files import NO_EXEC, mount_kernel_files
from builder.runtime.container.seccomp import program
from builder.runtime.launcher.protocol import receive_spec
from builder.runtime.spec import (
    CANNOT_EXECUTE,
    DEFAULT_PATH,
    MOST_VOLUMES,
    NOT_FOUND,
    ContainerSpec,
    FrameSpec,
    MountSpec,
    StepError,
)
from cache.kernel import hide_abstract_sockets, keeps_owners, open_in_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

# Where everything is attached before pivot_root, on a tmpfs; /proc exists wherever a user namespace
# can be set up, and the host's is not needed again.
_STAGING = b"/proc"
_ROOT, _STORE, _SPOT = b"/proc/root", b"/proc/store", b"/proc/spot"
_SNAPSHOTS = b"snapshots/"
_KERNEL_FILES = (b"proc", b"sys", b"dev")
_STATUS_FD = 3

_SIOCADDRT, _SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x890B, 0x8914, 0x8916, 0x891C  # netdevice(7)
_IFF_UP, _RTF_UP, _RTF_GATEWAY = 1, 1, 2
_PASSWD_LIMIT = 10 << 20
_COARSE_CLOCK = 5  # CLOCK_REALTIME_COARSE
_MACHINE = os.uname().machine
_ID_LIMIT = (1 << 31) - 1

# The descriptor that errors are reported on; it moves when descriptors are renumbered.
_status = [_STATUS_FD]
# What this process ends with when it cannot become the step.
_code = [125]


def wait_and_run(feed: socket.socket, frame: FrameSpec, nodes: list[int]) -> None:
    """Prepare for *frame*, wait on *feed* for what to run, then become it. Returns never.

    The launcher sends a byte once the id maps are written, and the spec when there is one, with a
    detached mount of the store, the status channel and stdio; hanging up means that it is not wanted.
    *nodes* is a mount with the step's own nodes of the devices it is given; empty: it gets the host's.
    """
    staging, failure = -1, ""
    try:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, programs count on it
        # The pipes of steps that run now must not stay open here until this one starts.
        kept = sc.keep_only([feed.detach(), *nodes])
        feed = socket.socket(fileno=kept[0])
        if not feed.recv(1):
            os._exit(0)
        try:
            staging = _prepare(frame, kept[1:])
        except Exception as error:  # to be told to who asks for this container
            failure = words(error)
        received = receive_spec(feed, 5, 5 + MOST_VOLUMES)
        if received is None:
            os._exit(0)
        spec, fds = received
    except BaseException:  # nothing to report to, and nothing may unwind into the launcher
        os._exit(125)
    _status[0] = fds[1]
    if not failure:
        failure = _run(spec, staging, fds[0], fds[1], fds[2:5], fds[5:])
    give_up(failure)


def _prepare(frame: FrameSpec, nodes: list[int]) -> int:
    """All that can be done before a step is known; a descriptor of the staging place, which holds its /proc,
    /sys and /dev.
    """
    _set_groups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.setsid()
    sc.join_session_keyring()
    os.umask(0o022)
    sc.mount(b"", b"/", b"", sc.MS_REC | sc.MS_PRIVATE, b"")
    options: dict[bytes, bytes | None] = {b"mode": b"0755", b"size": b"1m"}
    proc = _new_proc()
    staging = sc.new_mount(b"tmpfs", NO_EXEC, options)
    sc.move_mount(staging, sc.AT_FDCWD, _STAGING)
    for path in (_ROOT, _STORE, _SPOT):
        os.mkdir(path)
    for name in (*_KERNEL_FILES, b"empty"):
        os.mkdir(name, 0o555, dir_fd=staging)
    mount_kernel_files(frame, staging, _SPOT, proc, nodes)
    if frame["network"] in ("none", "default"):
        with _any_socket() as any_socket:
            _raise(any_socket, b"lo")
    return staging


def _new_proc() -> int:
    """A /proc of these namespaces; where none may be mounted, as parts of the one here are masked, that one.

    In it /proc/self is right, and of processes outside only the names can be seen of those that start later.
    """
    try:
        return sc.new_mount(b"proc", NO_EXEC, {})
    except PermissionError:
        outer = sc.open_tree(sc.AT_FDCWD, b"/proc", recursive=True)
        sc.mount_setattr(outer, b"", NO_EXEC, recursive=True)
        return outer


def _run(
    spec: ContainerSpec, staging: int, store: int, channel: int, stdio: list[int], volumes: list[int]
) -> str:
    """Become the step; returns only when that failed, and then why.

    *volumes* are mounts, not attached yet, of what the spec calls so.
    """
    try:
        sc.prctl(sc.PR_SET_DUMPABLE, 0)
        # Usually made by the launcher already; the table is not in reach later.
        code = b""
        if spec["filtered"]:
            code = program(_MACHINE, spec["capabilities"], spec["any_socketcall"], spec["fake_owners"])
            if not code:
                raise StepError(
                    f"there is no filter of system calls for {_MACHINE} (pybuild doctor says more)"
                )
        root, mounts = _mount_root(spec, store)
        _bind_files(root, staging, spec["files"])
        for name in _KERNEL_FILES:
            _move(staging, root, name)
        _write_scripts(root, spec["scripts"])
        if spec["address"]:
            _set_address(*spec["address"])
        for mount, tree in mounts:
            _attach(root, mount["target"], tree)
        for volume, tree in zip(spec["volumes"], volumes, strict=True):
            _attach(root, volume["target"], tree)
        uid, gid, groups, home = find_user(root, spec["user"])
        with contextlib.suppress(PermissionError):  # the filter of a container we are in may say no
            socket.sethostname(spec["hostname"].decode("ascii"))
        _enter(root)
        keep_only(channel, stdio)
        change_directory(spec["cwd"], uid, gid)
        limit(spec["rlimits"])
        if spec["frame"]["network"] == "shared":
            hide_abstract_sockets()
        if spec["no_new_privileges"]:
            sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
        if code:
            sc.set_seccomp_filter(code)  # while there is the right to, and after all that needs more
        become(uid, gid, groups, spec["capabilities"])
        env = dict(spec["env"])
        env.setdefault(b"HOME", home)
        env.setdefault(b"PATH", DEFAULT_PATH)
        wait_for_clock(spec["not_before"])
        execute(spec["argv"], env)
    except BaseException as error:
        return words(error)
    return ""


def wait_for_clock(moment: int) -> None:
    """Wait until the clock that files are dated by is past *moment*, in ns."""
    while time.clock_gettime_ns(_COARSE_CLOCK) <= moment:
        time.sleep(0.0005)


def words(error: BaseException) -> str:
    if isinstance(error, StepError):
        return str(error)
    if isinstance(error, OSError):
        return f"preparing the container: {error.strerror or error}"
    return f"preparing the container: {type(error).__name__}: {error}"  # a bug


def report_to(channel: int) -> None:
    """Have ``give_up`` write to the descriptor *channel*, as long as ``keep_only`` has not moved it."""
    _status[0] = channel


def give_up(message: str) -> "NoReturn":
    """Tell the builder why the step did not start, and end."""
    data = b"E" + message.encode("utf-8", "replace")[:4000]
    os.write(_status[0], data)
    os._exit(_code[0])


# -- the network ---------------------------------------------------------------------------


def _any_socket() -> socket.socket:
    """One to set up interfaces of the step's own net namespace with."""
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)


def _raise(any_socket: socket.socket, name: bytes) -> None:
    """Take an interface up."""
    fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("=16sH14x", name, _IFF_UP))


def _set_address(address: bytes, mask: bytes, gateway: bytes) -> None:
    """Give ``eth0``, which ``builder.runtime.network`` has put here, its address and a default route."""
    everywhere, out = _socket_address(b"0.0.0.0"), _socket_address(gateway)
    with _any_socket() as any_socket:
        for what, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, mask)):
            fcntl.ioctl(any_socket, what, struct.pack("=16s16s8x", b"eth0", _socket_address(value)))
        _raise(any_socket, b"eth0")
        # A rtentry of linux/route.h.
        head = struct.pack("@L16s16s16sH", 0, everywhere, out, everywhere, _RTF_UP | _RTF_GATEWAY)
        fcntl.ioctl(any_socket, _SIOCADDRT, head.ljust(128, b"\0"))


def _socket_address(address: bytes) -> bytes:
    """A sockaddr_in of ip(7)."""
    return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(address.decode("ascii")))


# -- the root file system ------------------------------------------------------------------


def _mount_root(spec: ContainerSpec, store: int) -> tuple[int, list[tuple[MountSpec, int]]]:
    """Mount the overlay; a descriptor of its root, attached, and the trees of the other mounts, not
    attached yet.

    The store is attached, entered and its layers named by short relative paths, so that
    no host path shows in the step's mountinfo. ``volatile`` spares the sync of an upper
    that is never used as an upper again.
    """
    sc.move_mount(store, sc.AT_FDCWD, _STORE)
    os.fchdir(store)
    if spec["lowers"]:
        root = _mount_overlay(_ROOT, spec["lowers"], spec["upper"], spec["work"])
    else:
        top = os.open(spec["upper"], os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        root = _clone(top, b"/", False)
        sc.move_mount(root, sc.AT_FDCWD, _ROOT)
        os.close(top)
    mounts = [(mount, _open_mount(mount)) for mount in spec["mounts"]]
    os.fchdir(root)
    os.close(store)
    return root, mounts


def _mount_overlay(place: bytes, lowers: list[bytes], upper: bytes, work: bytes) -> int:
    """Mount an overlay of directories of the store, which is entered, at *place*."""
    if len(_overlay_options(lowers, upper, work)) < os.sysconf("SC_PAGE_SIZE"):
        _overlay(place, lowers, upper, work)
    else:  # shorter names from among the snapshots
        os.chdir(_SNAPSHOTS)
        upper, work = (b"../" + path if path else b"" for path in (upper, work))
        _overlay(place, [_from_snapshots(path) for path in lowers], upper, work)
        os.chdir(b"..")
    return os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _from_snapshots(path: bytes) -> bytes:
    """A path of the store, as seen from the folder of snapshots."""
    return path.removeprefix(_SNAPSHOTS) if path.startswith(_SNAPSHOTS) else b"../" + path


def _overlay_options(lowers: list[bytes], upper: bytes, work: bytes) -> bytes:
    options = b"userxattr,xino=off,lowerdir=%s" % b":".join(lowers)
    return options + b",volatile,upperdir=%s,workdir=%s" % (upper, work) if upper else options


def _overlay(place: bytes, lowers: list[bytes], upper: bytes, work: bytes) -> None:
    """Mount an overlay; with more layers than options can hold one by one, from Linux 6.8 on."""
    options = _overlay_options(lowers, upper, work)
    # No devices, whatever the image holds: the mount says so, and so does the namespace it is made in.
    if len(options) < os.sysconf("SC_PAGE_SIZE"):
        sc.mount(b"overlay", place, b"overlay", sc.MS_NODEV, options)
        return
    pairs: list[tuple[bytes, bytes | None]] = [(b"userxattr", None), (b"xino", b"off")]
    pairs += [(b"lowerdir+", lower) for lower in lowers]
    if upper:
        pairs += [(b"upperdir", upper), (b"workdir", work), (b"volatile", None)]
    try:
        tree = sc.new_mount(b"overlay", sc.MOUNT_ATTR_NODEV, pairs)
    except OSError as error:
        raise StepError(f"{len(lowers)} layers in one overlay mount: {error.strerror}") from None
    sc.move_mount(tree, sc.AT_FDCWD, place)
    os.close(tree)


def _open_mount(mount: MountSpec) -> int:
    """The tree of a mount, attached nowhere. What it is made from is attached for a moment."""
    kind = mount["kind"]
    if kind == "tmpfs":
        options: dict[bytes, bytes | None] = {b"mode": b"1777"}
        if mount["size"]:
            options[b"size"] = b"%d" % mount["size"]
        flags = sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV
        return sc.new_mount(b"tmpfs", flags | (sc.MOUNT_ATTR_RDONLY if mount["read_only"] else 0), options)
    if kind == "store":
        top = os.open(mount["path"], os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        tree = _clone(top, mount["source"], mount["read_only"])
        os.close(top)
        return tree
    if kind == "bind":
        top = _mount_overlay(_SPOT, mount["lowers"], mount.get("upper", b""), mount.get("work", b""))
        tree = _clone(top, mount["source"], mount["read_only"])
    else:
        flags = sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV if mount["mode"] & 0o111 else NO_EXEC
        top = sc.new_mount(b"tmpfs", flags, {b"mode": b"0700"})
        sc.move_mount(top, sc.AT_FDCWD, _SPOT)
        fd = os.open(b"file", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=top)
        os.write(fd, mount["content"])
        _give(fd, mount["uid"], mount["gid"])
        os.fchmod(fd, mount["mode"])
        os.close(fd)
        tree = _clone(top, b"file", True)
    os.close(top)
    sc.umount2(_SPOT, sc.MNT_DETACH)
    return tree


def _give(path: int | bytes, uid: int, gid: int) -> None:
    """chown, which means nothing where there is one id only."""
    if keeps_owners():
        os.chown(path, uid, gid)


def _clone(top: int, source: bytes, read_only: bool) -> int:
    """A mount of *source*, which resolves inside *top* (SRC-01, SRC-04)."""
    try:
        place = open_in_root(top, source, os.O_PATH)
    except OSError as error:
        raise StepError(f"the source {os.fsdecode(source)} of a mount: {error.strerror}") from None
    tree = sc.open_tree(place, b"")
    sc.mount_setattr(tree, b"", sc.MOUNT_ATTR_NODEV | (sc.MOUNT_ATTR_RDONLY if read_only else 0))
    os.close(place)
    return tree


def _attach(root: int, target: bytes, tree: int) -> None:
    """Mount *tree* at *target*, links followed inside the image."""
    try:
        place = _mount_point(root, target, stat.S_ISDIR(os.fstat(tree).st_mode))
        sc.move_mount(tree, place, b"")
    except OSError as error:
        kinds = _kind(root, target), _kind(tree, b".")
        what = error.strerror
        if target.startswith(b"/sys/") and kinds[0] == "link":
            what = "nothing can be made in /sys, only what is there be mounted over"
        elif error.errno == errno.EROFS:
            what = "there is no such place, and none can be made in what is mounted read-only above it"
        elif kinds[0] == "link":
            what = "the image has a link to nowhere there"
        elif error.errno == errno.EINVAL and kinds[0] != kinds[1]:
            what = f"the image has a {kinds[0]} there, what is mounted is a {kinds[1]}"
        raise StepError(f"mounting at {os.fsdecode(target)}: {what}") from None
    os.close(place)
    os.close(tree)


def _kind(root: int, path: bytes) -> str:
    try:
        fd = os.dup(root) if path == b"." else open_in_root(root, path, os.O_PATH)
    except OSError:
        return "link"
    kind = "directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"
    os.close(fd)
    return kind


def _mount_point(root: int, target: bytes, is_dir: bool) -> int:
    """Open *target*. It is missing only inside another mount, and made there.

    That may be a cache in which other steps write: what is made is not looked for by its path again.
    """
    try:
        return open_in_root(root, target, os.O_PATH)
    except FileNotFoundError:
        pass
    parent, _, name = target.rpartition(b"/")
    folder = _mount_point(root, parent or b"/", True)
    with contextlib.suppress(FileExistsError):
        if is_dir:
            os.mkdir(name, 0o755, dir_fd=folder)
        else:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=folder))
    place = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    os.close(folder)
    return place


def _move(staging: int, root: int, name: bytes) -> None:
    """Move what was mounted for /proc, /sys or /dev into the image, which must really have such a directory.

    An image whose /proc or /dev is a link or a file is refused (RT-05, RT-06).
    """
    try:
        place = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
    except OSError as error:
        raise StepError(f"/{os.fsdecode(name)} in the image: {error.strerror}") from None
    if not stat.S_ISDIR(os.fstat(place).st_mode):
        raise StepError(f"/{os.fsdecode(name)} in the image is not a directory, so nothing can run in it")
    tree = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=staging)
    sc.move_mount(tree, place, b"")
    os.close(tree)
    os.close(place)


def _write_scripts(root: int, scripts: dict[bytes, bytes]) -> None:
    """Here-documents that name their interpreters."""
    if scripts:
        os.mkdir(b"dev/pipes", 0o755, dir_fd=root)
    for name, content in scripts.items():
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(b"dev/pipes/" + name, flags, 0o755, dir_fd=root)
        left = content
        while left:
            left = left[os.write(fd, left) :]
        os.fchmod(fd, 0o755)
        os.close(fd)


def _bind_files(root: int, staging: int, files: dict[bytes, bytes]) -> None:
    """Bind private read-only files over paths of the image, links resolved inside it."""
    for number, (path, content) in enumerate(files.items()):
        name = b"%d" % number
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644, dir_fd=staging)
        os.write(fd, content)
        os.close(fd)
        tree = sc.open_tree(staging, name)
        sc.mount_setattr(tree, b"", NO_EXEC | sc.MOUNT_ATTR_RDONLY)
        try:
            try:
                place = open_in_root(root, path, os.O_PATH)
            except FileNotFoundError:  # a dangling link: cover the link itself
                place = open_in_root(root, path, os.O_PATH | os.O_NOFOLLOW)
        except OSError as error:
            raise StepError(f"mounting at {os.fsdecode(path)} of the image: {error.strerror}") from None
        if stat.S_ISDIR(os.fstat(place).st_mode):
            raise StepError(f"{os.fsdecode(path)} in the image is a directory")
        sc.move_mount(tree, place, b"")
        os.close(place)
        os.close(tree)


# -- who the step is -----------------------------------------------------------------------


def find_user(root: int, text: bytes) -> tuple[int, int, list[int], bytes]:
    """Resolve USER against the image: ``(uid, gid, supplementary groups, home)``.

    ``name`` brings the groups that list it, ``name:group`` only that group; numbers need
    no entry. An empty user is 0. What looks like a number never falls back to a name (RT-17).
    The home is that of the first entry with the uid, also where another one was named.
    """
    user, group, *_more = [*text.split(b":"), b""]
    user = user or b"0"
    passwd = [line.split(b":") for line in _read_database(root, b"etc/passwd")]
    if _is_number(user):
        uid = _number(user)
        entry = next((fields for fields in passwd if _number_of(fields, 2) == uid), None)
    else:
        entry = next((fields for fields in passwd if fields[0] == user), None)
        if entry is None:
            name = os.fsdecode(user)
            raise StepError(f"unable to find user {name}: no matching entries in passwd file")
        uid = _number_of(entry, 2)
    gid = _number_of(entry, 3) if entry else 0
    homes = (b"".join(fields[5:6]) for fields in passwd if _number_of(fields, 2) == uid)
    home = next(homes, b"") or b"/"
    if group:
        gid = _find_group(root, group)
        return uid, gid, [gid], home
    groups = [gid]
    if entry is not None:
        for fields in (line.split(b":") for line in _read_database(root, b"etc/group")):
            if len(fields) >= 4 and entry[0] in fields[3].split(b",") and _is_number(fields[2]):
                groups.append(_number(fields[2]))
    return uid, gid, list(dict.fromkeys(groups)), home


def _find_group(root: int, group: bytes) -> int:
    if _is_number(group):
        return _number(group)
    for line in _read_database(root, b"etc/group"):
        fields = line.split(b":")
        if len(fields) >= 3 and fields[0] == group and _is_number(fields[2]):
            return _number(fields[2])
    raise StepError(f"unable to find group {os.fsdecode(group)}: no matching entries in group file")


def _is_number(text: bytes) -> bool:
    """Whether *text* is meant as a number; signs and blanks count, so that they are refused as one."""
    return bool(text) and text.strip().lstrip(b"+-").isdigit()


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > 10 or int(text) >= _ID_LIMIT:
        raise StepError(f"user or group id {os.fsdecode(text)} is not between 0 and {_ID_LIMIT - 1}")
    return int(text)


def _number_of(fields: list[bytes], place: int) -> int:
    """A field of a line; what is missing or no number is 0."""
    text = fields[place] if place < len(fields) else b""
    digits = text[1:] if text[:1] in (b"+", b"-") else text
    return _number(text.removeprefix(b"+")) if digits.isdigit() else 0


def _read_database(root: int, path: bytes) -> list[bytes]:
    """Lines of the image's passwd or group file; missing is empty, anything odd an error."""
    try:
        fd = open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return []
        raise StepError(f"reading /{os.fsdecode(path)} of the image: {error.strerror}") from None
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_size > _PASSWD_LIMIT:
        raise StepError(f"/{os.fsdecode(path)} of the image is not a regular file of at most 10 MiB")
    data = os.read(fd, found.st_size + 1)
    os.close(fd)
    # As moby's readers have it, only the group file knows comments.
    lines = [line.strip() for line in data.split(b"\n")]
    return [line for line in lines if line and not (line.startswith(b"#") and path == b"etc/group")]


# -- entering ------------------------------------------------------------------------------


def _enter(root: int) -> None:
    os.fchdir(root)
    sc.pivot_root(b".", b".")
    sc.umount2(b".", sc.MNT_DETACH)
    os.chdir(b"/")


def keep_only(channel: int, stdio: list[int]) -> None:
    """Renumber to 0, 1, 2 and the status channel, and close the rest before any chdir.

    A WORKDIR of /proc/self/fd/N must not find a directory of the host (RT-01).
    """
    high = [os.dup(fd) for fd in (*stdio, channel)]
    for number, fd in enumerate(high):
        os.dup2(fd, number, inheritable=number < _STATUS_FD)
    _status[0] = _STATUS_FD
    sc.close_range(_STATUS_FD + 1)


def change_directory(path: bytes, uid: int, gid: int) -> None:
    """Enter WORKDIR, made with the step's owner where an image names one it does not have."""
    try:
        os.chdir(path)
    except FileNotFoundError:
        built = b""
        for part in path.split(b"/"):
            built += part + b"/"
            try:
                os.mkdir(built, 0o755)
            except FileExistsError:
                continue
            _give(built, uid, gid)
        os.chdir(path)
    except OSError as error:
        raise StepError(f"WORKDIR {os.fsdecode(path)}: {error.strerror}") from None
    if not os.getcwdb().startswith(b"/"):
        raise StepError(f"WORKDIR {os.fsdecode(path)} is outside the image")


def limit(limits: dict[int, tuple[int, int]]) -> None:
    """No core files, and what the command line says; above the hard limit the launcher has raised it."""
    for number, (soft, hard) in ({resource.RLIMIT_CORE: (0, 0)} | limits).items():
        try:
            resource.setrlimit(number, (soft, hard))
        except (OSError, ValueError):
            names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
            name = next(name for name in names if getattr(resource, name) == number)
            raise StepError(
                f"--ulimit {name[7:].lower()}: this user may not have more than "
                f"{resource.getrlimit(number)[1]}"
            ) from None


def _set_groups(groups: list[int]) -> None:
    """Take *groups*, as far as the user who builds may say so (user_namespaces(7), setgroups)."""
    try:
        os.setgroups(groups)
    except OSError:
        with open("/proc/self/setgroups", "rb") as file:
            if file.read().strip() != b"deny":
                raise


def become(uid: int, gid: int, groups: list[int], capabilities: int) -> None:
    """Take the step's identity; root keeps *capabilities*, others none."""
    try:
        sc.drop_bounding(capabilities)
    except PermissionError:  # no more is gained by an exec where no_new_privs is set (capabilities(7))
        if not sc.has_no_new_privileges():
            raise
    _set_groups(groups)
    try:
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError:
        raise StepError(
            f"USER {uid}:{gid}: this build has no such id; it runs without root, and with few ids of its own"
        ) from None
    sc.capset(capabilities if uid == 0 else 0)
    sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)


def execute(argv: list[bytes], env: dict[bytes, bytes]) -> None:
    """Replace the process; PATH is searched here because execvpe imports as it goes."""
    name = argv[0]
    if b"/" in name:
        candidates = [name]
    else:
        candidates = [(folder or b".") + b"/" + name for folder in env[b"PATH"].split(b":")]
    failure = errno.ENOENT
    for candidate in candidates:
        try:
            os.execve(candidate, argv, env)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                failure = error.errno or failure
    shown = os.fsdecode(name)
    _code[0] = NOT_FOUND if failure == errno.ENOENT else CANNOT_EXECUTE
    if failure == errno.ENOENT and b"/" not in name:
        raise StepError(f'exec: "{shown}": executable file not found in $PATH')
    hint = ""
    if failure == errno.ENOENT and any(os.path.lexists(candidate) for candidate in candidates):
        hint = " (it exists: is its interpreter, the loader or the #! program, in the image?)"
    elif failure == errno.ENOEXEC:
        hint = " (no #! line, or a program for another architecture)"
    raise StepError(f'exec: "{shown}": {os.strerror(failure)}{hint}')
