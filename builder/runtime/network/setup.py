"""The default network of steps: a pair of interfaces for each step, routed, and NAT to the outside.

Each step has a link of its own: no other step sees its packets, and packets with another step's source
address are dropped. The MTU is that of the way to the outside.

The network is made by a process of its own. It is forked early, imports what it needs of pyroute2 while the
builder plans, and then connects each step in a millisecond or two. One process serves one build: it owns one
subnet and one nftables table, and removes them when the builder closes the socket or dies. Subnets are
numbered (``slots.py``). The next build removes what a killed build left behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import TYPE_CHECKING, NamedTuple

from builder.runtime.errors import NetworkError
from builder.runtime.helper_process import fork_helper
from builder.runtime.network import ipv6, nameservers, netlink
from builder.runtime.network.machine import (
    check_senders,
    disable_ipv6,
    enable_forwarding,
    has_interface,
    has_way_out,
    longest_packet,
    own_addresses,
)
from builder.runtime.network.netlink import Filters, Rule, expression, verdict
from builder.runtime.network.packets import (
    NOT_EQUAL,
    arrives_at,
    arrives_from,
    destination,
    destination6,
    is_icmp6,
    is_invalid,
    is_new,
    leaves_to,
    source,
    source6,
    to_port,
)
from builder.runtime.network.slots import exclusively, lock_directory, lock_slot, slot_of
from builder.runtime.network.uplink import leave_host_network, programs

if TYPE_CHECKING:
    from collections.abc import Iterator

_SLOTS = 64
_ADDRESSES = 1 << 8  # per slot: of 10.213.0.0/16 a /24 each
_MASK = "255.255.255.0"
_GATEWAY, _FIRST, _LAST = 1, 2, 254  # the last byte of addresses in a subnet
_POOL = (10 << 24) | (213 << 16)
_FORWARD = 2  # NF_INET_FORWARD
# Where clouds serve secrets to their machines. From a name server there, steps get names and nothing else.
_METADATA = (b"\xa9\xfe", socket.inet_aton("168.63.129.16"), socket.inet_aton("100.100.100.200"))
_DROP, _ACCEPT = 0, 1
_ND_WHO_HAS, _ND_HERE = 135, 136  # neighbour solicitation and advertisement of ICMPv6
_SRCNAT = 100  # priority of source NAT in postrouting
_ONLY_IPV6 = "steps have IPv4, and this machine IPv6 only: they reach nothing outside"


def start(scratch: str | None = None) -> socket.socket:
    """Fork the process that connects steps; returns the socket on which it takes net namespaces.

    With *scratch*, an empty directory to mount things on, it connects them to a net namespace of its own
    instead of the machine's, as is necessary without root.

    A message ``W`` with the descriptor of a net namespace is answered in order: ``A`` and the IPv4 address
    that its eth0 is to have, the mask and the gateway, with blanks between, and on a second line a warning
    for the user; or ``E`` and the reason of the failure. Nothing on the machine changes before the first
    message. When every copy of the socket is closed, the process removes what it made and ends. That may be a
    moment after the build, as the kernel takes time to take an interface down.
    """
    return fork_helper(lambda requests: _Helper(requests, scratch).serve()).socket


class _Helper:
    """The process that connects steps; it makes the network of the build for the first of them."""

    def __init__(self, requests: socket.socket, scratch: str | None) -> None:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _detach_output()
        self._requests = requests
        self._scratch = scratch
        self._network: _Network | None = None
        self._left = False  # for a net namespace of this process's own
        self._carrier = 0  # the pid of the program that carries its packets; 0: nothing does
        self._blocked: list[bytes] = []
        self._warning = ""

    def serve(self) -> None:
        """Answer requests until the builder hangs up."""
        netlink.load()  # while the builder is still planning
        with contextlib.suppress(OSError):  # the build was ended while an answer was on its way
            while True:
                message, fds, _flags, _address = socket.recv_fds(self._requests, 1, 1)
                if not message:
                    break
                answer = self._connect(fds[0])
                for fd in fds:
                    os.close(fd)
                self._requests.send(answer)
        if self._carrier:  # all of it goes with this process
            os.kill(self._carrier, signal.SIGKILL)
        elif self._network is not None:
            self._network.remove()

    def _connect(self, namespace: int) -> bytes:
        try:
            if self._network is None:
                self._network = self._make_network()
            answer = f"A{self._network.connect(namespace)}\n{self._warning}".encode()
            self._warning = ""
        except Exception as error:  # whatever pyroute2 raises must reach the user as words
            answer = b"E" + f"setting up the step's network: {error}".encode()[:4000]
        return answer

    def _make_network(self) -> _Network:
        if self._scratch and not self._left:
            self._left = True
            only_ipv6 = ipv6.is_there() and not has_way_out()
            self._blocked = own_addresses()  # the program that carries the namespace would reach those
            self._carrier, self._warning = leave_host_network(self._scratch, programs())
            self._warning = self._warning or (_ONLY_IPV6 if only_ipv6 else "")
        network = _Network(self._scratch or lock_directory(), bool(self._scratch), self._blocked)
        self._warning = self._warning or network.warning
        return network


def _detach_output() -> None:
    """Let go of the terminal or pipe of the command, so that this process does not keep it open."""
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.close(null)


class _Chain(NamedTuple):
    """A base chain of the build's table."""

    name: str
    kind: str
    priority: int
    rules: list[Rule]


class _Network:
    """One numbered subnet with its NAT table, and the links of steps in it."""

    def __init__(self, locks: str, own_namespace: bool, blocked: list[bytes]) -> None:
        """Make the network.

        *own_namespace*: the net namespace is this process's own, no other build and nothing of the machine is
        in it. Steps do not reach the addresses *blocked*.
        """
        self._locks = locks
        self._own_namespace = own_namespace
        self._blocked = blocked
        self._links = netlink.Links()
        self._next = 0
        self._mtu = longest_packet(self._links, own_namespace)
        self._ipv6 = not own_namespace and ipv6.is_there()
        self._checked = set[int]()  # the links whose senders there is a rule for
        self.warning = ""
        with exclusively(self._locks):
            self._sweep()
            self._slot, self._lock = self._take_slot()
            self.name = f"pybuild{self._slot}"
            try:
                self._add_rules()
                self._pass_filters()
                enable_forwarding()
                if self._ipv6:
                    self._add_ipv6()
            except Exception:
                self._clear(self.name)
                raise

    def _add_ipv6(self) -> None:
        """Add the rules for IPv6; if that fails, steps have none."""
        try:
            if self._mtu < ipv6.LEAST_MTU:
                raise OSError(f"the way to the outside takes {self._mtu} bytes at once")
            with ipv6.filters() as filters:
                self._fill(filters, self._chains6())
            ipv6.forward()
        except OSError as error:
            self._ipv6 = False
            self.warning = f"steps have no IPv6: {error.strerror or error}"

    @property
    def _ends(self) -> str:
        """Return the first letters of the names of the machine's ends of links."""
        return f"pyb{self._slot}v"

    def _address(self, host: int) -> str:
        return socket.inet_ntoa((_POOL + self._slot * _ADDRESSES + host).to_bytes(4, "big"))

    def _take_slot(self) -> tuple[int, int]:
        """Return the first free number whose subnet no route of this machine uses, and its lock."""
        ours = self._ours()
        taken = {slot for slot, _index in ours.values()}
        with Filters() as filters:
            taken |= {slot for name in filters.tables() if (slot := slot_of(name)) is not None}
        used = list(self._routed({index for _slot, index in ours.values()}))
        for slot in range(_SLOTS):
            if slot in taken:
                continue  # of a build that sees other locks than we do
            base = _POOL + slot * _ADDRESSES
            if any(low < base + _ADDRESSES and base <= high for low, high in used):
                continue
            lock = lock_slot(self._locks, slot)
            if lock is not None:
                return slot, lock
        raise NetworkError(f"all {_SLOTS} build networks of this host are taken")

    def _ours(self) -> dict[str, tuple[int, int]]:
        """Return the links of builds by name: the number of their network, and their index."""
        links = ((str(link.get_attr("IFLA_IFNAME")), link["index"]) for link in self._links.all())
        return {name: (slot, index) for name, index in links if (slot := slot_of(name)) is not None}

    def _routed(self, ours: set[int]) -> Iterator[tuple[int, int]]:
        """Return the ranges of routes inside the pool, except those by the interfaces *ours*."""
        for route in self._links.routes():
            target, length = route.get_attr("RTA_DST"), route["dst_len"]
            if target and length >= 16 and route.get_attr("RTA_OIF") not in ours:
                low = int.from_bytes(socket.inet_aton(target), "big")
                yield low, low + (1 << (32 - length)) - 1

    def _sweep(self) -> None:
        """Remove the tables that killed builds left: those that no step is connected to, if unlocked."""
        used = {slot for slot, _index in self._ours().values()}
        with Filters() as filters:
            tables = filters.tables()
        for name in sorted(tables):
            if (slot := slot_of(name)) is None or slot in used:
                continue
            lock = lock_slot(self._locks, slot)
            if lock is not None:
                self._clear(name)
                os.close(lock)

    def _clear(self, name: str) -> None:
        """Remove the rules and the table *name*, if they exist."""
        for family, table, chain in _closed_filters():
            with Filters(family) as filters:
                for rule in filters.rules(table, chain):
                    if rule.get_attr("NFTA_RULE_USERDATA") == name:
                        filters.remove_rule(table, chain, rule.get_attr("NFTA_RULE_HANDLE"))
                with contextlib.suppress(OSError):  # its owner was faster
                    filters.commit()
        for family in (netlink.IPV4, netlink.IPV6):
            with Filters(family) as filters:
                if name in filters.tables():
                    filters.remove_table(name)
                    filters.commit()

    def _pass_filters(self) -> None:
        """Have filters that drop unknown packets, as docker's and ufw's do, accept those of the build.

        Their other rules come first. Which packets may come in is decided by the build's own rules.
        """
        for family, table, chain in _closed_filters():
            with Filters(family) as filters:
                for side in (arrives_from(self._ends), leaves_to(self._ends)):
                    filters.add_rule(table, chain, [*side, verdict(_ACCEPT)], self.name)
                filters.commit()

    def _add_rules(self) -> None:
        """Add NAT to the outside. Of the machine itself, steps reach only DNS; of other builds, nothing."""
        with Filters() as filters:
            self._fill(filters, self._chains())

    def _fill(self, filters: Filters, chains: Iterator[_Chain]) -> None:
        """Make the table of the build. Raises OSError."""
        filters.add_table(self.name)
        for chain in chains:
            filters.add_chain(self.name, chain.name, chain.kind, chain.priority, _ACCEPT)
            for rule in chain.rules:
                filters.add_rule(self.name, chain.name, rule)
        filters.commit()

    def _chains(self) -> Iterator[_Chain]:
        """Return the chains for IPv4."""
        ours, pool = (_POOL + self._slot * _ADDRESSES).to_bytes(4, "big"), _POOL.to_bytes(4, "big")
        here, drop, accept = arrives_from(self._ends), verdict(_DROP), verdict(_ACCEPT)
        yield _Chain("postrouting", "nat", _SRCNAT, [[*source(ours[:3]), expression("masq")]])
        forward = [[*here, *source(ours[:3], NOT_EQUAL), drop]]  # no step sends in another's name
        for server in map(socket.inet_aton, nameservers.reachable(nameservers.resolv_conf())):
            if server.startswith(_METADATA):
                forward.append([*here, *destination(server), *to_port(53), accept])
        forward += [[*here, *destination(address), drop] for address in (*_METADATA, *self._blocked)]
        forward += [[*here, *destination(pool[:2]), drop], [*leaves_to(self._ends), *is_new(), drop]]
        yield _Chain("forward", "filter", 0, forward)
        # pasta sends segments without ACK, which NAT does not take back: we would reset the connection.
        invalid = [[*is_invalid(), drop]] if self._own_namespace else []
        yield _Chain("input", "filter", 0, [*invalid, [*here, *to_port(53), accept], [*here, drop]])

    def _chains6(self) -> Iterator[_Chain]:
        """Return the chains for IPv6."""
        ours = ipv6.prefix(self._slot, 0)[: ipv6.OURS]
        here, drop, accept = arrives_from(self._ends), verdict(_DROP), verdict(_ACCEPT)
        yield _Chain("postrouting", "nat", _SRCNAT, [[*source6(ours), expression("masq")]])
        forward = [[*here, *destination6(address), drop] for address in (*ipv6.METADATA, ipv6.POOL)]
        forward += [[*here, *source6(ours, NOT_EQUAL), drop], [*leaves_to(self._ends), *is_new(), drop]]
        yield _Chain("forward", "filter", 0, forward)
        asked = [[*here, *is_icmp6(kind), accept] for kind in (_ND_WHO_HAS, _ND_HERE)]
        yield _Chain("input", "filter", 0, [*asked, [*here, *to_port(53), accept], [*here, drop]])

    def connect(self, namespace: int) -> str:
        """Make a pair of interfaces into *namespace*; the address, mask and gateway of its end, as text.

        The container sets them itself (``container/interfaces.py``). Raises OSError and NetworkError.
        """
        for _ in range(_LAST - _FIRST + 1):
            host = _FIRST + self._next % (_LAST - _FIRST + 1)
            self._next += 1
            if not has_interface(f"{self._ends}{host}"):
                break
        else:
            raise NetworkError(
                f"this build has {_LAST - _FIRST + 1} steps with a network at once: no more fit"
            )
        name, address, gateway = f"{self._ends}{host}", self._address(host), self._address(_GATEWAY)
        peer: dict[str, object] = {"IFLA_IFNAME": "eth0", "IFLA_MTU": self._mtu, "IFLA_NET_NS_FD": namespace}
        self._links.add(name, "veth", self._mtu, peer)
        if not self._ipv6:
            disable_ipv6(name, self._own_namespace)
        check_senders(name, self._own_namespace)
        self._links.add_address(socket.if_nametoindex(name), gateway, address)
        if self._ipv6:
            if host not in self._checked:  # the kernel checks senders for IPv4 only
                self._checked.add(host)
                own = source6(ipv6.prefix(self._slot, host), NOT_EQUAL)
                with ipv6.filters() as filters:
                    filters.add_rule(self.name, "forward", [*arrives_at(name), *own, verdict(_DROP)])
                    filters.commit()
            ipv6.connect(self._links, name, namespace, self._slot, host)
        return f"{address} {_MASK} {gateway}"

    def remove(self) -> None:
        """Remove the network; if that fails, the next build does."""
        with contextlib.suppress(Exception), exclusively(self._locks):
            self._clear(self.name)
        self._links.close()
        os.close(self._lock)


def try_network(own_namespace: bool) -> None:
    """Make a pair of interfaces and a rule in the net namespace of this process. Raises what fails.

    *own_namespace* is as for a build's network.
    """
    with netlink.Links() as links:
        links.add("pyb0", "veth", peer={"IFLA_IFNAME": "pyb1"})
    disable_ipv6("pyb0", own_namespace)
    with Filters() as filters:
        filters.add_table("pybuild")
        filters.add_chain("pybuild", "postrouting", "nat", _SRCNAT, _ACCEPT)
        filters.add_rule("pybuild", "postrouting", [expression("masq")])
        filters.commit()


def _closed_filters() -> Iterator[tuple[int, str, str]]:
    """Return the chains that drop forwarded packets which no rule accepts: family, table, name."""
    for family in (netlink.INET, netlink.IPV4, netlink.IPV6):
        with Filters(family) as filters:
            chains = filters.chains()
        for chain in chains:
            hook = chain.get_attr("NFTA_CHAIN_HOOK")
            if hook is None or hook.get_attr("NFTA_HOOK_HOOKNUM") != _FORWARD:
                continue
            if chain.get_attr("NFTA_CHAIN_POLICY") == _DROP:
                yield family, chain.get_attr("NFTA_CHAIN_TABLE"), chain.get_attr("NFTA_CHAIN_NAME")
