"""The machine's name servers, as far as containers can reach them (resolv.conf(5))."""

import os
import socket

_OWN = "/etc/resolv.conf"
_RESOLVED = "/run/systemd/resolve/resolv.conf"
_LIMIT = 1 << 16


def resolv_conf() -> str:
    """Return the machine's resolv.conf; if it names systemd-resolved only, the servers that this asks."""
    text = _read(_OWN)
    if servers(text) == ["127.0.0.53"] and os.path.exists(_RESOLVED):
        return _read(_RESOLVED)
    return text


def reachable(text: str, outside: bool = False, ipv6: bool = False) -> list[str]:
    """Return the servers that a step can reach, with *ipv6* also those by IPv6; none is on loopback.

    With *outside* no server is on an address of this machine: the program that carries the network without
    root cannot reach those.
    """
    out = []
    for server in servers(text):
        if ipv6 and _is_of(socket.AF_INET6, server):
            if server != "::1":
                out.append(server)
            continue
        if not _is_of(socket.AF_INET, server):
            continue
        if not server.startswith("127.") and not (outside and _is_own(server)):
            out.append(server)
    return out


def _is_of(family: int, address: str) -> bool:
    try:
        socket.inet_pton(family, address)
    except OSError:
        return False
    return True


def _is_own(address: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.bind((address, 0))
        except OSError:
            return False
    return True


def servers(text: str) -> list[str]:
    rows = (line.split() for line in text.splitlines())
    return [row[1] for row in rows if len(row) > 1 and row[0] == "nameserver"]


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_LIMIT)
    except OSError:
        return ""
