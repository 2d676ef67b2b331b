"""On what kind of network an address is, and where a registry may send requests."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from builder.registry import proxies

# Metadata services of Amazon, Alibaba, Oracle and Azure that, unlike 169.254.169.254, are not link-local.
_CLOUDS = frozenset(
    map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16"))
)
_SHARED = ipaddress.ip_network("100.64.0.0/10")  # behind carriers' NAT, and in overlay networks
# IPv6 addresses that hold one of IPv4, and the bits behind it
_HOLDERS = tuple(
    (ipaddress.ip_network(network), behind)
    for network, behind in (
        ("::ffff:0:0/96", 0),  # mapped
        ("::/96", 0),  # compatible
        ("64:ff9b::/96", 0),  # NAT64
        ("64:ff9b:1::/48", 0),  # NAT64 of a site, with a prefix of 96 bits
        ("2002::/16", 80),  # 6to4
    )
)


def leads_inside(registry: str, host: str) -> bool:
    """Return True if *registry* may not send requests to *host* (REG-06).

    A registry on the internet may not send them to private networks or to this machine. A registry on such a
    network may send them to the same kind of network. None may send them to the metadata services of clouds,
    which are mostly at link-local addresses.
    """
    own = urlsplit(f"//{registry}").hostname or ""
    if host == own:
        return False
    kinds = _kinds(host) - {"internet"}
    return "other" in kinds or not kinds <= _kinds(own)


def _kinds(host: str) -> set[str]:
    """Return the kinds of network that *host* is on. Names are resolved, so no spelling hides an address."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return {"internet"}  # only a proxy may know it
    return {_kind(ipaddress.ip_address(address[0])) for *_, address in found}


def _kind(address: proxies.Address) -> str:
    """Return internet, loopback, private, shared or other. An embedded IPv4 address decides."""
    if isinstance(address, ipaddress.IPv6Address) and not (address.is_loopback or address.is_unspecified):
        for network, behind in _HOLDERS:
            if address in network:
                return _kind(ipaddress.IPv4Address(int(address) >> behind & 0xFFFFFFFF))
        if address.teredo:
            return _kind(address.teredo[1])
        if address.is_site_local:
            return "private"
    if address in _CLOUDS or address.is_unspecified:
        return "other"
    if address in _SHARED:
        return "shared"
    if address.is_global:
        return "internet"
    if address.is_loopback:
        return "loopback"
    return "private" if address.is_private and not address.is_link_local else "other"


def is_loopback(registry: str) -> bool:
    """Return whether a registry's ``host[:port]`` is on this machine. It may use plain HTTP."""
    return proxies.is_loopback(urlsplit(f"//{registry}").hostname or "")


def same_origin(one: str, other: str) -> bool:
    """Whether two URLs have scheme, host and port in common."""
    return origin_of(one) == origin_of(other)


def origin_of(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL."""
    parts = urlsplit(url)
    default = 443 if parts.scheme == "https" else 80
    return parts.scheme, parts.hostname or "", parts.port or default
