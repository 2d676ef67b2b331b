"""EXPOSE's port words: ``[[ip:]host:]port[-port][/proto]`` (dockerfile.md T51)."""

from __future__ import annotations

import ipaddress

from builder.errors import PlanError
from grammar.span import Span

_PROTOCOLS = ("tcp", "udp", "sctp")


def parse_ports(words: list[str], span: Span) -> list[str]:
    """``port/proto`` for every port of every word, in their order. Raises PlanError."""
    return [port for word in words for port in _parse(word, span)]


def _parse(word: str, span: Span) -> list[str]:
    spec, _, protocol = word.partition("/")
    protocol = protocol.lower() or "tcp"
    if protocol not in _PROTOCOLS:
        raise PlanError(f"invalid protocol in EXPOSE {word!r}", span, "it is one of tcp, udp and sctp")
    rest, _, container = spec.rpartition(":")
    low, high = _range(container, word, span)
    address, _, host = rest.rpartition(":")
    if host:  # the host's side means nothing in an image, but it has to make sense
        first, last = _range(host, word, span)
        if last - first != high - low and high != low:
            raise PlanError(f"the two ranges in EXPOSE {word!r} are not equally long", span)
    if address:
        try:
            ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
        except ValueError:
            raise PlanError(f"invalid IP address in EXPOSE {word!r}", span) from None
    return [f"{number}/{protocol}" for number in range(low, high + 1)]


def _range(text: str, word: str, span: Span) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    low, high = _port(first, word, span), _port(last if dash else first, word, span)
    if high < low:
        raise PlanError(f"invalid range in EXPOSE {word!r}: it runs backwards", span)
    return low, high


def _port(text: str, word: str, span: Span) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise PlanError(f"invalid port in EXPOSE {word!r}", span, "ports are numbers from 0 to 65535")
    return int(text)
