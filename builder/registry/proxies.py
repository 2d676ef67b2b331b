"""The proxy for a URL: HTTP_PROXY, HTTPS_PROXY and NO_PROXY, as curl and Go read them."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from builder.errors import RegistryConfigError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def proxy_for(url: str, environ: Mapping[str, str]) -> str:
    """Return the URL of the proxy, "" for none. Loopback never has one. Raises BuildError."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    name = f"{parts.scheme}_proxy"
    proxy = _setting(environ, name)
    if not proxy or is_loopback(host) or _exempt(host, port, _setting(environ, "no_proxy")):
        return ""
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    try:
        found = urlsplit(proxy)
        usable = found.scheme in ("http", "https") and bool(found.hostname) and found.port != 0
    except ValueError:
        usable = False
    if not usable and proxy.lower().startswith("socks"):
        raise RegistryConfigError(
            f"{name.upper()} is a SOCKS proxy, which pybuild cannot ask through",
            "name an HTTP proxy, or the hosts that need none in NO_PROXY",
        )
    if not usable:
        raise RegistryConfigError(
            f"{name.upper()} is not the URL of an HTTP proxy", "for example: http://proxy:3128"
        )
    return proxy


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address is that of this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _setting(environ: Mapping[str, str], name: str) -> str:
    """Return a setting. Lower case wins. A CGI program must ignore HTTP_PROXY: its client sets it."""
    if name == "http_proxy" and "REQUEST_METHOD" in environ:
        return environ.get(name, "").strip()
    return (environ.get(name) or environ.get(name.upper()) or "").strip()


def _exempt(host: str, port: int, rules: str) -> bool:
    return any(_rule_covers(rule.strip().lower(), host.lower(), port) for rule in rules.split(","))


def _rule_covers(rule: str, host: str, port: int) -> bool:
    """One entry of NO_PROXY: ``*``, a network, an address, a domain (``.domain``: only what is below it),
    the last two with or without a port.
    """
    if not rule or rule == "*":
        return bool(rule)
    address = _address(host)
    if address is not None and "/" in rule:
        return _network_has(rule, address)
    name, colon, digits = rule.rpartition(":")
    if colon and digits.isdigit() and _address(rule) is None:
        rule = name
        if int(digits) != port:
            return False
    if address is not None:
        return address == _address(rule.strip("[]"))
    rule = rule.removeprefix("*")
    return host == rule or host.endswith(rule if rule.startswith(".") else f".{rule}")


def _network_has(rule: str, address: Address) -> bool:
    try:
        return address in ipaddress.ip_network(rule, strict=False)
    except ValueError:
        return False


def _address(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
