"""The description of a container, as plain values that are sent to the launcher by ``marshal``."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, TypedDict

    from builder.runtime.container.cgroups import Limits

    class MountSpec(TypedDict, total=False):
        """One mount besides the root's, by ``kind``.

        bind   ``source`` in the merged ``lowers`` (with ``upper`` and ``work`` where it is
               written to)
        store  ``source`` in the directory ``path`` of the store
        tmpfs  of ``size`` bytes, 0 for the kernel's default
        file   a read-only file of ``content``, ``mode``, ``uid`` and ``gid``
        """

        kind: Literal["bind", "store", "tmpfs", "file"]
        target: bytes
        lowers: list[bytes]
        upper: bytes
        work: bytes
        path: bytes
        source: bytes
        read_only: bool
        size: int
        content: bytes
        mode: int
        uid: int
        gid: int

    class VolumeSpec(TypedDict):
        """A file or directory of the machine, by its absolute path, that is bound into a container."""

        source: bytes
        target: bytes
        read_only: bool

    class FrameSpec(TypedDict):
        """The part of a spec by which a container is prepared before its step is known.

        ``network`` is default, none, host (as asked for) or shared (the machine's, because no other is
        available). ``masked``: sensitive paths in /proc and /sys are hidden. ``devices`` are paths of the
        machine by those in /dev, ``limits`` those of the cgroup below ``cgroup_parent``.
        """

        network: str
        masked: bool
        devices: dict[bytes, bytes]
        shm_size: int
        limits: Limits
        cgroup_parent: bytes

    class ContainerSpec(TypedDict):
        """All that the child needs to know; nothing is looked up later.

        Layer paths are relative to the store, which the launcher holds open. ``lowers`` are the layers from
        the top down; without any, ``upper`` is the whole root. ``files`` are made on a tmpfs and bound
        read-only over the paths they name, so they never reach a layer. ``scripts`` are executable files in
        /dev/pipes. ``capabilities`` is a bit mask, for root in the step's own user namespace. ``filtered``:
        there is a seccomp filter, with ``any_socketcall`` the one for images of the 32-bit ABI. ``rlimits``
        are soft and hard limits by number (-1: unlimited). ``address`` is that of eth0, its mask and the
        gateway, if the network is the default one. ``placed`` are files that are put into the root instead of
        being mounted: the path, the kind of file system it is shown as, and whether it is read-only.
        ``not_before``: the clock that files are dated by has to be past this time, in ns, when the command
        starts. ``devices_work``: nodes in /dev can be opened.
        """

        frame: FrameSpec
        lowers: list[bytes]
        upper: bytes
        work: bytes
        argv: list[bytes]
        env: dict[bytes, bytes]
        cwd: bytes
        user: bytes
        hostname: bytes
        files: dict[bytes, bytes]
        scripts: dict[bytes, bytes]
        mounts: list[MountSpec]
        volumes: list[VolumeSpec]
        capabilities: int
        filtered: bool
        any_socketcall: bool
        no_new_privileges: bool
        rlimits: dict[int, tuple[int, int]]
        address: list[bytes]
        placed: list[tuple[bytes, bytes, bool]]
        not_before: int
        devices_work: bool

else:
    ContainerSpec = FrameSpec = MountSpec = VolumeSpec = dict


MOST_VOLUMES = 64

# Ids of a step are shifted by this much on the host, so that nothing in a step owns a file
# or process outside. One extent covers every id an image may use (0 to 2^31 - 2).
ID_SHIFT = 1 << 31
ID_COUNT = (1 << 31) - 1

# linux/capability.h, by number.
_NAMES = """
    chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable
    net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot
    sys_ptrace sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease
    audit_write audit_control setfcap mac_override mac_admin syslog wake_alarm block_suspend audit_read
    perfmon bpf checkpoint_restore
"""
CAPABILITY_NAMES = tuple(_NAMES.split())
CAP_SYS_CHROOT = 1 << CAPABILITY_NAMES.index("sys_chroot")
ALL_CAPABILITIES = (1 << len(CAPABILITY_NAMES)) - 1
# chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw
# sys_chroot mknod audit_write setfcap: what BuildKit and Docker grant, here inside a user
# namespace and so worthless outside it.
CAPABILITIES = sum(1 << bit for bit in (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31))

SHM_SIZE = 64 << 20

# What a process that was to become a command ends with where that cannot be, as a shell does.
CANNOT_EXECUTE, NOT_FOUND = 126, 127
DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
