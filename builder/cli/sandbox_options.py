"""The sandbox of containers: options of builds and of ``pybuild run``, and the value that they make."""

from __future__ import annotations

import argparse
import os
import re
import resource
import stat

from builder.cli.parser import add_repeatable
from builder.errors import UsageError
from builder.request import HOST_GATEWAY, Limits, Sandbox
from builder.runtime.spec import CAPABILITY_NAMES

_SINGLE = (
    ("-m --memory", "SIZE", "memory limit, such as 512m or 2g"),
    ("--cpus", "NUMBER", "number of CPUs, such as 1.5"),
    ("--cpuset-cpus", "LIST", "CPUs in which to allow execution, such as 0-3,6"),
    ("--pids-limit", "NUMBER", "limit of processes and threads"),
    ("--cgroup-parent", "PATH", "parent cgroup of the containers"),
    ("--shm-size", "SIZE", "size of /dev/shm (default: 64m)"),
)
_REPEATABLE = (
    ("--cap-add", "CAPABILITY", "add a Linux capability, or ALL"),
    ("--cap-drop", "CAPABILITY", "drop a Linux capability, or ALL"),
    ("--security-opt", "OPTION", "no-new-privileges, seccomp=unconfined or systempaths=unconfined"),
    ("--device", "HOST[:PATH]", "add a device of the host"),
    ("--add-host", "NAME:ADDRESS", "add a line to /etc/hosts; host-gateway is the address of the host"),
    ("--dns", "ADDRESS", "set a DNS server"),
    ("--ulimit", "NAME=SOFT[:HARD]", "resource limit, such as nofile=1024:2048"),
)
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([bkmgt]?)i?b?", re.IGNORECASE)
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?")
_CPUS = re.compile(r"[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*")
_ADDRESS = re.compile(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?")
_LIMIT = re.compile(r"-1|unlimited|[0-9]{1,19}")
# Names in the /dev of every container.
_TAKEN = frozenset(
    (
        *("null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "pts", "shm", "mqueue"),
        *("fd", "stdin", "stdout", "stderr", "core", "pipes"),
    )
)
_LONGEST = 255  # bytes of a name
_PERIOD = 100_000  # microseconds; --cpus is a share of it
_LEAST_MEMORY = 6 << 20  # docker's minimum
_RESOURCES = {
    name.removeprefix("RLIMIT_").lower(): number
    for name, number in vars(resource).items()
    if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"
}


def add_sandbox_options(parser: argparse.ArgumentParser) -> None:
    """Add the options, in a group of their own."""
    group = parser.add_argument_group("sandbox", "limits and privileges of containers")
    for names, metavar, about in _SINGLE:
        group.add_argument(*names.split(), default="", metavar=metavar, help=about)
    for names, metavar, about in _REPEATABLE:
        add_repeatable(group, names, metavar, about)


def sandbox(options: argparse.Namespace) -> Sandbox:
    """Return the sandbox that the options make. Raises UsageError."""
    switches = _switches(options.security_opt)
    return Sandbox(
        hosts=tuple(map(_host, options.add_host)),
        dns=tuple(_address(text, "--dns") for text in options.dns),
        shm_size=_size(options.shm_size, "--shm-size"),
        ulimits=tuple(sorted(dict(map(_ulimit, options.ulimit)).items())),
        cap_add=_capabilities(options.cap_add, "--cap-add"),
        cap_drop=_capabilities(options.cap_drop, "--cap-drop"),
        devices=_devices(options.device),
        no_new_privileges="no-new-privileges" in switches,
        any_syscall="seccomp" in switches,
        system_paths="systempaths" in switches,
        limits=_limits(options),
    )


def _limits(options: argparse.Namespace) -> Limits:
    memory = _size(options.memory, "--memory")
    if memory and memory < _LEAST_MEMORY:
        raise UsageError(f"--memory {options.memory} is less than {_LEAST_MEMORY >> 20}m")
    if options.cpuset_cpus and not _CPUS.fullmatch(options.cpuset_cpus):
        raise UsageError(f"--cpuset-cpus {options.cpuset_cpus!r} is not a list of processors such as 0-3,6")
    parent = options.cgroup_parent
    if ".." in parent.split("/") or not parent.isprintable():
        raise UsageError(f"--cgroup-parent {parent!r} is not a path below the root of the cgroups")
    quota = _number(options.cpus, "--cpus") * _PERIOD
    if options.cpus and quota < 1000:
        raise UsageError(f"--cpus {options.cpus} is less than 0.01")
    pids = _number(options.pids_limit, "--pids-limit")
    if options.pids_limit and (pids != int(pids) or pids < 1):
        raise UsageError(f"--pids-limit {options.pids_limit} is not a number of processes")
    return Limits(memory, int(quota), options.cpuset_cpus, int(pids), parent)


def _number(text: str, option: str) -> float:
    if not text:
        return 0.0
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        raise UsageError(f"{option} {text!r} is not a number")
    return float(text)


def _size(text: str, option: str) -> int:
    """Return bytes from a number with the unit b, k, m, g or t, as docker reads it; 0 for none."""
    if text in ("", "0"):
        return 0
    match = _SIZE.fullmatch(text)
    size = int(float(match[1]) * _UNITS[match[2].lower()]) if match and len(match[1]) <= 15 else -1
    if not 0 < size < 1 << 63:
        raise UsageError(f"{option} {text!r} is not a size", "for example: 512m")
    return size


def _host(text: str) -> tuple[str, str]:
    """Return name and address of ``NAME:ADDRESS`` or ``NAME=ADDRESS``; IPv6 may be in brackets."""
    name, mark, address = text.partition("=" if "=" in text else ":")
    if not mark or not _HOST.fullmatch(name):
        raise UsageError(f"--add-host {text!r} has no name and address", "for example: db:10.0.0.7")
    if address == HOST_GATEWAY:
        return name, address
    return name, _address(address.removeprefix("[").removesuffix("]"), "--add-host")


def _address(text: str, option: str) -> str:
    import ipaddress

    try:
        if _ADDRESS.fullmatch(text):
            return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    raise UsageError(f"{option} {text!r} is not an IP address")


def _ulimit(text: str) -> tuple[str, tuple[int, int]]:
    name, _, values = text.partition("=")
    soft, _, hard = values.partition(":")
    both = (soft, hard or soft)
    limits = [-1 if value in ("-1", "unlimited") else int(value) for value in both if _LIMIT.fullmatch(value)]
    if name not in _RESOURCES or len(limits) != 2 or any(value >= 1 << 63 for value in limits):
        raise UsageError(
            f"--ulimit {text!r} is not NAME=SOFT[:HARD]", f"the names are {', '.join(sorted(_RESOURCES))}"
        )
    if limits[1] != -1 and (limits[0] == -1 or limits[0] > limits[1]):
        raise UsageError(f"--ulimit {text!r}: the soft limit is above the hard one")
    return name, (limits[0], limits[1])


def _capabilities(items: list[str], option: str) -> tuple[str, ...]:
    out = set()
    for item in items:
        for word in item.lower().split(","):
            name = word.removeprefix("cap_")
            if name not in ("all", *CAPABILITY_NAMES):
                raise UsageError(f"{option} {name!r} is not a capability", "for example: NET_ADMIN, or ALL")
            out.add(name)
    return tuple(sorted(out))


def _switches(items: list[str]) -> set[str]:
    """Return the options that are set; ``apparmor=unconfined`` and ``label=disable`` have no effect."""
    out: set[str] = set()
    for item in items:
        name, _, value = item.replace(":", "=", 1).partition("=")
        match name, value:
            case "no-new-privileges", "" | "true":
                out.add(name)
            case "no-new-privileges", "false":
                pass
            case "seccomp" | "systempaths", "unconfined":
                out.add(name)
            case ("apparmor", "unconfined") | ("label", "disable"):
                pass
            case _:
                raise UsageError(
                    f"--security-opt {item!r} is not supported",
                    "use no-new-privileges, seccomp=unconfined or systempaths=unconfined",
                )
    return out


def _devices(items: list[str]) -> tuple[tuple[str, str], ...]:
    """Return paths of devices on the host and in the container. Raises UsageError if two have one path."""
    out: dict[str, str] = {}
    for text in items:
        host, path = _device(text)
        parts = path.split("/")[2:]
        above = {"/".join(["/dev", *parts[:depth]]) for depth in range(1, len(parts))}
        below = any(other.startswith(f"{path}/") for other in out)
        if parts[0] in _TAKEN or above & out.keys() or below or out.get(path, host) != host:
            raise UsageError(f"--device {text!r}: there is another device or directory at {path}")
        out[path] = host
    return tuple((host, path) for path, host in out.items())


def _device(text: str) -> tuple[str, str]:
    """Return the paths of ``HOST[:PATH[:PERMISSIONS]]``; permissions must be all of them."""
    host, _, rest = text.partition(":")
    path, _, permissions = rest.partition(":")
    if path in ("r", "w", "rw", "rm", "rwm", "wm", "m"):
        path, permissions = "", path
    path = path or host
    if permissions not in ("", "rw", "rwm"):
        raise UsageError(f"--device {text!r}: only rwm is supported")
    path = os.path.normpath(path)
    names = path.split("/")
    if not path.startswith("/dev/") or any(len(os.fsencode(name)) > _LONGEST for name in names):
        raise UsageError(f"--device {text!r}: it can be in /dev only", "for example: --device /dev/fuse")
    try:
        mode = os.stat(host).st_mode
    except OSError as error:
        raise UsageError(f"--device {host}: {error.strerror}") from None
    if not stat.S_ISCHR(mode) and not stat.S_ISBLK(mode):
        raise UsageError(f"--device {host} is not a device")
    return os.path.realpath(host), path
