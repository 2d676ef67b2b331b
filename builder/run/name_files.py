"""The files by which a container resolves names: /etc/resolv.conf and /etc/hosts."""

from __future__ import annotations

from builder.request import HOST_GATEWAY
from builder.runtime.network import ipv6, nameservers
from builder.runtime.network.uplink import FORWARDER
from builder.runtime.rootless import entered
from builder.support.paths import read_text

# The network of steps that want one of their own where none can be made: this machine's.
SHARED_NETWORK = "shared"
# Used, as Docker does, where this machine names no server that a container can reach.
_PUBLIC_SERVERS = ["8.8.8.8", "8.8.4.4"]
_PUBLIC_SERVERS_6 = ["2001:4860:4860::8888"]


def resolv_conf(network: str, servers: tuple[str, ...] = ()) -> bytes:
    """Return /etc/resolv.conf with *servers*, or with those of this machine that a container can reach."""
    if servers:
        return "".join(f"nameserver {server}\n" for server in servers).encode()
    if network in ("host", SHARED_NETWORK):
        return read_text("/etc/resolv.conf").encode()
    text = nameservers.resolv_conf()
    lines = [line for line in text.splitlines() if not line.strip().startswith("nameserver")]
    has_ipv6 = not entered() and ipv6.is_there()
    fallback = [FORWARDER] if entered() else _PUBLIC_SERVERS + _PUBLIC_SERVERS_6 * has_ipv6
    known = nameservers.reachable(text, entered(), has_ipv6)
    lines += [f"nameserver {server}" for server in known or fallback]
    return ("\n".join(lines) + "\n").encode()


def hosts(hostname: str, network: str, given: tuple[tuple[str, str], ...] = ()) -> bytes:
    """Return /etc/hosts of a container with the names and addresses that --add-host has *given*."""
    text = f"127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    return (text + "".join(f"{address}\t{name}\n" for name, address in _addresses(network, given))).encode()


def _addresses(network: str, given: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Return the lines of --add-host. HOST_GATEWAY is this machine, which only its own network reaches."""
    here = network in ("host", SHARED_NETWORK)
    lines = [(name, "127.0.0.1" if at == HOST_GATEWAY and here else at) for name, at in given]
    return tuple((name, at) for name, at in lines if at != HOST_GATEWAY)
