"""The operations that make a container, as values: what is mounted, masked, limited and dropped.

``order.py`` lists them for a container, ``frame.py``, ``namespaces.py`` and ``process.py`` apply them,
``describe.py`` prints them.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, dataclass_transform

    When = Literal["always", "machine root", "outer sysfs"]
    Options = tuple[tuple[bytes, bytes | None], ...]
else:

    def dataclass_transform(**_options):
        return lambda made: made


@dataclass_transform(frozen_default=True)
class Operation:
    """A value whose fields are the annotations of its class.

    A NamedTuple takes ten times as long to define.
    """

    __match_args__: tuple[str, ...] = ()

    if not TYPE_CHECKING:

        def __init_subclass__(cls):
            cls.__match_args__ = tuple(cls.__annotations__)

        def __init__(self, *values):
            self.__dict__.update(zip(self.__match_args__, values, strict=True))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in vars(self).items())})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = object.__hash__


# -- the frame: what is the same for many steps. Paths are relative to the staging directory. ----------------


class Isolate(Operation):
    """Become root of the user namespace, in a session and keyring of its own, with private mounts."""


class NewProc(Operation):
    """Make a /proc of the step's pid namespace; where that is forbidden, take the outer one."""


class Staging(Operation):
    """Mount the staging directory, a tmpfs of *size*, and attach /proc in it."""

    size: bytes


class Sysfs(Operation):
    """Mount /sys read-only. Without a net namespace of the step's *own*, it is the outer one."""

    own: bool


class FileSystem(Operation):
    """Mount a new file system."""

    target: bytes
    kind: bytes
    attributes: int  # MOUNT_ATTR_*
    options: Options


class Device(Operation):
    """Bind a device node of the machine. *number* is the device it must be, None for any."""

    target: bytes
    source: bytes
    number: tuple[int, int] | None


class GivenDevice(Operation):
    """Bind a device that the command line names, or the node *index* if nodes were made for the step."""

    target: bytes
    source: bytes
    index: int


class Link(Operation):
    """Make a symlink."""

    path: bytes
    target: bytes


class MaskForeignProcesses(Operation):
    """Hide the processes of others, where the outer /proc was taken."""


class Mask(Operation):
    """Hide *path*, if it exists, under an empty directory or the null device.

    *when* is "always"; "machine root" if root of the step has the number of the machine's own root; "outer
    sysfs" if /sys is the outer one.
    """

    path: bytes
    when: When


class MaskEach(Operation):
    """Hide the entry *name* of each numbered directory in *directory*."""

    directory: bytes
    name: bytes


class ReadOnly(Operation):
    """Make *path*, if it exists, read-only."""

    path: bytes


class Loopback(Operation):
    """Take up the loopback interface."""


# -- the root file system of a step. Targets are paths of the image. -----------------------------------------


class Undumpable(Operation):
    """Keep other processes from tracing this one until it executes the command."""


class EnterStore(Operation):
    """Attach the store and enter it.

    Paths of layers are relative to it, so that mountinfo shows no host path.
    """


class Root(Operation):
    """Mount the root: an overlay of *lowers* (top first) and *upper*; without lowers, *upper* itself."""

    lowers: list[bytes]
    upper: bytes
    work: bytes


class Cover(Operation):
    """Bind a private read-only file over *path*."""

    path: bytes
    content: bytes


class MoveIn(Operation):
    """Move /proc, /sys or /dev from the staging directory into the root."""

    name: bytes


class Script(Operation):
    """Write an executable file into /dev/pipes."""

    name: bytes
    content: bytes


class Address(Operation):
    """Give eth0 its address and default route."""

    address: bytes
    mask: bytes
    gateway: bytes


class Overlay(Operation):
    """Bind *source* of an overlay of layers; it is writable if there is an *upper* directory."""

    target: bytes
    source: bytes
    lowers: list[bytes]
    upper: bytes
    work: bytes
    read_only: bool


class Bind(Operation):
    """Bind *source* of the directory *path* of the store."""

    target: bytes
    path: bytes
    source: bytes
    read_only: bool


class Tmpfs(Operation):
    """Mount a tmpfs of *size* bytes, 0 for the kernel's default."""

    target: bytes
    size: int
    read_only: bool


class File(Operation):
    """Bind a read-only file of *content*."""

    target: bytes
    content: bytes
    mode: int
    uid: int
    gid: int


class Volume(Operation):
    """Bind *source* of the machine, which the launcher has opened with mapped ids."""

    target: bytes
    source: bytes
    read_only: bool


class Hostname(Operation):
    """Set the host name."""

    name: bytes


class PivotRoot(Operation):
    """Make the root file system the root, and detach all else."""


# -- a step in a chroot --------------------------------------------------------------------------------------


class EnterChroot(Operation):
    """Start a session and keyring of its own, and make the step's directory the root."""


class RestrictScope(Operation):
    """Enter a Landlock domain from which nothing outside is signalled or traced."""


class Listen(Operation):
    """Have the supervisor answer system calls about paths, and refuse sockets without *internet*.

    *changes* are answered too if a mount is read-only; *chroots* says whether chroot(2) passes.
    """

    internet: bool
    changes: bool
    chroots: bool


# -- the process of a step -----------------------------------------------------------------------------------


class FindUser(Operation):
    """Resolve USER against the image's passwd and group files."""

    text: bytes


class ReadFilter(Operation):
    """Make the seccomp filter. Its table is out of reach once the root is entered."""

    capabilities: int
    any_socketcall: bool
    fake_owners: bool


class InstallFilter(Operation):
    """Install the seccomp filter."""


class Descriptors(Operation):
    """Keep standard input, output and error and the status channel, and close all others."""


class WorkingDirectory(Operation):
    """Enter WORKDIR."""

    path: bytes


class Limit(Operation):
    """Set the resource limit *number* (setrlimit(2)); -1 is unlimited."""

    number: int
    soft: int
    hard: int


class HideAbstractSockets(Operation):
    """Keep the step from abstract sockets of the shared network, by Landlock."""


class NoNewPrivileges(Operation):
    """Set no_new_privs."""


class Identity(Operation):
    """Take the user that was found; root keeps *capabilities*, a bit mask, others none."""

    capabilities: int


class WaitForClock(Operation):
    """Wait until the clock that files are dated by is past *moment*, in ns."""

    moment: int


class Execute(Operation):
    """Execute the command."""

    argv: list[bytes]
    env: dict[bytes, bytes]


if TYPE_CHECKING:
    FrameOperation = (
        Isolate
        | NewProc
        | Staging
        | Sysfs
        | FileSystem
        | Device
        | GivenDevice
        | Link
        | MaskForeignProcesses
        | Mask
        | MaskEach
        | ReadOnly
        | Loopback
    )
    RootOperation = (
        Undumpable
        | EnterStore
        | Root
        | Cover
        | MoveIn
        | Script
        | Address
        | Overlay
        | Bind
        | Tmpfs
        | File
        | Volume
        | Hostname
        | PivotRoot
    )
    ChrootOperation = EnterChroot | RestrictScope | Listen
    ProcessOperation = (
        FindUser
        | ReadFilter
        | InstallFilter
        | Descriptors
        | WorkingDirectory
        | Limit
        | HideAbstractSockets
        | NoNewPrivileges
        | Identity
        | WaitForClock
        | Execute
    )
