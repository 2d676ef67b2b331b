"""Network interfaces and packet filters of a net namespace: pyroute2's messages over plain sockets.

pyroute2's own sockets use asyncio: importing them takes four times as long as importing the messages, and
each request takes a millisecond more. Here one request is sent at a time, and answered at once (netlink(7),
rtnetlink(7), linux/netfilter/nf_tables.h).
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

# pyroute2 has no types: its messages are dicts with fields, and attributes by name.
Message = Any
Expression = dict[str, Any]  # of a rule
Rule = list[Expression]

_ROUTE, _NETFILTER = 0, 12  # NETLINK_ROUTE, NETLINK_NETFILTER
_REQUEST, _ACK, _DUMP_CHANGED, _EXCLUSIVE, _DUMP, _CREATE, _APPEND = 1, 4, 0x10, 0x200, 0x300, 0x400, 0x800
_ERROR, _DONE = 2, 3
_HEADER = 16
_ANSWER = 1 << 18  # bytes that are read at once
_TRIES = 10
_NEWLINK, _GETLINK, _NEWADDR, _GETADDR, _NEWROUTE, _GETROUTE = 16, 18, 20, 22, 24, 26
_UP = 1  # IFF_UP
_BATCH_BEGIN, _BATCH_END, _NFTABLES = 16, 17, 10
_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _GETCHAIN, _NEWRULE, _GETRULE, _DELRULE = 0, 1, 2, 3, 4, 6, 7, 8
INET, IPV4, IPV6 = 1, 2, 10  # nfgen_family: NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6
_NO_DAD = 2  # IFA_F_NODAD: nobody else can have the address
_MAIN, _STATIC, _UNICAST = 254, 4, 1  # RT_TABLE_MAIN, RTPROT_STATIC, RTN_UNICAST
_HOOKS = {"input": 1, "forward": 2, "postrouting": 4}


def load() -> None:
    """Import the modules of pyroute2 that are used, without those that it would import with them.

    An error here comes again, and is reported, with the first request.
    """
    found = importlib.util.find_spec("pyroute2")
    if found is None or found.submodule_search_locations is None:
        return
    bare = sys.modules["pyroute2"] = types.ModuleType("pyroute2")  # its face imports all of it
    bare.__path__ = list(found.submodule_search_locations)
    sockets: Any = types.ModuleType("pyroute2.netlink.nlsocket")
    sockets.NetlinkSocket = sockets.AsyncNetlinkSocket = object
    sys.modules[sockets.__name__] = sockets
    try:
        import pyroute2.netlink.nfnetlink.nftsocket
        import pyroute2.netlink.rtnl.ifaddrmsg
        import pyroute2.netlink.rtnl.ifinfmsg
        import pyroute2.netlink.rtnl.rtmsg  # noqa: F401
    except Exception:  # another version, whose parts need more
        for name in [name for name in sys.modules if name.partition(".")[0] == "pyroute2"]:
            del sys.modules[name]


class _Socket:
    """A netlink socket. A context manager."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def _do(self, *messages: Message) -> None:
        """Send *messages* at once, and wait for the acknowledgements. Raises OSError."""
        data, waiting = b"", set()
        for message in messages:
            data += self._encoded(message)
            if message["header"]["flags"] & _ACK:
                waiting.add(self._sequence)
        self._socket.send(data)
        while waiting:
            for kind, _flags, sequence, body in self._answers():
                if kind != _ERROR or sequence not in waiting:
                    continue
                waiting.remove(sequence)
                _check(body)

    def _dump(self, message: Message) -> list[Message]:
        """Return all answers to *message*. It is sent again if something changed meanwhile."""
        message["header"]["flags"] = _REQUEST | _DUMP
        out: list[Message] = []
        for _ in range(_TRIES):
            out = []
            self._socket.send(self._encoded(message))
            if not self._collect(type(message), out):
                break
        return out

    def _collect(self, kind_of_message: Message, out: list[Message]) -> bool:
        """Read the answer to a dump into *out*; True if something changed meanwhile. Raises OSError."""
        changed = False
        while True:
            for kind, flags, sequence, body in self._answers():
                if sequence != self._sequence:
                    continue
                changed |= bool(flags & _DUMP_CHANGED)
                if kind == _DONE:
                    return changed
                if kind == _ERROR:
                    _check(body)
                item = kind_of_message(body)
                item.decode()
                out.append(item)

    def _encoded(self, message: Message) -> bytes:
        self._sequence += 1
        message["header"]["sequence_number"] = self._sequence
        message.reset()
        message.encode()
        return bytes(message.data)

    def _answers(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield the messages of one read: kind, flags, sequence number, and the whole message."""
        data = self._socket.recv(_ANSWER)
        while len(data) >= _HEADER:
            size = int.from_bytes(data[:4], sys.byteorder)
            kind, flags = (int.from_bytes(data[at : at + 2], sys.byteorder) for at in (4, 6))
            yield kind, flags, int.from_bytes(data[8:12], sys.byteorder), data[:size]
            data = data[(size + 3) & ~3 :]


def _check(answer: bytes) -> None:
    """Raise OSError unless the error code of an answer is 0."""
    code = -int.from_bytes(answer[_HEADER : _HEADER + 4], sys.byteorder, signed=True)
    if code:
        raise OSError(code, os.strerror(code))


class Links(_Socket):
    """The interfaces, addresses and routes of the net namespace it is made in."""

    def __init__(self) -> None:
        super().__init__(_ROUTE)

    def all(self) -> list[Message]:
        """Return every interface, as pyroute2's ifinfmsg."""
        return self._dump(_link(_GETLINK))

    def addresses(self) -> list[str]:
        """Return the IPv4 addresses."""
        from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

        message: Message = ifaddrmsg()
        message["family"] = socket.AF_INET
        message["header"]["type"] = _GETADDR
        found = (item.get_attr("IFA_LOCAL") for item in self._dump(message))
        return [str(address) for address in found if address]

    def routes(self, family: int = socket.AF_INET) -> list[Message]:
        """Return the routes of a family, as pyroute2's rtmsg."""
        from pyroute2.netlink.rtnl.rtmsg import rtmsg

        message: Message = rtmsg()
        message["family"] = family
        message["header"]["type"] = _GETROUTE
        return self._dump(message)

    def add(self, name: str, kind: str, mtu: int = 0, peer: dict[str, object] | None = None) -> None:
        """Make the interface *name*, up, for packets of *mtu* bytes, if given.

        *peer*, the other end of a pair, has attributes like IFLA_IFNAME.
        """
        info: list[tuple[str, object]] = [("IFLA_INFO_KIND", kind)]
        if peer is not None:
            end = {"attrs": list(peer.items())}
            info.append(("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", end)]}))
        attributes: list[tuple[str, object]] = [("IFLA_IFNAME", name), ("IFLA_LINKINFO", {"attrs": info})]
        if mtu:
            attributes.append(("IFLA_MTU", mtu))
        self._do(_link(_NEWLINK, _CREATE | _EXCLUSIVE, attributes, flags=_UP, change=_UP))

    def add_address(self, index: int, address: str, peer: str) -> None:
        """Give the interface *index* an IPv4 address, at whose other end is *peer* alone."""
        from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

        message: Message = ifaddrmsg()
        message["family"], message["prefixlen"], message["index"] = socket.AF_INET, 32, index
        message["attrs"] = [("IFA_LOCAL", address), ("IFA_ADDRESS", peer)]
        message["header"].update({"type": _NEWADDR, "flags": _REQUEST | _ACK | _CREATE | _EXCLUSIVE})
        self._do(message)

    def add_address6(self, index: int, address: str, prefix: int) -> None:
        """Give the interface *index* an IPv6 address, which counts at once."""
        from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

        message: Message = ifaddrmsg()
        message["family"], message["prefixlen"], message["index"] = socket.AF_INET6, prefix, index
        message["flags"] = _NO_DAD
        message["attrs"] = [("IFA_LOCAL", address), ("IFA_ADDRESS", address)]
        message["header"].update({"type": _NEWADDR, "flags": _REQUEST | _ACK | _CREATE | _EXCLUSIVE})
        self._do(message)

    def add_way_out6(self, index: int, gateway: str) -> None:
        """Make *gateway*, on the interface *index*, the way to all other IPv6 addresses."""
        from pyroute2.netlink.rtnl.rtmsg import rtmsg

        message: Message = rtmsg()
        fields = {"family": socket.AF_INET6, "table": _MAIN, "proto": _STATIC, "type": _UNICAST}
        for name, value in fields.items():
            message[name] = value
        message["attrs"] = [("RTA_GATEWAY", gateway), ("RTA_OIF", index)]
        message["header"].update({"type": _NEWROUTE, "flags": _REQUEST | _ACK | _CREATE | _EXCLUSIVE})
        self._do(message)

    def raise_(self, index: int) -> None:
        """Take the interface *index* up."""
        self._do(_link(_NEWLINK, index=index, flags=_UP, change=_UP))


def _link(
    kind: int, how: int = 0, attributes: list[tuple[str, object]] | None = None, **fields: int
) -> Message:
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    message: Message = ifinfmsg()
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attributes or []
    message["header"].update({"type": kind, "flags": _REQUEST | _ACK | how})
    return message


class Filters(_Socket):
    """The tables of nftables of one family. What is added waits for ``commit``, which does all or nothing."""

    def __init__(self, family: int = IPV4) -> None:
        super().__init__(_NETFILTER)
        self._family = family
        self._waiting: list[Message] = []

    def tables(self) -> set[str]:
        """Return the names of the tables."""
        return {
            str(item.get_attr("NFTA_TABLE_NAME")) for item in self._dump(self._message("table", _GETTABLE))
        }

    def chains(self) -> list[Message]:
        """Return every chain, as pyroute2's nft_chain_msg."""
        return [
            item
            for item in self._dump(self._message("chain", _GETCHAIN))
            if item["nfgen_family"] == self._family
        ]

    def rules(self, table: str, chain: str) -> list[Message]:
        """Return the rules of a chain, as pyroute2's nft_rule_msg."""
        return self._dump(self._message("rule", _GETRULE, TABLE=table, CHAIN=chain))

    def add_table(self, name: str) -> None:
        self._waiting.append(self._message("table", _NEWTABLE, _CREATE, NAME=name))

    def remove_table(self, name: str) -> None:
        self._waiting.append(self._message("table", _DELTABLE, NAME=name))

    def add_chain(self, table: str, name: str, kind: str, priority: int, policy: int) -> None:
        """Add a base chain of *kind*, at the hook that it is named for."""
        hook = {"attrs": [("NFTA_HOOK_HOOKNUM", _HOOKS[name]), ("NFTA_HOOK_PRIORITY", priority)]}
        self._waiting.append(
            self._message(
                "chain", _NEWCHAIN, _CREATE, TABLE=table, NAME=name, HOOK=hook, POLICY=policy, TYPE=kind
            )
        )

    def add_rule(self, table: str, chain: str, rule: Rule, comment: str = "") -> None:
        """Add a rule at the end of a chain."""
        more = {"USERDATA": comment} if comment else {}
        self._waiting.append(
            self._message(
                "rule", _NEWRULE, _CREATE | _APPEND, TABLE=table, CHAIN=chain, EXPRESSIONS=rule, **more
            )
        )

    def remove_rule(self, table: str, chain: str, handle: int) -> None:
        self._waiting.append(self._message("rule", _DELRULE, TABLE=table, CHAIN=chain, HANDLE=handle))

    def commit(self) -> None:
        """Send what was added, as one transaction. Raises OSError; then nothing was changed."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self._do(_batch(_BATCH_BEGIN), *waiting, _batch(_BATCH_END))

    def _message(self, what: str, kind: int, how: int = 0, **attributes: object) -> Message:
        from pyroute2.netlink.nfnetlink import nftsocket

        message: Message = getattr(nftsocket, f"nft_{what}_msg")()
        message["nfgen_family"] = self._family
        message["attrs"] = [(f"NFTA_{what.upper()}_{name}", value) for name, value in attributes.items()]
        message["header"].update({"type": _NFTABLES << 8 | kind, "flags": _REQUEST | _ACK | how})
        return message


def _batch(kind: int) -> Message:
    """Return the message that begins or ends a transaction."""
    from pyroute2.netlink.nfnetlink import nfgen_msg

    message: Message = nfgen_msg()
    message["res_id"] = _NFTABLES
    message["header"].update({"type": kind, "flags": _REQUEST})
    return message


# -- expressions of rules ---------------------------------------------------------------------


def expression(name: str, **fields: object) -> Expression:
    """Return one expression of a rule."""
    data = [(f"NFTA_{name.upper()}_{key.upper()}", value) for key, value in fields.items()]
    return {"attrs": [("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", {"attrs": data})]}


def verdict(code: int) -> Expression:
    """Return the end of a rule: accept or drop."""
    data = {"attrs": [("NFTA_DATA_VERDICT", {"attrs": [("NFTA_VERDICT_CODE", code)]})]}
    return expression("immediate", dreg=0, data=data)
