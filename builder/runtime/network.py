"""The default network of steps: a bridge, a veth pair per step, NAT to the outside.

pyroute2 takes 100 ms to import, so it lives in a process of its own that is forked early,
imports while the builder plans, and then wires each step in a few milliseconds. One process
serves one build: it owns one bridge, one subnet and one nftables table, and removes them
when the builder closes the socket or dies.

Names are numbered. A number belongs to whoever holds the flock on its file under
/run/pybuild, so two builds never share one, and what a killed build left behind is removed
by the next that comes. Making and removing a network holds one more lock, so that no build
lists the interfaces while another takes one away.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import signal
import socket
import sys
import types
from typing import TYPE_CHECKING, Any

from builder.runtime import nameservers
from builder.runtime import syscalls as sc
from builder.runtime.uplink import leave_host_network, programs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_LOCKS = "/run/pybuild"
_SLOTS = 64
_ADDRESSES = 1 << 8  # per slot: of 10.213.0.0/16 a /24 each
_PREFIX, _MASK = 24, "255.255.255.0"
_POOL = (10 << 24) | (213 << 16)
_INET, _IPV4 = 1, 2  # nfgen_family NFPROTO_INET and NFPROTO_IPV4
_FORWARD = 2  # NF_INET_FORWARD
# Where clouds tell their machines secrets; from a name server there steps get names, and nothing else.
_METADATA = (b"\xa9\xfe", socket.inet_aton("168.63.129.16"), socket.inet_aton("100.100.100.200"))
_RETRIES = 10
_DROP, _ACCEPT = 0, 1
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_SOURCE, _DESTINATION = 12, 16  # offsets in an IPv4 header
_META_IIFNAME, _META_OIFNAME = 6, 7
_CT_STATE, _CT_INVALID, _CT_ESTABLISHED, _CT_RELATED = 0, 1, 2, 4
_EQUAL, _NOT_EQUAL = 0, 1
_SRCNAT = 100  # priority of source NAT in postrouting


class NetworkError(Exception):
    """The network could not be made; the message says which part and why."""


def start(scratch: str = "") -> socket.socket:
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


def _serve(requests: socket.socket, scratch: str) -> None:
    """Answer wiring requests until the builder hangs up. Ends the process."""
    bridge: _Bridge | None = None
    carrier, blocked, note, left = 0, list[bytes](), "", False
    _import_pyroute2()  # while the builder is still planning
    with contextlib.suppress(OSError):  # the build was ended while an answer was on its way
        while True:
            message, fds, _flags, _address = socket.recv_fds(requests, 1, 1)
            if not message:
                break
            try:
                if bridge is None:
                    if scratch and not left:
                        left, blocked = True, _own_addresses()  # who carries us would reach those
                        carrier, note = leave_host_network(scratch, programs())
                    bridge = _Bridge(scratch or _LOCKS, bool(scratch), blocked)
                answer = f"A{bridge.connect(fds[0])}\n{note}".encode()
                note = ""
            except Exception as error:  # whatever pyroute2 raises must reach the user as words
                answer = b"E" + f"setting up the step's network: {error}".encode()[:4000]
            for fd in fds:
                os.close(fd)
            requests.send(answer)
    if carrier:  # all of it goes with us
        os.kill(carrier, signal.SIGKILL)
    elif bridge is not None:
        bridge.remove()
    os._exit(0)


def _import_pyroute2() -> None:
    """Import what is used of pyroute2, without its face: that imports half as much again (30 ms).

    What goes wrong here goes wrong once more, and is reported, when a step needs the network.
    """
    found = importlib.util.find_spec("pyroute2")
    if found is None or found.submodule_search_locations is None:
        return
    bare = sys.modules["pyroute2"] = types.ModuleType("pyroute2")
    bare.__path__ = list(found.submodule_search_locations)
    try:
        import pyroute2.iproute
        import pyroute2.nftables.expressions
        import pyroute2.nftables.main  # noqa: F401
    except Exception:  # another version, whose parts need their face
        for name in [name for name in sys.modules if name.partition(".")[0] == "pyroute2"]:
            del sys.modules[name]


class _Bridge:
    """One numbered bridge with its subnet and NAT table."""

    def __init__(self, locks: str, alone: bool, blocked: list[bytes]) -> None:
        """*alone*: the net namespace is ours, no other build and nothing of the host is in it.

        *blocked* are addresses that steps do not reach.
        """
        from pyroute2.iproute import IPRoute

        self._locks = locks
        self._alone = alone
        self._blocked = blocked
        self._route: Any = IPRoute()
        self._next = 0
        with _alone(self._locks):
            self._sweep()
            self._slot, self._lock = self._take_slot()
            self.name = f"pybuild{self._slot}"
            try:
                self._route.link("add", ifname=self.name, kind="bridge")
                self._index = self._bridges()[self.name]
                _disable_ipv6(self.name, alone)
                self._route.link("set", index=self._index, state="up")
                self._route.addr("add", index=self._index, address=self._address(1), prefixlen=_PREFIX)
                self._add_rules()
                self._pass_filters()
                _enable_forwarding()
            except Exception:
                self._clear(self.name)
                raise

    def _address(self, host: int) -> str:
        return socket.inet_ntoa((_POOL + self._slot * _ADDRESSES + host).to_bytes(4, "big"))

    def _take_slot(self) -> tuple[int, int]:
        """The first free number whose subnet no route of this host uses, and its lock."""
        used, names = list(self._routed()), self._bridges()
        for slot in range(_SLOTS):
            if f"pybuild{slot}" in names:
                continue  # of a build that sees other locks than we do
            base = _POOL + slot * _ADDRESSES
            if any(low < base + _ADDRESSES and base <= high for low, high in used):
                continue
            lock = _lock_slot(self._locks, slot)
            if lock is not None:
                return slot, lock
        raise NetworkError(f"all {_SLOTS} build networks of this host are taken")

    def _bridges(self) -> dict[str, int]:
        """The bridges of builds, by name."""
        links = ((str(link.get_attr("IFLA_IFNAME")), link["index"]) for link in _dump(self._route.get_links))
        return {name: index for name, index in links if _slot_of(name) is not None}

    def _routed(self) -> Iterator[tuple[int, int]]:
        """Ranges of the routes of other interfaces that lie inside our pool."""
        ours = set(self._bridges().values())
        for route in _dump(lambda: self._route.get_routes(family=socket.AF_INET)):
            target, length = route.get_attr("RTA_DST"), route["dst_len"]
            if target and length >= 16 and route.get_attr("RTA_OIF") not in ours:
                low = int.from_bytes(socket.inet_aton(target), "big")
                yield low, low + (1 << (32 - length)) - 1

    def _sweep(self) -> None:
        """Remove what killed builds left: bridges that nobody is connected to, and tables, if unlocked."""
        links = _dump(self._route.get_links)
        used = {link.get_attr("IFLA_MASTER") for link in links}
        names = {str(link.get_attr("IFLA_IFNAME")): link["index"] for link in links}
        with _nftables(_IPV4) as nft:
            tables = {str(table.get_attr("NFTA_TABLE_NAME")) for table in _dump(nft.get_tables)}
        for name in sorted({*names, *tables}):
            if (slot := _slot_of(name)) is None or names.get(name) in used:
                continue
            lock = _lock_slot(self._locks, slot)
            if lock is not None:
                self._clear(name)
                os.close(lock)

    def _clear(self, name: str) -> None:
        """Remove the rules, the table and the bridge *name*, where they are."""
        for family, table, chain in _closed_filters():
            with _nftables(family) as nft:
                for rule in _rules(nft, table, chain):
                    if rule.get_attr("NFTA_RULE_USERDATA") == name:
                        handle = rule.get_attr("NFTA_RULE_HANDLE")
                        with contextlib.suppress(Exception):  # its owner was faster
                            nft.rule("del", table=table, chain=chain, handle=handle)
        with _nftables(_IPV4) as nft:
            if any(table.get_attr("NFTA_TABLE_NAME") == name for table in _dump(nft.get_tables)):
                nft.table("del", name=name)
        if name in (bridges := self._bridges()):
            self._route.link("del", index=bridges[name])

    def _pass_filters(self) -> None:
        """Have filters that drop what they do not know, as docker's and ufw's do, let our packets pass.

        What they say otherwise comes first; and what may come in is up to our own rules.
        """
        from pyroute2.nftables.expressions import verdict

        for family, table, chain in _closed_filters():
            with _nftables(family) as nft:
                for side in (_arrives_from(self.name), _leaves_to(self.name)):
                    expressions = [side, verdict(_ACCEPT)]
                    nft.rule("add", table=table, chain=chain, expressions=expressions, userdata=self.name)

    def _add_rules(self) -> None:
        """NAT to the outside; to the host itself only DNS, to other builds nothing."""
        with _nftables(_IPV4) as nft:
            self._fill_table(nft)

    def _fill_table(self, nft: Any) -> None:
        from pyroute2.nftables.expressions import masq, verdict

        def chain(name: str, kind: str, priority: int) -> None:
            nft.chain(
                "add", table=self.name, name=name, hook=name, type=kind, policy=_ACCEPT, priority=priority
            )

        def rule(name: str, *expressions: Any) -> None:
            nft.rule("add", table=self.name, chain=name, expressions=expressions)

        ours, pool = (_POOL + self._slot * _ADDRESSES).to_bytes(4, "big"), _POOL.to_bytes(4, "big")
        nft.table("add", name=self.name)
        chain("postrouting", "nat", _SRCNAT)
        rule("postrouting", _bytes_are(_NETWORK_HEADER, _SOURCE, ours[:3]), masq())
        chain("forward", "filter", 0)
        # No step sends in the name of somebody else.
        rule(
            "forward",
            _arrives_from(self.name),
            _bytes_are(_NETWORK_HEADER, _SOURCE, ours[:3], _NOT_EQUAL),
            verdict(_DROP),
        )
        for server in map(socket.inet_aton, nameservers.reachable(nameservers.resolv_conf())):
            if server.startswith(_METADATA):
                told = _bytes_are(_NETWORK_HEADER, _DESTINATION, server)
                rule("forward", _arrives_from(self.name), told, _to_port(53), verdict(_ACCEPT))
        for address in (*_METADATA, *self._blocked):
            blocked = _bytes_are(_NETWORK_HEADER, _DESTINATION, address)
            rule("forward", _arrives_from(self.name), blocked, verdict(_DROP))
        rule(
            "forward",
            _arrives_from(self.name),
            _bytes_are(_NETWORK_HEADER, _DESTINATION, pool[:2]),
            verdict(_DROP),
        )
        rule("forward", _leaves_to(self.name), _is_new(), verdict(_DROP))
        chain("input", "filter", 0)
        if self._alone:
            # pasta sends segments without ACK, which NAT does not take back: we would reset the connection.
            rule("input", _is_invalid(), verdict(_DROP))
        rule("input", _arrives_from(self.name), _to_port(53), verdict(_ACCEPT))
        rule("input", _arrives_from(self.name), verdict(_DROP))

    def connect(self, namespace: int) -> str:
        """A veth pair from the bridge into *namespace*; the address, mask and gateway to give to its end.

        The container does so itself: pyroute2 takes 5 ms for what are five calls there (init.py).
        """
        number = self._next
        self._next += 1
        address = self._address(2 + number % (_ADDRESSES - 3))
        host_end = f"pyb{self._slot}v{number % 100000}"
        peer = {"ifname": "eth0", "net_ns_fd": namespace}
        self._route.link("add", ifname=host_end, kind="veth", master=self._index, state="up", peer=peer)
        return f"{address} {_MASK} {self._address(1)}"

    def remove(self) -> None:
        with contextlib.suppress(Exception), _alone(self._locks):  # else the next build clears it
            self._clear(self.name)
        self._route.close()
        os.close(self._lock)


def try_bridge(alone: bool) -> None:
    """Make a bridge, a pair of interfaces and a rule in the net namespace we are in. Raises what fails.

    *alone* is as for a build's network.
    """
    from pyroute2.iproute import IPRoute
    from pyroute2.nftables.expressions import masq

    with IPRoute() as route:
        route.link("add", ifname="pybuild", kind="bridge")
        route.link("add", ifname="pyb0", kind="veth", peer={"ifname": "pyb1"})
    _disable_ipv6("pybuild", alone)
    with _nftables(_IPV4) as nft:
        nft.table("add", name="pybuild")
        hook = {"hook": "postrouting", "type": "nat", "policy": _ACCEPT, "priority": _SRCNAT}
        nft.chain("add", table="pybuild", name="postrouting", **hook)
        nft.rule("add", table="pybuild", chain="postrouting", expressions=[masq()])


@contextlib.contextmanager
def _nftables(family: int) -> Iterator[Any]:
    from pyroute2.nftables.main import NFTables

    nft: Any = NFTables(nfgen_family=family)
    try:
        yield nft
    finally:
        nft.close()


def _closed_filters() -> Iterator[tuple[int, str, str]]:
    """The chains that all forwarded packets pass and that drop what they do not know: family, table, name."""
    for family in (_INET, _IPV4):
        with _nftables(family) as nft:
            chains = _dump(nft.get_chains)
        for chain in chains:
            hook = chain.get_attr("NFTA_CHAIN_HOOK")
            if hook is None or hook.get_attr("NFTA_HOOK_HOOKNUM") != _FORWARD:
                continue
            if chain["nfgen_family"] == family and chain.get_attr("NFTA_CHAIN_POLICY") == _DROP:
                yield family, chain.get_attr("NFTA_CHAIN_TABLE"), chain.get_attr("NFTA_CHAIN_NAME")


def _rules(nft: Any, table: str, chain: str) -> list[Any]:
    """The rules of one chain."""
    from pyroute2.netlink.nfnetlink.nftsocket import NFT_MSG_GETRULE, nft_rule_msg

    asked = nft_rule_msg()
    asked["attrs"] = [("NFTA_RULE_TABLE", table), ("NFTA_RULE_CHAIN", chain)]
    return _dump(lambda: nft.request_get(asked, NFT_MSG_GETRULE))


# -- nftables expressions (linux/netfilter/nf_tables.h) ---------------------------------------
#
# pyroute2 has one for addresses, but its masks are right for whole bytes only.


def _bytes_are(header: int, offset: int, value: bytes, how: int = _EQUAL) -> list[Any]:
    """The packet has *value* at *offset* of a header."""
    from pyroute2.nftables.expressions import genex

    payload = {"dreg": 1, "base": header, "offset": offset, "len": len(value)}
    return [genex("payload", payload), _compare(value, how)]


def _to_port(port: int) -> list[Any]:
    return _bytes_are(_TRANSPORT_HEADER, 2, port.to_bytes(2, "big"))


def _arrives_from(interface: str) -> list[Any]:
    return _meta(_META_IIFNAME, interface)


def _leaves_to(interface: str) -> list[Any]:
    return _meta(_META_OIFNAME, interface)


def _meta(key: int, interface: str) -> list[Any]:
    from pyroute2.nftables.expressions import genex

    return [genex("meta", {"key": key, "dreg": 1}), _compare(interface.encode().ljust(16, b"\0"))]


def _is_new() -> list[Any]:
    """The packet belongs to no connection that was begun by a step."""
    return _state(_CT_ESTABLISHED | _CT_RELATED, _EQUAL)


def _is_invalid() -> list[Any]:
    """The packet fits no connection."""
    return _state(_CT_INVALID, _NOT_EQUAL)


def _state(bits: int, how: int) -> list[Any]:
    """Which of some states of its connection the packet has, compared with none."""
    from pyroute2.nftables.expressions import genex

    mask, nothing = bits.to_bytes(4, sys.byteorder), bytes(4)
    bitwise = {"sreg": 1, "dreg": 1, "len": 4, "mask": _data(mask), "xor": _data(nothing)}
    return [genex("ct", {"key": _CT_STATE, "dreg": 1}), genex("bitwise", bitwise), _compare(nothing, how)]


def _compare(value: bytes, how: int = _EQUAL) -> Any:
    from pyroute2.nftables.expressions import genex

    return genex("cmp", {"sreg": 1, "op": how, "data": _data(value)})


def _data(value: bytes) -> Any:
    return {"attrs": [("NFTA_DATA_VALUE", value)]}


def _own_addresses() -> list[bytes]:
    """The IPv4 addresses of this net namespace."""
    from pyroute2.iproute import IPRoute

    with IPRoute() as route:
        found = [item.get_attr("IFA_LOCAL") for item in _dump(lambda: route.get_addr(family=socket.AF_INET))]
    return sorted({socket.inet_aton(address) for address in found if address})


def _slot_of(name: str) -> int | None:
    """The number in the name of a build's bridge."""
    number = name.removeprefix("pybuild")
    return int(number) if number != name and number.isdigit() else None


def _dump(request: Callable[[], Iterable[Any]]) -> list[Any]:
    """A whole answer of the kernel; it is asked again when something changed meanwhile."""
    from pyroute2.netlink.exceptions import NetlinkDumpInterrupted

    for _ in range(_RETRIES):
        with contextlib.suppress(NetlinkDumpInterrupted):
            return list(request())
    return list(request())


@contextlib.contextmanager
def _alone(locks: str) -> Iterator[None]:
    """Hold the lock under which networks are made and removed."""
    fd = _open_lock(locks, "networks")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


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


def _enable_forwarding() -> None:
    path = "/proc/sys/net/ipv4/ip_forward"
    with open(path, encoding="ascii") as file:
        if file.read().strip() == "1":
            return
    with open(path, "w", encoding="ascii") as file:
        file.write("1")
