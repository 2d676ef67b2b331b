"""What the network of steps needs of this net namespace: addresses, routes, and settings of the kernel."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from builder.runtime.network import netlink

if TYPE_CHECKING:
    from builder.runtime.network.netlink import Message

_MTU, _LEAST_MTU = 1500, 576  # bytes; 576 is what every IPv4 host takes
_UNICAST, _MAIN = 1, 254  # rtnetlink(7): a type of routes, a table


def own_addresses() -> list[bytes]:
    """Return the IPv4 addresses of this net namespace."""
    with netlink.Links() as links:
        return sorted({socket.inet_aton(address) for address in links.addresses()})


def disable_ipv6(interface: str, own_namespace: bool) -> None:
    """Turn IPv6 off for an interface: without rules for it, the machine's services would be in reach."""
    try:
        with open(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6", "w", encoding="ascii") as file:
            file.write("1")
    except FileNotFoundError:
        pass  # this kernel has none
    except OSError:
        if not own_namespace:
            raise


def has_interface(interface: str) -> bool:
    try:
        return socket.if_nametoindex(interface) > 0
    except OSError:
        return False


def check_senders(interface: str, own_namespace: bool) -> None:
    """Have the kernel drop packets from an address that it would not send to by the same interface."""
    try:
        with open(f"/proc/sys/net/ipv4/conf/{interface}/rp_filter", "w", encoding="ascii") as file:
            file.write("1")
    except OSError:
        if not own_namespace:
            raise


def has_way_out() -> bool:
    """Return True if this net namespace has a default route by IPv4."""
    with netlink.Links() as links:
        return bool(_ways_out(links, socket.AF_INET))


def _ways_out(links: netlink.Links, family: int) -> list[Message]:
    """Return the default routes of a family."""
    return [route for route in links.routes(family) if not route["dst_len"] and route["type"] == _UNICAST]


def longest_packet(links: netlink.Links, own_namespace: bool) -> int:
    """Return the MTU of the default route, or of the interface it leaves by, in bytes.

    In a namespace of its own, the program that carries its packets cuts them up.
    """
    if own_namespace:
        return _MTU
    routes = _ways_out(links, socket.AF_INET) or _ways_out(links, socket.AF_INET6)
    if not routes:
        return _MTU
    best = min(routes, key=lambda route: (route["table"] != _MAIN, route.get_attr("RTA_PRIORITY") or 0))
    metrics = best.get_attr("RTA_METRICS")
    hops = [dict(hop["attrs"]).get("RTA_OIF") or hop["oif"] for hop in best.get_attr("RTA_MULTIPATH") or []]
    leaves = {best.get_attr("RTA_OIF"), *hops}
    sizes = [link.get_attr("IFLA_MTU") for link in links.all() if link["index"] in leaves]
    sizes.append(metrics.get_attr("RTAX_MTU") if metrics is not None else None)
    return max(_LEAST_MTU, min((size for size in sizes if size), default=_MTU))


def enable_forwarding() -> None:
    path = "/proc/sys/net/ipv4/ip_forward"
    with open(path, encoding="ascii") as file:
        if file.read().strip() == "1":
            return
    with open(path, "w", encoding="ascii") as file:
        file.write("1")
