"""Run a command in a small world of its own: a machine with two addresses, and an internet behind it.

    unshare --net python3 world.py [--ipv6 | --only-ipv6] [--closed] COMMAND...

With --ipv6 both have addresses of IPv6 too, with --only-ipv6 the way out is by that alone.

With --closed the machine has a filter, as docker makes it, that forwards for nobody it does not know;
it has to be as it was afterwards. Both are net namespaces, connected by a pair of interfaces, and nothing else is there. Everywhere
a server listens on port 8080, and says the address that it was called by.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

HOST = ("203.0.113.2", "198.51.100.7", "127.0.0.1")
INTERNET = "203.0.113.1"
HOST6, INTERNET6 = "2001:db8::2", "2001:db8::1"
METADATA6 = "fd00:ec2::254"
METADATA = "169.254.169.254"  # of a cloud: the internet's side answers it here
PORT = 8080
FILTER = """
table ip filter {
    chain FORWARD {
        type filter hook forward priority 0; policy drop;
        iifname "docker0" accept
    }
}
table inet firewall {
    chain FORWARD {
        type filter hook forward priority 10; policy drop;
    }
}
"""


def serve() -> None:
    """Tell every caller which address it has called, whatever the family."""
    server = socket.create_server(("::", PORT), family=socket.AF_INET6, backlog=64, dualstack_ipv6=True)
    while True:
        caller, _ = server.accept()
        with caller:
            caller.sendall(caller.getsockname()[0].removeprefix("::ffff:").encode() + b"\n")


def main(command: list[str]) -> int:
    """Make the world, run *command* in it; its exit code."""
    if command == ["serve"]:
        serve()
    internet = subprocess.Popen(
        ["unshare", "--net", "setpriv", "--pdeathsig", "KILL", sys.executable, __file__, "serve"]
    )
    try:
        own = Path("/proc/self/ns/net").readlink()
        while Path(f"/proc/{internet.pid}/ns/net").readlink() == own:
            time.sleep(0.005)
        inside = f"nsenter --net=/proc/{internet.pid}/ns/net"
        _say("ip link set lo up")
        _say(f"ip link add up0 type veth peer name down0 netns {internet.pid}")
        _say(f"ip addr add {HOST[0]}/24 dev up0")
        _say("ip link set up0 up")
        _say(f"ip addr add {HOST[1]}/32 dev lo")
        _say(f"{inside} ip link set lo up")
        _say(f"{inside} ip addr add {METADATA}/32 dev lo")
        _say(f"{inside} ip addr add {INTERNET}/24 dev down0")
        _say(f"{inside} ip link set down0 up")
        _say(f"ip route add default via {INTERNET}")
        if command[0].endswith("ipv6"):
            _say(f"ip addr add {HOST6}/64 dev up0 nodad")
            for address in (f"{INTERNET6}/64", f"{METADATA6}/128"):
                _say(f"{inside} ip addr add {address} dev down0 nodad")
            _say(f"ip -6 route add default via {INTERNET6}")
            if command.pop(0) == "--only-ipv6":
                _say("ip route del default")
                _say("ip addr flush dev up0 scope global")
                _say(f"ip addr add {HOST6}/64 dev up0 nodad")
                _say(f"ip -6 route replace default via {INTERNET6}")
        threading.Thread(target=serve, daemon=True).start()
        for address in (*HOST, INTERNET, METADATA) if _has_ipv4() else (INTERNET6,):
            assert called(address) == address, f"{address} does not answer"
        if command[0] != "--closed":
            return subprocess.run(command, check=False).returncode
        subprocess.run(["nft", "-f", "-"], input=FILTER, text=True, check=True)
        before = _filter()
        code = subprocess.run(command[1:], check=False).returncode
        end = time.monotonic() + 5
        while _filter() != before:
            assert time.monotonic() < end, _filter()
            time.sleep(0.05)
        return code
    finally:
        internet.kill()
        internet.wait()


def _has_ipv4() -> bool:
    return bool(subprocess.check_output(["ip", "-4", "route", "show", "default"]))


def _filter() -> str:
    return subprocess.check_output(["nft", "list", "ruleset"], text=True)


def called(address: str, patience: float = 5.0) -> str:
    """What is said at *address*, from the machine itself."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            with socket.create_connection((address, PORT), timeout=1) as server:
                return server.makefile().read().strip()
        except OSError:
            time.sleep(0.05)
    return ""


def _say(command: str) -> None:
    subprocess.run(command.split(), check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
