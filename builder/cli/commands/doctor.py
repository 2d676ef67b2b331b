"""``pybuild doctor``: test what this machine can do for builds, and show what to change."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial

from builder.cli.command_table import Invocation
from builder.cli.parser import Parser
from builder.cli.terminal import print_result
from builder.runtime import probe, rootless
from builder.runtime import syscalls as sc
from builder.runtime.container import hierarchies, seccomp
from builder.runtime.errors import CgroupError, RootlessError
from builder.runtime.network import uplink
from builder.runtime.spec import CAPABILITIES
from cache.errors import CacheError
from cache.kernel import keeps_owners, landlock_version
from cache.store import Store, default_root
from grammar.structs import as_dict, struct

_NO_NETWORK = "build with --network=none, or with --network=host if you trust the Dockerfile"
_ONE = "one id"
_GOOD, _LESS, _MISSING = "yes", "limited", "no"


@struct
class Check:
    """One row: a feature, whether it works ("yes", "limited", "no"), what was found, what to do."""

    name: str
    works: str
    found: str
    advice: str = ""


def parser() -> Parser:
    parser = Parser("pybuild doctor", "Show what this machine can do for builds, and what to change.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def run(options: argparse.Namespace, invocation: Invocation) -> int:
    checks = examine(options.root or default_root())
    print_result(as_json(checks) if options.json else table(checks))
    return 0 if all(check.works != "no" for check in checks) else 1


def examine(root: str) -> list[Check]:
    """Test every feature; *root* is the store directory, which need not exist."""
    real = rootless.is_real_root()
    if real:
        rootless.leave_chroot()
    # The rest is tested where a build uses it: inside the namespace that a build enters.
    able, said = probe.attempt(_unshare if real else _enter)
    checks = [_identity(real, able and said == _ONE)]
    if not able:
        return [*checks, *_without_namespaces(root, *said.partition("\0")[::2])]
    checks.append(_isolation(real))
    inside = [as_dict(check) for check in _inside(root, real)] if real else _run_inside(root)
    return checks + [Check(**row) for row in inside]


def _isolation(real: bool) -> Check:
    """Return the row of a machine where steps have namespaces."""
    if real:
        return Check("isolation", _GOOD, "namespaces")

    def work() -> str:
        rootless.enter(protect=False)
        probe.in_container(probe.mount_proc, True)
        return ""

    if probe.attempt(work)[0]:
        return Check("isolation", _GOOD, "namespaces")
    return Check(
        "isolation",
        _LESS,
        "namespaces, with the partly masked /proc of this container",
        "give steps a /proc of their own: podman run --security-opt unmask=ALL, docker run --security-opt "
        "systempaths=unconfined, procMount: Unmasked in a pod with hostUsers: false",
    )


def _without_namespaces(root: str, said: str, advice: str) -> Iterator[Check]:
    """Yield the rows of a machine without namespaces, or without mounts in them; *said* is the reason."""
    if missing := probe.missing_for_chroot():
        yield Check("isolation", _MISSING, f"no namespaces: {said}; no chroot: {missing}", advice)
        return
    yield Check("isolation", _LESS, f"chroot, because namespaces are unavailable: {said}", advice)
    place = _nearest(root)
    usable = os.access(place, os.W_OK) and not os.statvfs(place).f_flag & os.ST_NOEXEC
    advice = "" if usable else "use another --root or PYBUILD_ROOT: it is read-only or noexec"
    yield Check("store", _GOOD if usable else _MISSING, f"on the file system of {place}", advice)
    yield Check("network", _LESS, "steps share the network of this container, or have none")
    yield _limits()
    yield _landlock()
    yield from _programs()


def _store(root: str) -> Iterator[Check]:
    """Yield a row if there is a store that cannot be used."""
    if not os.path.exists(os.path.join(root, "version")):
        return
    try:
        with Store(root) as store:
            store.check_owners()
    except CacheError as error:
        yield Check("store", _MISSING, error.message, error.hint)


def _nearest(root: str) -> str:
    """Return *root*, or the nearest directory above it that exists."""
    while not os.path.lexists(root):
        root = os.path.dirname(root) or "/"
    return root


def _unshare() -> str:
    try:
        sc.unshare(sc.CLONE_NEWUSER)
    except OSError as error:
        raise OSError(f"{error.strerror}\0{rootless.hint_for(error.errno)}") from None
    return ""


def _identity(real: bool, one: bool) -> Check:
    """Return the row of the user; *one* tells whether a namespace was entered that has a single ID."""
    if real:
        return Check("user", _GOOD, "root")
    if os.geteuid() == 0:
        return Check("user", _GOOD, "root of a container: steps have its ids")
    ranges = rootless.ranges()
    if ranges and shutil.which("newuidmap") and shutil.which("newgidmap"):
        if not one:
            return Check("user", _GOOD, f"a user with {ranges} more ids")
        nameless = not rootless.has_name()
        why = f"uid {os.geteuid()} has no entry in /etc/passwd" if nameless else "newuidmap fails"
        return Check(
            "user",
            _LESS,
            f"a user with one id; the {ranges} more are not mapped ({why}): chown in steps has no effect",
            "add an entry: useradd --uid N NAME" if nameless
            else "make newuidmap and newgidmap setuid root, and give no other user the same ranges",
        )  # fmt: skip
    what = "newuidmap and newgidmap are missing" if ranges else "no more ids in /etc/subuid and /etc/subgid"
    user = os.environ.get("USER") or str(os.geteuid())
    return Check(
        "user",
        _LESS,
        f"a user with one id ({what}): chown in steps has no effect",
        "install uidmap, and run as root: usermod --add-subuids 100000-165535 "
        f"--add-subgids 100000-165535 {user}",
    )


def _enter() -> str:
    try:
        rootless.enter(protect=False)
    except RootlessError as error:
        raise OSError(f"{error.message}\0{error.hint}") from None
    return "" if keeps_owners() else _ONE


def _run_inside(root: str) -> list[dict[str, str]]:
    """Return the checks that a process makes in a namespace of its own."""

    def work() -> str:
        rootless.enter(protect=False)
        return json.dumps([as_dict(check) for check in _inside(root, False)])

    able, said = probe.attempt(work)
    if not able:
        return [as_dict(Check("isolation", _MISSING, said))]
    rows: list[dict[str, str]] = json.loads(said)
    return rows


def _inside(root: str, real: bool) -> Iterator[Check]:
    place = _nearest(root)
    shifted = real
    yield from _store(root)
    try:
        with tempfile.TemporaryDirectory(prefix="pybuild-doctor.", dir=place) as folder:
            os.chmod(folder, 0o755)
            shifted = real and probe.can_map_mounts(folder)
            if real:
                yield _mapped_mounts(shifted, place)
            yield _tried(
                "overlayfs",
                lambda: probe.in_container(lambda: probe.mount_overlay(folder), True),
                f"on the file system of {place}",
                "use a --root on ext4, xfs, btrfs or tmpfs (in a container, on a volume) and Linux 5.11 or "
                "newer: without overlayfs each step copies its root, which is slow",
                _LESS,
            )
    except OSError as error:
        said = f"{root} cannot be made: {error.strerror}"
        yield Check("store", _MISSING, said, "use another --root or PYBUILD_ROOT")
    yield _tried(
        "a /sys for steps",
        lambda: probe.in_container(probe.mount_sysfs, not shifted),
        "a new one can be mounted",
        "run pybuild outside a container for a full /sys: steps get this container's, read-only",
        _LESS,
    )
    yield from _network(shifted)
    yield _limits()
    code = seccomp.program(os.uname().machine, CAPABILITIES)
    yield _tried(
        "seccomp", lambda: sc.set_seccomp_filter(code), f"a filter of {len(code) // 8} instructions",
        "build a kernel with CONFIG_SECCOMP_FILTER",
    ) if code else Check("seccomp", _MISSING, f"there is no filter for {os.uname().machine}")  # fmt: skip
    yield _landlock()
    yield _tried(
        "FUSE", lambda: os.close(os.open("/dev/fuse", os.O_RDWR)), "/dev/fuse can be opened",
        "nothing to do, unless a step uses --device /dev/fuse", _LESS,
    )  # fmt: skip
    yield from _programs()


def _landlock() -> Check:
    version = landlock_version()
    if version > 1:
        return Check("Landlock", _GOOD, f"version {version}")
    return Check(
        "Landlock",
        _LESS,
        "unavailable: only path resolution protects unpacking",
        "boot Linux 5.19 or newer with landlock among the lsm= modules",
    )


def _programs() -> Iterator[Check]:
    for name, why in (("git", "needed for git repositories"), ("ssh", "needed for git over ssh")):
        path = shutil.which(name)
        advice = "" if path else f"install {name}"
        yield Check(name, _GOOD if path else _LESS, path or f"not installed: {why}", advice)


def _mapped_mounts(able: bool, place: str) -> Check:
    if able:
        found = f"on the file system of {place}: steps have ids that no user has"
        return Check("mounts with mapped ids", _GOOD, found)
    return Check(
        "mounts with mapped ids",
        _LESS,
        f"not on the file system of {place}: root of a step is this machine's own root",
        "use a --root on ext4, xfs, btrfs or tmpfs, and Linux 5.12 or newer",
    )


def _network(real: bool) -> Iterator[Check]:
    if real:
        yield _tried("network", _wire, "veth and nftables", _NO_NETWORK, _LESS)
        return
    said: list[str] = []
    for path in uplink.programs():
        with tempfile.TemporaryDirectory(prefix="pybuild-doctor.") as scratch:
            work = partial(_connect, path, scratch)
            check = _tried("network", work, os.path.basename(path), _NO_NETWORK, _LESS)
        if check.works == _GOOD:
            yield Check("network", _GOOD, "; ".join([f"behind {check.found}", *said]))
            return
        said.append(check.found)
    if said:
        yield Check("network", _LESS, "; ".join(said), _NO_NETWORK)
        return
    yield Check(
        "network",
        _LESS,
        "neither pasta nor slirp4netns, or no /dev/net/tun: steps share this machine's network",
        "install passt, and make /dev/net/tun accessible",
    )


def _wire() -> None:
    """Make the network of a build in a new network namespace."""
    from builder.runtime.network.setup import try_network

    sc.unshare(sc.CLONE_NEWNET)
    try_network(False)


def _connect(path: str, scratch: str) -> None:
    """Make it in a network namespace that the program *path* connects."""
    from builder.runtime.network.setup import try_network

    carrier, said = uplink.leave_host_network(scratch, [path])
    if not carrier:
        raise OSError(said)
    os.kill(carrier, 9)
    try_network(True)


def _limits() -> Check:
    try:
        can = hierarchies.find().can
    except CgroupError as error:
        return Check("limits", _LESS, str(error))
    found = ", ".join(name for name in hierarchies.CONTROLLERS if name in can) or "none"
    if len(can) == len(hierarchies.CONTROLLERS):
        return Check("limits", _GOOD, found)
    return Check(
        "limits",
        _LESS,
        f"can be set: {found}",
        "run it in a cgroup delegated to this user: systemd-run --user --scope -p Delegate=yes pybuild",
    )


def _tried(
    name: str, work: Callable[[], object], found: str, advice: str, otherwise: str = _MISSING
) -> Check:
    def run() -> str:
        work()
        return ""

    able, said = probe.attempt(run)
    return Check(name, _GOOD, found) if able else Check(name, otherwise, said, advice)


def table(checks: list[Check]) -> str:
    """Return the checks as text: a line each, advice below."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.name.ljust(width)}  {check.works.ljust(7)}  {check.found}")
        if check.advice:
            lines.append(f"{'':{width}}           -> {check.advice}")
    return "\n".join(lines)


def as_json(checks: list[Check]) -> str:
    return json.dumps([as_dict(check) for check in checks], indent=2)
