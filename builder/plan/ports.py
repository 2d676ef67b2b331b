"""EXPOSE's port words: ``[[ip:]host:]port[-port][/proto]`` (T51)."""

from __future__ import annotations

from builder.errors import PlanError
from grammar.span import Span

_PROTOCOLS = ("tcp", "udp", "sctp")


def parse_ports(words: list[str], span: Span) -> list[str]:
    """Return ``port/proto`` for each port of each word, in order. Raises PlanError."""
    return [port for word in words for port in _parse(word, span)]


def _parse(word: str, span: Span) -> list[str]:
    rest, _, container = word.rpartition(":")
    numbers, _, protocol = container.partition("/")
    if not numbers:
        raise PlanError(f"no port specified: {container}<empty>", span)
    protocol = protocol.lower() or "tcp"
    if protocol not in _PROTOCOLS:
        raise PlanError(f"invalid proto: {protocol}", span, "it is one of tcp, udp and sctp")
    address, _, host = rest.rpartition(":")
    if address:
        import ipaddress

        try:
            ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
        except ValueError:
            raise PlanError(f"invalid IP address: {address}", span) from None
    low, high = _range("containerPort", numbers, span)
    if host:  # an image has no host port, but its syntax is checked
        first, last = _range("hostPort", host, span)
        if last - first != high - low and high != low:
            raise PlanError(
                f"invalid ranges specified for container and host Ports: {numbers} and {host}", span
            )
    return [f"{number}/{protocol}" for number in range(low, high + 1)]


def _range(what: str, text: str, span: Span) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not (_is_port(first) and _is_port(last if dash else first)) or (dash and int(last) < int(first)):
        raise PlanError(f"invalid {what}: {text}", span, "ports are numbers from 0 to 65535")
    return int(first), int(last if dash else first)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 20 and int(text) <= 65535
