"""Operations on whole directory trees of the store, by descriptor and without following links."""

import contextlib
import os
import stat

# Files of a layer may be owned by anyone and hold anything; only these attributes are part
# of an image. What overlayfs itself keeps must never be taken from one (UNP-10).
CAPABILITY = "security.capability"
_OVERLAY_PREFIX = "user.overlay."
OPAQUE = "user.overlay.opaque"


def is_image_xattr(name: str) -> bool:
    """Whether an extended attribute belongs into a layer (dockerfile.md T82)."""
    return name == CAPABILITY or (name.startswith("user.") and not name.startswith(_OVERLAY_PREFIX))


def image_xattrs(target: "int | str") -> "tuple[tuple[str, bytes], ...]":
    """The attributes of *target* that belong into a layer, sorted; a link is not followed."""
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError:
        return ()
    return tuple((name, _read_xattr(target, name, follow)) for name in sorted(names) if is_image_xattr(name))


def _read_xattr(target: "int | str", name: str, follow: bool) -> bytes:
    value = os.getxattr(target, name, follow_symlinks=follow)
    if name == "security.capability" and len(value) == 24 and value[20:] == b"\0\0\0\0":
        # Set inside a user namespace: version 3 with the namespace's root, which is our 0.
        # Images carry version 2, the same without the root id.
        return value[:3] + b"\x02" + value[4:20]
    return value


def is_whiteout(found: os.stat_result) -> bool:
    """Whether a stat result is overlayfs's mark for a removed name: a character device 0:0."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def is_opaque(path: "str | int") -> bool:
    """Whether a directory hides the same directory of lower layers."""
    try:
        return os.getxattr(path, OPAQUE) == b"y"
    except OSError:
        return False


def remove_tree(name: str, dir_fd: int | None = None) -> None:
    """Remove *name* and all below it; missing is fine. Never follows a link or leaves the device.

    Iterative, so that a hostile depth cannot exhaust the stack. Raises OSError.
    """
    try:
        os.unlink(name, dir_fd=dir_fd)
        return
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        pass
    top = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    device = os.fstat(top).st_dev
    stack = [(top, "")]
    try:
        while stack:
            fd, _own = stack[-1]
            below = _empty(fd)
            if below is None:
                fd, own = stack.pop()
                os.close(fd)
                if stack:
                    os.rmdir(own, dir_fd=stack[-1][0])
                continue
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            child = os.open(below, flags, dir_fd=fd)
            if os.fstat(child).st_dev != device:
                os.close(child)
                raise OSError(18, "refusing to remove across a mount point", below)
            stack.append((child, below))
    finally:
        for fd, _own in stack:
            os.close(fd)
    os.rmdir(name, dir_fd=dir_fd)


def _empty(fd: int) -> str | None:
    """Unlink every non-directory of *fd*; the name of one directory left, or None."""
    left = None
    with os.scandir(fd) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    os.rmdir(entry.name, dir_fd=fd)
                    continue
                left = entry.name
            else:
                os.unlink(entry.name, dir_fd=fd)
    return left
