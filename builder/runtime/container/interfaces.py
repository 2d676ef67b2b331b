"""The interfaces of a step's net namespace: lo, and eth0, which ``builder.runtime.network`` puts there."""

import fcntl
import socket
import struct

_SIOCADDRT, _SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x890B, 0x8914, 0x8916, 0x891C  # netdevice(7)
_IFF_UP, _RTF_UP, _RTF_GATEWAY = 1, 1, 2


def raise_loopback() -> None:
    """Take up the interface lo. Raises OSError."""
    with _control_socket() as control:
        _raise(control, b"lo")


def set_address(address: bytes, mask: bytes, gateway: bytes) -> None:
    """Take up eth0 with *address* and a default route through *gateway*. Raises OSError."""
    everywhere, out = _socket_address(b"0.0.0.0"), _socket_address(gateway)
    with _control_socket() as control:
        for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, mask)):
            fcntl.ioctl(control, request, struct.pack("=16s16s8x", b"eth0", _socket_address(value)))
        _raise(control, b"eth0")
        # struct rtentry of linux/route.h.
        head = struct.pack("@L16s16s16sH", 0, everywhere, out, everywhere, _RTF_UP | _RTF_GATEWAY)
        fcntl.ioctl(control, _SIOCADDRT, head.ljust(128, b"\0"))


def _control_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)


def _raise(control: socket.socket, name: bytes) -> None:
    fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("=16sH14x", name, _IFF_UP))


def _socket_address(address: bytes) -> bytes:
    """Return a struct sockaddr_in (ip(7))."""
    return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(address.decode("ascii")))
