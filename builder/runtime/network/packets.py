"""Conditions on packets, as the expressions of nftables rules (linux/netfilter/nf_tables.h).

pyroute2 has an expression for addresses, but its masks are right for whole bytes only.
"""

from __future__ import annotations

import sys

from builder.runtime.network.netlink import Expression, Rule, expression

_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_SOURCE, _DESTINATION = 12, 16  # offsets in an IPv4 header
_META_IIFNAME, _META_OIFNAME = 6, 7
_CT_STATE, _CT_INVALID, _CT_ESTABLISHED, _CT_RELATED = 0, 1, 2, 4
EQUAL, NOT_EQUAL = 0, 1


def _bytes_are(header: int, offset: int, value: bytes, how: int = EQUAL) -> Rule:
    """Match packets that have *value* at *offset* of a header."""
    return [expression("payload", dreg=1, base=header, offset=offset, len=len(value)), _compare(value, how)]


def source(address: bytes, how: int = EQUAL) -> Rule:
    """Match the source address, or its first bytes."""
    return _bytes_are(_NETWORK_HEADER, _SOURCE, address, how)


def destination(address: bytes) -> Rule:
    return _bytes_are(_NETWORK_HEADER, _DESTINATION, address)


def source6(address: bytes, how: int = EQUAL) -> Rule:
    """Match the IPv6 source address, or its first bytes."""
    return _bytes_are(_NETWORK_HEADER, 8, address, how)


def destination6(address: bytes) -> Rule:
    return _bytes_are(_NETWORK_HEADER, 24, address)


def is_icmp6(kind: int) -> Rule:
    """Match ICMPv6 messages of a type; extension headers before them do not matter for steps."""
    return [*_bytes_are(_NETWORK_HEADER, 6, b"\x3a"), *_bytes_are(_TRANSPORT_HEADER, 0, bytes((kind,)))]


def to_port(port: int) -> Rule:
    return _bytes_are(_TRANSPORT_HEADER, 2, port.to_bytes(2, "big"))


def arrives_from(interface: str) -> Rule:
    return _meta(_META_IIFNAME, interface)


def leaves_to(interface: str) -> Rule:
    return _meta(_META_OIFNAME, interface)


def arrives_at(interface: str) -> Rule:
    return _meta(_META_IIFNAME, interface + "\0")  # no other name that begins so


def _meta(key: int, interface: str) -> Rule:
    """Match packets whose interface has a name that begins with *interface*."""
    return [expression("meta", key=key, dreg=1), _compare(interface.encode())]


def is_new() -> Rule:
    """Match packets of no connection that a step began."""
    return _state(_CT_ESTABLISHED | _CT_RELATED, EQUAL)


def is_invalid() -> Rule:
    """Match packets that fit no connection."""
    return _state(_CT_INVALID, NOT_EQUAL)


def _state(bits: int, how: int) -> Rule:
    """Compare those of the states *bits* that the packet's connection has with none."""
    mask, nothing = bits.to_bytes(4, sys.byteorder), bytes(4)
    masked = expression("bitwise", sreg=1, dreg=1, len=4, mask=_data(mask), xor=_data(nothing))
    return [expression("ct", key=_CT_STATE, dreg=1), masked, _compare(nothing, how)]


def _compare(value: bytes, how: int = EQUAL) -> Expression:
    return expression("cmp", sreg=1, op=how, data=_data(value))


def _data(value: bytes) -> Expression:
    return {"attrs": [("NFTA_DATA_VALUE", value)]}
