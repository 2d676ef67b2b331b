"""The way out of a net namespace that no root made: pasta or slirp4netns, whichever is there.

Without root nothing can be added to the machine's own network. So the process that wires steps
(builder.runtime.network.setup) moves into a net namespace of its own, where it may do as root does on
the host, and a program of the user's carries what leaves it, by sockets of the user.
"""

import os
import signal
import time

from builder.runtime import syscalls as sc
from builder.runtime.network import nameservers

FORWARDER = "10.0.2.3"  # where DNS is answered inside, whatever servers the machine has
_PATIENCE = 5.0  # seconds for a connection to come up
_TICK = 0.002


def programs() -> list[str]:
    """The paths of what can be used, best first."""
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return []
    import shutil

    found = [shutil.which(name) for name in ("pasta", "slirp4netns")]
    return [path for path in found if path is not None]


def leave_host_network(scratch: str, paths: list[str]) -> tuple[int, str]:
    """Move this process, of one thread, into a net namespace of its own, which is connected if that can be.

    *scratch* is a folder; what it holds afterwards is seen by us alone. *paths* are ``programs()``.
    Returns the pid of the program that carries the network, to be killed in the end (it ends with us
    in any case), and ""; or 0 and why nothing is connected, as on a machine without a network. Raises
    OSError.
    """
    sc.unshare(sc.CLONE_NEWNS)
    sc.mount(b"tmpfs", os.fsencode(scratch), b"tmpfs", 0, b"mode=0700")
    said = []
    for number, path in enumerate(paths):
        # Given by its path, as who carries it may not look into our /proc.
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
            return carrier, ""
        said.append(os.path.basename(path))
    return 0, f"steps reach nothing outside: {' and '.join(said)} could not connect them"


def _carry(path: str, waiting: int, namespace: str) -> None:
    """Become *path*, in the net namespace that our parent leaves, for the one it goes to."""
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
