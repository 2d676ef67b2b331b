"""Overlay mounts of directories of the store.

The store is the working directory, and layers are relative to it.
"""

import os

from builder.runtime import syscalls as sc
from builder.runtime.errors import SetupError

_SNAPSHOTS = b"snapshots/"


def mount_overlay(place: bytes, lowers: list[bytes], upper: bytes, work: bytes) -> int:
    """Mount an overlay of *lowers*, top first, at *place*, writable if there is an *upper* directory.

    Returns a descriptor of its root. Raises SetupError and OSError. ``volatile`` avoids the sync of an upper
    directory that is never used as one again.
    """
    if len(_options(lowers, upper, work)) < os.sysconf("SC_PAGE_SIZE"):
        _mount(place, lowers, upper, work)
    else:  # shorter names, relative to the snapshots
        os.chdir(_SNAPSHOTS)
        upper, work = (b"../" + path if path else b"" for path in (upper, work))
        _mount(place, [_from_snapshots(path) for path in lowers], upper, work)
        os.chdir(b"..")
    return os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _from_snapshots(path: bytes) -> bytes:
    """Return a path of the store, relative to its directory of snapshots."""
    return path.removeprefix(_SNAPSHOTS) if path.startswith(_SNAPSHOTS) else b"../" + path


def _options(lowers: list[bytes], upper: bytes, work: bytes) -> bytes:
    options = b"userxattr,xino=off,lowerdir=%s" % b":".join(lowers)
    return options + b",volatile,upperdir=%s,workdir=%s" % (upper, work) if upper else options


def _mount(place: bytes, lowers: list[bytes], upper: bytes, work: bytes) -> None:
    """Mount an overlay; with more layers than one page of options can name, from Linux 6.8 on."""
    options = _options(lowers, upper, work)
    # No devices, whatever the image holds: both the mount and the namespace that it is made in forbid them.
    if len(options) < os.sysconf("SC_PAGE_SIZE"):
        sc.mount(b"overlay", place, b"overlay", sc.MS_NODEV, options)
        return
    pairs: list[tuple[bytes, bytes | None]] = [(b"userxattr", None), (b"xino", b"off")]
    pairs += [(b"lowerdir+", lower) for lower in lowers]
    if upper:
        pairs += [(b"upperdir", upper), (b"workdir", work), (b"volatile", None)]
    try:
        tree = sc.new_mount(b"overlay", sc.MOUNT_ATTR_NODEV, pairs)
    except OSError as error:
        raise SetupError(f"{len(lowers)} layers in one overlay mount: {error.strerror}") from None
    sc.move_mount(tree, sc.AT_FDCWD, place)
    os.close(tree)
