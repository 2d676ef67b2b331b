"""IPv6 for steps, on machines that have a default route by it: addresses of their own, and NAT.

Each link has a prefix of its own; the machine's end is ``::1``, the step's ``::2``. The rules are those of
IPv4 (builder.runtime.network.setup), and neighbour discovery is accepted.
"""

from __future__ import annotations

import contextlib
import os
import socket

from builder.runtime import syscalls as sc
from builder.runtime.network import netlink
from builder.runtime.network.netlink import Filters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

POOL = bytes.fromhex("fdb19d0e7a60")  # of unique local addresses (RFC 4193)
OURS, LINK = 7, 8  # bytes of an address that are a build's, and a link's
PREFIX = 64  # bits of a link's
LEAST_MTU = 1280
# Where clouds serve secrets to their machines.
METADATA = tuple(socket.inet_pton(socket.AF_INET6, text) for text in ("fd00:ec2::254", "fd20:ce::254"))
_SETTINGS = "/proc/sys/net/ipv6/conf"


def is_there() -> bool:
    """Return True if this net namespace has a default route by IPv6."""
    try:
        with open("/proc/net/ipv6_route", encoding="ascii") as file:
            rows = [line.split() for line in file]
    except OSError:
        return False
    return any(set(row[0]) == {"0"} and row[1] == "00" and row[9] != "lo" for row in rows)


def prefix(slot: int, host: int) -> bytes:
    """Return the first bytes of the addresses of a link."""
    return POOL + bytes((slot, host))


def address(slot: int, host: int, end: int) -> str:
    return socket.inet_ntop(socket.AF_INET6, prefix(slot, host) + end.to_bytes(LINK, "big"))


def forward() -> None:
    """Have the machine forward packets; it still takes its own routes from routers. Raises OSError."""
    if _setting("all", "forwarding") == "1":
        return
    for name in os.listdir(_SETTINGS):
        with contextlib.suppress(OSError):
            if name != "all" and _setting(name, "accept_ra") == "1":
                _set(name, "accept_ra", "2")
    _set("all", "forwarding", "1")


def _setting(interface: str, name: str) -> str:
    with open(f"{_SETTINGS}/{interface}/{name}", encoding="ascii") as file:
        return file.read().strip()


def _set(interface: str, name: str, value: str) -> None:
    with open(f"{_SETTINGS}/{interface}/{name}", "w", encoding="ascii") as file:
        file.write(value)


def connect(links: netlink.Links, name: str, namespace: int, slot: int, host: int) -> None:
    """Give both ends of the link *name* their addresses, and the step a default route. Raises OSError."""
    links.add_address6(socket.if_nametoindex(name), address(slot, host, 1), PREFIX)
    with _inside(namespace), netlink.Links() as others:
        index = socket.if_nametoindex("eth0")
        others.raise_(index)
        others.add_address6(index, address(slot, host, 2), PREFIX)
        others.add_way_out6(index, address(slot, host, 1))


@contextlib.contextmanager
def _inside(namespace: int) -> Iterator[None]:
    """Enter a net namespace for the block. There must be one thread."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        sc.setns(namespace, sc.CLONE_NEWNET)
        try:
            yield
        finally:
            sc.setns(own, sc.CLONE_NEWNET)
    finally:
        os.close(own)


def filters() -> Filters:
    return Filters(netlink.IPV6)
