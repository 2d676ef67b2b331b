"""The way out of a net namespace that was made without root: pasta or slirp4netns, whichever is installed.

Without root nothing can be added to the machine's own network. So the process that connects steps
(builder.runtime.network.setup) moves into a net namespace of its own, where it has the rights of root. A
program carries the packets that leave it, by sockets of the user.
"""

import os
import signal
import time
from typing import NamedTuple

from builder.runtime import syscalls as sc
from builder.runtime.network import nameservers

FORWARDER = "10.0.2.3"  # where DNS is answered inside, whatever servers the machine has
_PATIENCE = 5.0  # seconds for a connection to come up
_TICK = 0.002


def programs() -> list[str]:
    """Return the paths of the programs that can be used, best first."""
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return []
    import shutil

    found = [shutil.which(name) for name in ("pasta", "slirp4netns")]
    return [path for path in found if path is not None]


class Uplink(NamedTuple):
    """The program that carries the network, or 0 and why there is none, as on a machine without a network.

    The program is to be killed in the end; it ends with this process in any case.
    """

    pid: int
    warning: str


def leave_host_network(scratch: str, paths: list[str]) -> Uplink:
    """Move this process, of one thread, into a net namespace of its own, and connect that if possible.

    *scratch* is a directory that only this process sees afterwards; *paths* are ``programs()``. Raises
    OSError.
    """
    sc.unshare(sc.CLONE_NEWNS)
    sc.mount(b"tmpfs", os.fsencode(scratch), b"tmpfs", 0, b"mode=0700")
    tried = []
    for number, path in enumerate(paths):
        # Given by its path, as the program may not read the /proc of this process.
        namespace = f"{scratch}/uplink{number}"
        os.close(os.open(namespace, os.O_CREAT | os.O_CLOEXEC, 0o600))
        waiting, ready = os.pipe()
        carrier = os.fork()
        if carrier == 0:
            os.close(ready)
            _carry(path, waiting, namespace)
        os.close(waiting)
        sc.unshare(sc.CLONE_NEWNET)
        tree = sc.open_tree(sc.AT_FDCWD, b"/proc/self/ns/net")
        sc.move_mount(tree, sc.AT_FDCWD, os.fsencode(namespace))
        os.close(tree)
        os.write(ready, b"1")
        os.close(ready)
        if _comes_up(carrier):
            return Uplink(carrier, "")
        tried.append(os.path.basename(path))
    return Uplink(0, f"steps reach nothing outside: {' and '.join(tried)} could not connect them")


def _carry(path: str, waiting: int, namespace: str) -> None:
    """Become *path*, in the net namespace that the parent leaves, for the one that it enters."""
    try:
        sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)  # pasta ends when it finds one ignored
        if os.read(waiting, 1):
            if os.path.basename(path) == "pasta":
                arguments = ["--foreground", "--quiet", "--config-net", "--no-map-gw", "--runas", "0"]
                arguments += ["-t", "none", "-u", "none", "-T", "none", "-U", "none"]
                if not nameservers.reachable(nameservers.resolv_conf(), outside=True):
                    arguments += ["--dns-forward", FORWARDER]  # all answers seem to come from there then
                arguments += ["--netns", namespace]
            else:
                arguments = ["--configure", "--mtu=65520", "--disable-host-loopback", "--netns-type=path"]
                arguments += [namespace, "tap0"]
            os.execv(path, [path, *arguments])
    finally:
        os._exit(1)


def _comes_up(carrier: int) -> bool:
    """Wait until there is a default route, or the program has ended."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        with open("/proc/self/net/route", encoding="ascii") as file:
            if any(line.split()[1:2] == ["00000000"] for line in file):
                return True
        pid, _status = os.waitpid(carrier, os.WNOHANG)
        if pid:
            return False
        time.sleep(_TICK)
    os.kill(carrier, signal.SIGKILL)
    os.waitpid(carrier, 0)
    return False
