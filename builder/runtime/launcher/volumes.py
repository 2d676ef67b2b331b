"""Files and directories of the machine in a container: volumes with mapped owners."""

from __future__ import annotations

import contextlib
import os
import stat

from builder.runtime import syscalls as sc
from builder.runtime.spec import VolumeSpec

# File systems of the kernel's own, where ids cannot be mapped and need not be.
_OWNERLESS = {
    *(b"proc", b"sysfs", b"devtmpfs", b"devpts", b"mqueue", b"cgroup", b"cgroup2", b"securityfs", b"nsfs"),
    *(b"debugfs", b"tracefs", b"bpf", b"binfmt_misc", b"efivarfs", b"configfs", b"pstore", b"hugetlbfs"),
}


def open_volume(volume: VolumeSpec, userns: int) -> int:
    """Return a detached mount of a file or directory of the machine. Raises OSError.

    Its owners are mapped to the ids of containers by the user namespace *userns*, unless that is -1. Where no
    owner can be mapped, as in /proc and /dev and in some mounts inside the volume, the files belong to nobody
    of the container. A device can be used only if it is itself the volume.
    """
    tree = sc.open_tree(sc.AT_FDCWD, volume["source"], recursive=True)
    try:
        found = os.fstat(tree)
        is_device = stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)
        flags = sc.MOUNT_ATTR_RDONLY if volume["read_only"] else 0
        if not is_device:
            flags |= sc.MOUNT_ATTR_NODEV
        if flags:
            sc.mount_setattr(tree, b"", flags, recursive=True)
        if userns >= 0:
            _map_owners(tree, volume["source"], is_device, userns)
    except OSError as error:
        os.close(tree)
        what = f"{os.fsdecode(volume['source'])} cannot be mounted with mapped ids"
        raise OSError(error.errno, f"{what}: {error.strerror}") from None
    return tree


def _map_owners(tree: int, source: bytes, is_device: bool, userns: int) -> None:
    """Map the owners in a mount, and in those inside it. Raises OSError."""
    try:
        sc.mount_setattr(tree, b"", sc.MOUNT_ATTR_IDMAP, userns, recursive=True)
    except OSError:
        kind, inside = _mounts_at(source)
        try:
            sc.mount_setattr(tree, b"", sc.MOUNT_ATTR_IDMAP, userns)
        except OSError:
            if not is_device and kind not in _OWNERLESS:
                raise
        for path in inside:
            with contextlib.suppress(OSError):
                sc.mount_setattr(tree, path, sc.MOUNT_ATTR_IDMAP, userns)


def _mounts_at(path: bytes) -> tuple[bytes, list[bytes]]:
    """Return the type of the file system at *path*, and the paths below it where others are mounted."""
    kind, inside, longest = b"", [], -1
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields, _, rest = line.partition(b" - ")
            place = fields.split()[4].decode("unicode_escape").encode("latin-1")  # blanks are \\040 there
            top = place.rstrip(b"/")
            if path == place or path.startswith(top + b"/"):
                if len(top) >= longest:
                    kind, longest = rest.split()[0], len(top)
            elif place.startswith(path.rstrip(b"/") + b"/"):
                inside.append(place[len(path.rstrip(b"/")) + 1 :])
    return kind, inside
