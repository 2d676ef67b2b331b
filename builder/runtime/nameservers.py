"""The machine's name servers, as far as containers can reach them (resolv.conf(5))."""

import os

_OWN = "/etc/resolv.conf"
_RESOLVED = "/run/systemd/resolve/resolv.conf"
_LIMIT = 1 << 16


def resolv_conf() -> str:
    """The text of the machine's resolv.conf; what systemd-resolved asks where only that answers."""
    text = _read(_OWN)
    if servers(text) == ["127.0.0.53"] and os.path.exists(_RESOLVED):
        return _read(_RESOLVED)
    return text


def reachable(text: str) -> list[str]:
    """The servers that are not on the machine's own loopback."""
    return [server for server in servers(text) if not server.startswith("127.") and server != "::1"]


def servers(text: str) -> list[str]:
    rows = (line.split() for line in text.splitlines())
    return [row[1] for row in rows if len(row) > 1 and row[0] == "nameserver"]


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_LIMIT)
    except OSError:
        return ""
