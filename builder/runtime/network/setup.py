"""The default network of steps: a pair of interfaces for each step, routed, and NAT to the outside.

A step has its link for itself: nobody else hears what it says of addresses, and what it sends in the name
of another goes nowhere. Packets are as long as the way to the outside takes them.

It lives in a process of its own that is forked early, imports what it needs of pyroute2 while the
builder plans, and then wires each step in a millisecond or two. One process serves one build: it
owns one subnet and one nftables table, and removes them when the builder closes the socket or dies.

Names are numbered. A number belongs to whoever holds the flock on its file under /run/pybuild, or
where else root can write, so two builds never share one, and what a killed build left behind is
removed by the next that comes. Making and removing a network holds one more lock, so that no build
lists the interfaces while another takes one away.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import stat
import sys
from typing import TYPE_CHECKING, Any

from builder.runtime import syscalls as sc
from builder.runtime.network import ipv6, nameservers, netlink
from builder.runtime.network.netlink import Filters, expression, verdict
from builder.runtime.network.uplink import leave_host_network, programs

if TYPE_CHECKING:
    from collections.abc import Iterator

    _Chain = tuple[str, str, int, list[list[Any]]]  # name, kind, priority, rules

# Where locks are: the first place that can be written to. All builds of a machine have to see the same.
_LOCKS = ("/run/pybuild", "/dev/shm/pybuild-networks", "/var/tmp/pybuild-networks")
_SLOTS = 64
_ADDRESSES = 1 << 8  # per slot: of 10.213.0.0/16 a /24 each
_MASK = "255.255.255.0"
_GATEWAY, _FIRST, _LAST = 1, 2, 254  # the last byte of addresses in a subnet
_POOL = (10 << 24) | (213 << 16)
_FORWARD = 2  # NF_INET_FORWARD
# Where clouds tell their machines secrets; from a name server there steps get names, and nothing else.
_METADATA = (b"\xa9\xfe", socket.inet_aton("168.63.129.16"), socket.inet_aton("100.100.100.200"))
_DROP, _ACCEPT = 0, 1
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_SOURCE, _DESTINATION = 12, 16  # offsets in an IPv4 header
_META_IIFNAME, _META_OIFNAME = 6, 7
_CT_STATE, _CT_INVALID, _CT_ESTABLISHED, _CT_RELATED = 0, 1, 2, 4
_ND_WHO_HAS, _ND_HERE = 135, 136  # neighbour solicitation and advertisement of ICMPv6
_EQUAL, _NOT_EQUAL = 0, 1
_MTU, _LEAST_MTU = 1500, 576  # bytes; 576 is what every IPv4 host takes
_UNICAST, _MAIN = 1, 254  # rtnetlink(7): a type of routes, a table
_SRCNAT = 100  # priority of source NAT in postrouting


class NetworkError(Exception):
    """The network could not be made; the message says which part and why."""


def start(scratch: str | None = None) -> socket.socket:
    """Fork the wiring process; returns the socket on which it takes net namespaces.

    With *scratch*, an empty folder to mount things on, it wires them to a net namespace of its own
    instead of the host's, as one must without root.

    A message ``W`` with the descriptor of a net namespace is answered in order, ``A`` and the IPv4
    address that its eth0 is to have, the mask and the gateway, with blanks between, and on a second
    line what the user should know, or ``E`` and why not. Nothing on the host changes before the first
    one. When every copy of the socket is closed it removes what it made and ends, a moment after the
    build if need be: the kernel takes that long to take an interface down.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        try:
            (fd,) = sc.keep_only([theirs.detach()])
            os.setsid()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            _detach_output()
            _serve(socket.socket(fileno=fd), scratch)
        finally:
            os._exit(1)
    theirs.close()
    return ours


def _detach_output() -> None:
    """Let go of the terminal or pipe of the command, so that its end is not held up by us."""
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.close(null)


def _serve(requests: socket.socket, scratch: str | None) -> None:
    """Answer wiring requests until the builder hangs up. Ends the process."""
    network: _Network | None = None
    carrier, blocked, note, left = 0, list[bytes](), "", False
    netlink.load()  # while the builder is still planning
    with contextlib.suppress(OSError):  # the build was ended while an answer was on its way
        while True:
            message, fds, _flags, _address = socket.recv_fds(requests, 1, 1)
            if not message:
                break
            try:
                if network is None:
                    if scratch and not left:
                        only_ipv6 = ipv6.is_there() and not _has_way_out()
                        left, blocked = True, _own_addresses()  # who carries us would reach those
                        carrier, note = leave_host_network(scratch, programs())
                        if only_ipv6:
                            note = (
                                note
                                or "steps have IPv4, and this machine IPv6 only: they reach nothing outside"
                            )
                    network = _Network(scratch or _lock_folder(), bool(scratch), blocked)
                    note = note or network.note
                answer = f"A{network.connect(fds[0])}\n{note}".encode()
                note = ""
            except Exception as error:  # whatever pyroute2 raises must reach the user as words
                answer = b"E" + f"setting up the step's network: {error}".encode()[:4000]
            for fd in fds:
                os.close(fd)
            requests.send(answer)
    if carrier:  # all of it goes with us
        os.kill(carrier, signal.SIGKILL)
    elif network is not None:
        network.remove()
    os._exit(0)


class _Network:
    """One numbered subnet with its NAT table, and the links of steps in it."""

    def __init__(self, locks: str, alone: bool, blocked: list[bytes]) -> None:
        """*alone*: the net namespace is ours, no other build and nothing of the host is in it.

        *blocked* are addresses that steps do not reach.
        """
        self._locks = locks
        self._alone = alone
        self._blocked = blocked
        self._links = netlink.Links()
        self._next = 0
        self._mtu = _longest_packet(self._links, alone)
        self._ipv6 = not alone and ipv6.is_there()
        self._checked = set[int]()  # the links whose senders there is a rule for
        self.note = ""  # what the user should know
        with _alone(self._locks):
            self._sweep()
            self._slot, self._lock = self._take_slot()
            self.name = f"pybuild{self._slot}"
            try:
                self._add_rules()
                self._pass_filters()
                _enable_forwarding()
                if self._ipv6:
                    self._add_ipv6()
            except Exception:
                self._clear(self.name)
                raise

    def _add_ipv6(self) -> None:
        """The rules for IPv6; where that cannot be, steps do without."""
        try:
            if self._mtu < ipv6.LEAST_MTU:
                raise OSError(f"the way to the outside takes {self._mtu} bytes at once")
            with ipv6.filters() as filters:
                self._fill(filters, self._chains6())
            ipv6.forward()
        except OSError as error:
            self._ipv6 = False
            self.note = f"steps have no IPv6: {error.strerror or error}"

    @property
    def _ends(self) -> str:
        """What the names of our ends of links begin with."""
        return f"pyb{self._slot}v"

    def _address(self, host: int) -> str:
        return socket.inet_ntoa((_POOL + self._slot * _ADDRESSES + host).to_bytes(4, "big"))

    def _take_slot(self) -> tuple[int, int]:
        """The first free number whose subnet no route of this host uses, and its lock."""
        ours = self._ours()
        taken = {slot for slot, _index in ours.values()}
        with Filters() as filters:
            taken |= {slot for name in filters.tables() if (slot := _slot_of(name)) is not None}
        used = list(self._routed({index for _slot, index in ours.values()}))
        for slot in range(_SLOTS):
            if slot in taken:
                continue  # of a build that sees other locks than we do
            base = _POOL + slot * _ADDRESSES
            if any(low < base + _ADDRESSES and base <= high for low, high in used):
                continue
            lock = _lock_slot(self._locks, slot)
            if lock is not None:
                return slot, lock
        raise NetworkError(f"all {_SLOTS} build networks of this host are taken")

    def _ours(self) -> dict[str, tuple[int, int]]:
        """The links of builds by name: the number of their network, and their index."""
        links = ((str(link.get_attr("IFLA_IFNAME")), link["index"]) for link in self._links.all())
        return {name: (slot, index) for name, index in links if (slot := _slot_of(name)) is not None}

    def _routed(self, ours: set[int]) -> Iterator[tuple[int, int]]:
        """Ranges of routes that lie inside our pool, but for those of *ours*, indexes of interfaces."""
        for route in self._links.routes():
            target, length = route.get_attr("RTA_DST"), route["dst_len"]
            if target and length >= 16 and route.get_attr("RTA_OIF") not in ours:
                low = int.from_bytes(socket.inet_aton(target), "big")
                yield low, low + (1 << (32 - length)) - 1

    def _sweep(self) -> None:
        """Remove the tables that killed builds left: those to which no step is connected, if unlocked."""
        used = {slot for slot, _index in self._ours().values()}
        with Filters() as filters:
            tables = filters.tables()
        for name in sorted(tables):
            if (slot := _slot_of(name)) is None or slot in used:
                continue
            lock = _lock_slot(self._locks, slot)
            if lock is not None:
                self._clear(name)
                os.close(lock)

    def _clear(self, name: str) -> None:
        """Remove the rules and the table *name*, where they are."""
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
        """Have filters that drop what they do not know, as docker's and ufw's do, let our packets pass.

        What they say otherwise comes first; and what may come in is up to our own rules.
        """
        for family, table, chain in _closed_filters():
            with Filters(family) as filters:
                for side in (_arrives_from(self._ends), _leaves_to(self._ends)):
                    filters.add_rule(table, chain, [*side, verdict(_ACCEPT)], self.name)
                filters.commit()

    def _add_rules(self) -> None:
        """NAT to the outside; to the host itself only DNS, to other builds nothing."""
        with Filters() as filters:
            self._fill(filters, self._chains())

    def _fill(self, filters: Filters, chains: Iterator[_Chain]) -> None:
        """Make our table of chains. Raises OSError."""
        filters.add_table(self.name)
        for name, kind, priority, rules in chains:
            filters.add_chain(self.name, name, kind, priority, _ACCEPT)
            for rule in rules:
                filters.add_rule(self.name, name, rule)
        filters.commit()

    def _chains(self) -> Iterator[_Chain]:
        """Our chains: name, kind, priority, rules."""
        ours, pool = (_POOL + self._slot * _ADDRESSES).to_bytes(4, "big"), _POOL.to_bytes(4, "big")
        here, drop, accept = _arrives_from(self._ends), verdict(_DROP), verdict(_ACCEPT)
        yield "postrouting", "nat", _SRCNAT, [[*_source(ours[:3]), expression("masq")]]
        forward = [[*here, *_source(ours[:3], _NOT_EQUAL), drop]]  # no step sends in another's name
        for server in map(socket.inet_aton, nameservers.reachable(nameservers.resolv_conf())):
            if server.startswith(_METADATA):
                forward.append([*here, *_destination(server), *_to_port(53), accept])
        forward += [[*here, *_destination(address), drop] for address in (*_METADATA, *self._blocked)]
        forward += [[*here, *_destination(pool[:2]), drop], [*_leaves_to(self._ends), *_is_new(), drop]]
        yield "forward", "filter", 0, forward
        # pasta sends segments without ACK, which NAT does not take back: we would reset the connection.
        invalid = [[*_is_invalid(), drop]] if self._alone else []
        yield "input", "filter", 0, [*invalid, [*here, *_to_port(53), accept], [*here, drop]]

    def _chains6(self) -> Iterator[_Chain]:
        """Those for IPv6."""
        ours = ipv6.prefix(self._slot, 0)[: ipv6.OURS]
        here, drop, accept = _arrives_from(self._ends), verdict(_DROP), verdict(_ACCEPT)
        yield "postrouting", "nat", _SRCNAT, [[*_source6(ours), expression("masq")]]
        forward = [[*here, *_destination6(address), drop] for address in (*ipv6.METADATA, ipv6.POOL)]
        forward += [[*here, *_source6(ours, _NOT_EQUAL), drop], [*_leaves_to(self._ends), *_is_new(), drop]]
        yield "forward", "filter", 0, forward
        asked = [[*here, *_is_icmp6(kind), accept] for kind in (_ND_WHO_HAS, _ND_HERE)]
        yield "input", "filter", 0, [*asked, [*here, *_to_port(53), accept], [*here, drop]]

    def connect(self, namespace: int) -> str:
        """A pair of interfaces into *namespace*; the address, mask and gateway to give to the end there.

        The container does so itself, by five calls (init.py). Raises OSError and NetworkError.
        """
        for _ in range(_LAST - _FIRST + 1):
            host = _FIRST + self._next % (_LAST - _FIRST + 1)
            self._next += 1
            if not _is_there(f"{self._ends}{host}"):
                break
        else:
            raise NetworkError(
                f"this build has {_LAST - _FIRST + 1} steps with a network at once: no more fit"
            )
        name, address, gateway = f"{self._ends}{host}", self._address(host), self._address(_GATEWAY)
        peer: dict[str, object] = {"IFLA_IFNAME": "eth0", "IFLA_MTU": self._mtu, "IFLA_NET_NS_FD": namespace}
        self._links.add(name, "veth", self._mtu, peer)
        if not self._ipv6:
            _disable_ipv6(name, self._alone)
        _check_senders(name, self._alone)
        self._links.add_address(socket.if_nametoindex(name), gateway, address)
        if self._ipv6:
            if host not in self._checked:  # the kernel checks senders for IPv4 only
                self._checked.add(host)
                own = _source6(ipv6.prefix(self._slot, host), _NOT_EQUAL)
                with ipv6.filters() as filters:
                    filters.add_rule(self.name, "forward", [*_arrives_at(name), *own, verdict(_DROP)])
                    filters.commit()
            ipv6.connect(self._links, name, namespace, self._slot, host)
        return f"{address} {_MASK} {gateway}"

    def remove(self) -> None:
        with contextlib.suppress(Exception), _alone(self._locks):  # else the next build clears it
            self._clear(self.name)
        self._links.close()
        os.close(self._lock)


def try_network(alone: bool) -> None:
    """Make a pair of interfaces and a rule in the net namespace we are in. Raises what fails.

    *alone* is as for a build's network.
    """
    with netlink.Links() as links:
        links.add("pyb0", "veth", peer={"IFLA_IFNAME": "pyb1"})
    _disable_ipv6("pyb0", alone)
    with Filters() as filters:
        filters.add_table("pybuild")
        filters.add_chain("pybuild", "postrouting", "nat", _SRCNAT, _ACCEPT)
        filters.add_rule("pybuild", "postrouting", [expression("masq")])
        filters.commit()


def _closed_filters() -> Iterator[tuple[int, str, str]]:
    """The chains that all forwarded packets pass and that drop what they do not know: family, table, name."""
    for family in (netlink.INET, netlink.IPV4, netlink.IPV6):
        with Filters(family) as filters:
            chains = filters.chains()
        for chain in chains:
            hook = chain.get_attr("NFTA_CHAIN_HOOK")
            if hook is None or hook.get_attr("NFTA_HOOK_HOOKNUM") != _FORWARD:
                continue
            if chain.get_attr("NFTA_CHAIN_POLICY") == _DROP:
                yield family, chain.get_attr("NFTA_CHAIN_TABLE"), chain.get_attr("NFTA_CHAIN_NAME")


# -- what rules look at ----------------------------------------------------------------------
#
# pyroute2 has an expression for addresses, but its masks are right for whole bytes only.


def _bytes_are(header: int, offset: int, value: bytes, how: int = _EQUAL) -> list[Any]:
    """The packet has *value* at *offset* of a header."""
    return [expression("payload", dreg=1, base=header, offset=offset, len=len(value)), _compare(value, how)]


def _source(address: bytes, how: int = _EQUAL) -> list[Any]:
    """An address, or its first bytes."""
    return _bytes_are(_NETWORK_HEADER, _SOURCE, address, how)


def _destination(address: bytes) -> list[Any]:
    return _bytes_are(_NETWORK_HEADER, _DESTINATION, address)


def _source6(address: bytes, how: int = _EQUAL) -> list[Any]:
    """An IPv6 address, or its first bytes."""
    return _bytes_are(_NETWORK_HEADER, 8, address, how)


def _destination6(address: bytes) -> list[Any]:
    return _bytes_are(_NETWORK_HEADER, 24, address)


def _is_icmp6(kind: int) -> list[Any]:
    """A message of ICMPv6; headers before it are none of a step's that matters."""
    return [*_bytes_are(_NETWORK_HEADER, 6, b"\x3a"), *_bytes_are(_TRANSPORT_HEADER, 0, bytes((kind,)))]


def _to_port(port: int) -> list[Any]:
    return _bytes_are(_TRANSPORT_HEADER, 2, port.to_bytes(2, "big"))


def _arrives_from(interface: str) -> list[Any]:
    return _meta(_META_IIFNAME, interface)


def _leaves_to(interface: str) -> list[Any]:
    return _meta(_META_OIFNAME, interface)


def _arrives_at(interface: str) -> list[Any]:
    return _meta(_META_IIFNAME, interface + "\0")  # no other name that begins so


def _meta(key: int, interface: str) -> list[Any]:
    """The name of an interface of the packet begins with *interface*."""
    return [expression("meta", key=key, dreg=1), _compare(interface.encode())]


def _is_new() -> list[Any]:
    """The packet belongs to no connection that was begun by a step."""
    return _state(_CT_ESTABLISHED | _CT_RELATED, _EQUAL)


def _is_invalid() -> list[Any]:
    """The packet fits no connection."""
    return _state(_CT_INVALID, _NOT_EQUAL)


def _state(bits: int, how: int) -> list[Any]:
    """Which of some states of its connection the packet has, compared with none."""
    mask, nothing = bits.to_bytes(4, sys.byteorder), bytes(4)
    masked = expression("bitwise", sreg=1, dreg=1, len=4, mask=_data(mask), xor=_data(nothing))
    return [expression("ct", key=_CT_STATE, dreg=1), masked, _compare(nothing, how)]


def _compare(value: bytes, how: int = _EQUAL) -> Any:
    return expression("cmp", sreg=1, op=how, data=_data(value))


def _data(value: bytes) -> Any:
    return {"attrs": [("NFTA_DATA_VALUE", value)]}


# -- the machine ---------------------------------------------------------------------------


def _own_addresses() -> list[bytes]:
    """The IPv4 addresses of this net namespace."""
    with netlink.Links() as links:
        return sorted({socket.inet_aton(address) for address in links.addresses()})


def _slot_of(name: str) -> int | None:
    """The number in the name of a build's table, ``pybuildN``, or of a link of it, ``pybNvM``."""
    number = name.removeprefix("pybuild")
    if number == name and name.startswith("pyb"):
        number = name[3:].partition("v")[0]
    return int(number) if number != name and number.isdigit() else None


@contextlib.contextmanager
def _alone(locks: str) -> Iterator[None]:
    """Hold the lock under which networks are made and removed."""
    fd = _open_lock(locks, "networks")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _lock_folder() -> str:
    """A folder for locks that is our own. Raises NetworkError."""
    for path in _LOCKS:
        with contextlib.suppress(OSError):
            os.makedirs(path, mode=0o700, exist_ok=True)
            found = os.lstat(path)
            ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
            if ours and os.access(path, os.W_OK):
                return path
    raise NetworkError(f"there is no place for locks: none of {', '.join(_LOCKS)} can be written to")


def _open_lock(locks: str, name: str) -> int:
    os.makedirs(locks, mode=0o700, exist_ok=True)
    return os.open(f"{locks}/{name}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _lock_slot(locks: str, slot: int) -> int | None:
    """The exclusive lock of a slot as a descriptor, or None when another process has it."""
    fd = _open_lock(locks, f"net{slot}")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _disable_ipv6(interface: str, alone: bool) -> None:
    """The rules are for IPv4; by any IPv6 address of the host, its services would be in reach."""
    try:
        with open(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6", "w", encoding="ascii") as file:
            file.write("1")
    except FileNotFoundError:
        pass  # this kernel has none
    except OSError:
        if not alone:
            raise


def _is_there(interface: str) -> bool:
    try:
        return socket.if_nametoindex(interface) > 0
    except OSError:
        return False


def _check_senders(interface: str, alone: bool) -> None:
    """Have the kernel drop what arrives from an address that it would not send to by the same interface."""
    try:
        with open(f"/proc/sys/net/ipv4/conf/{interface}/rp_filter", "w", encoding="ascii") as file:
            file.write("1")
    except OSError:
        if not alone:
            raise


def _has_way_out() -> bool:
    """Whether this net namespace has one by IPv4."""
    with netlink.Links() as links:
        return bool(_ways_out(links, socket.AF_INET))


def _ways_out(links: netlink.Links, family: int) -> list[Any]:
    """The default routes."""
    return [route for route in links.routes(family) if not route["dst_len"] and route["type"] == _UNICAST]


def _longest_packet(links: netlink.Links, alone: bool) -> int:
    """The MTU of the way to the outside, in bytes: of the default route, or of what it leaves by.

    What carries a namespace of our own cuts packets up itself.
    """
    if alone:
        return _MTU
    routes = _ways_out(links, socket.AF_INET) or _ways_out(links, socket.AF_INET6)
    if not routes:
        return _MTU
    best = min(routes, key=lambda route: (route["table"] != _MAIN, route.get_attr("RTA_PRIORITY") or 0))
    metrics = best.get_attr("RTA_METRICS")
    hops = [dict(hop["attrs"]).get("RTA_OIF") or hop["oif"] for hop in best.get_attr("RTA_MULTIPATH") or []]
    leaves = {best.get_attr("RTA_OIF"), *hops}
    sizes = [link.get_attr("IFLA_MTU") for link in links.all() if link["index"] in leaves]
    sizes.append(metrics.get_attr("RTAX_MTU") if metrics is not None else None)
    return max(_LEAST_MTU, min((size for size in sizes if size), default=_MTU))


def _enable_forwarding() -> None:
    path = "/proc/sys/net/ipv4/ip_forward"
    with open(path, encoding="ascii") as file:
        if file.read().strip() == "1":
            return
    with open(path, "w", encoding="ascii") as file:
        file.write("1")
