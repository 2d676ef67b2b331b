"""Landlock domains of steps without namespaces."""

import contextlib
import os

from builder.runtime.container.devices import DEVICES
from cache.kernel import (
    landlock_allow,
    landlock_restrict,
    landlock_ruleset,
    landlock_scopes,
    landlock_version,
)

# linux/landlock.h: access rights by the Landlock ABI version that added them, from 2 on.
_ACCESSES = {2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_WRITE, _READ = 1 << 1, 1 << 2 | 1 << 3  # to write a file; to read one, and to list a directory
_USE = _READ | _WRITE | 1 << 15  # and ioctl of a device
_LIST = 1 << 3
_DEVICES = (*(f"/dev/{name.decode()}" for name in DEVICES if name != b"tty"), "/dev/ptmx")
_NETWORK_VERSION, _SCOPES_VERSION = 4, 6
_TCP = 3  # bind and connect
_SCOPES = 3  # abstract sockets and signals


def restrict(root: int, network: str) -> bool:
    """Restrict this process, and what it starts, to the directory *root*; True if the kernel can.

    Signals and abstract sockets are restricted to these processes too, from Linux 6.12 on. With the *network*
    "none" there is no TCP, from Linux 6.7 on. Raises OSError.
    """
    version, handled = landlock_version(), _handled()
    if not handled:
        return False
    tcp = _TCP if network == "none" and version >= _NETWORK_VERSION else 0
    ruleset = landlock_ruleset(handled, tcp, _SCOPES if has_scopes() else 0)
    try:
        landlock_allow(ruleset, handled, root)
        landlock_restrict(ruleset)
    finally:
        os.close(ruleset)
    return True


def restrict_inside() -> None:
    """Enter a domain inside that of ``restrict``: from there nothing outside can be signalled or traced.

    Raises OSError.
    """
    if has_scopes():
        landlock_scopes(_SCOPES)


def has_scopes() -> bool:
    """Return whether the kernel supports Landlock scopes."""
    return landlock_version() >= _SCOPES_VERSION


def restrict_supervisor(session: str) -> None:
    """Restrict this process to the directory *session*, /proc, /sys and some of /dev, if the kernel can.

    So a step cannot trick it into opening other files. The step's own domain has to be inside this one,
    otherwise its memory could not be read; so this one is entered before the root is known. Raises OSError.
    """
    handled = _handled()
    if not handled:
        return
    ruleset = landlock_ruleset(handled)
    try:
        directories = {session: handled, "/proc": _READ | _WRITE, "/sys": _READ, "/dev/pts": handled & _USE}
        devices = dict.fromkeys(_DEVICES, handled & _USE & ~_LIST)
        for path, rights in (directories | devices).items():
            with contextlib.suppress(FileNotFoundError):
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
                try:
                    landlock_allow(ruleset, rights, place)
                finally:
                    os.close(place)
        landlock_restrict(ruleset)
    finally:
        os.close(ruleset)


def _handled() -> int:
    """Return all accesses to files that this kernel can refuse, 0 if its Landlock is too old."""
    version = landlock_version()
    return max((rights for since, rights in _ACCESSES.items() if version >= since), default=0)
