"""EXPOSE's port words: ``[[ip:]host:]port[-port][/proto]`` (dockerfile.md T51)."""

from __future__ import annotations

from builder.errors import PlanError
from grammar.span import Span

_PROTOCOLS = ("tcp", "udp", "sctp")


def parse_ports(words: list[str], span: Span) -> list[str]:
    """``port/proto`` for every port of every word, sorted, each once. Raises PlanError."""
    found: set[tuple[int, str]] = set()
    for word in words:
        spec, slash, protocol = word.partition("/")
        protocol = protocol.lower() if slash else "tcp"
        if protocol not in _PROTOCOLS:
            raise PlanError(f"invalid protocol in EXPOSE {word!r}", span, "it is one of tcp, udp and sctp")
        container = spec.rpartition(":")[2]  # a host address or port is dropped, as BuildKit does
        first, dash, last = container.partition("-")
        low, high = _port(first, word, span), _port(last if dash else first, word, span)
        if high < low:
            raise PlanError(f"invalid range in EXPOSE {word!r}: it runs backwards", span)
        found |= {(number, protocol) for number in range(low, high + 1)}
    return sorted(f"{number}/{protocol}" for number, protocol in found)


def _port(text: str, word: str, span: Span) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise PlanError(f"invalid port in EXPOSE {word!r}", span, "ports are numbers from 0 to 65535")
    return int(text)
