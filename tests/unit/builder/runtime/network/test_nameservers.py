"""builder.runtime.network.nameservers: which of the machine's name servers a step can ask."""

import socket

import pytest

from builder.runtime.network.nameservers import reachable

CASES = {
    "nameserver 192.0.2.1\nnameserver 192.0.2.2\n": ["192.0.2.1", "192.0.2.2"],
    "search x\nnameserver 127.0.0.53\nnameserver ::1\n": [],
    "nameserver 2001:db8::1\nnameserver 192.0.2.1\n": ["192.0.2.1"],
    "nameserver fe80::1%eth0\nnameserver\nnameserver name\n": [],
}


@pytest.mark.parametrize("text", CASES)
def test_reachable(text: str) -> None:
    """Steps have a loopback of their own."""
    assert reachable(text) == CASES[text]


def test_reachable_by_ipv6() -> None:
    text = "nameserver 2001:db8::1\nnameserver ::1\nnameserver fe80::1%eth0\nnameserver 192.0.2.1\n"
    assert reachable(text, ipv6=True) == ["2001:db8::1", "192.0.2.1"]


def test_own_address() -> None:
    """What carries the network of who is not root keeps steps from every address of the machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.connect(("192.0.2.1", 53))  # sends nothing
        own: str = asked.getsockname()[0]
    text = f"nameserver {own}\nnameserver 192.0.2.1\n"
    assert reachable(text) == [own, "192.0.2.1"]
    assert reachable(text, outside=True) == ["192.0.2.1"]
