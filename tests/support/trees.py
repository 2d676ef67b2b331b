"""What a tree holds, down to the xattrs: one in a folder, and one that an image says it has."""

from __future__ import annotations

import os
import stat
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

from oci import Image

_KINDS = {
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "link",
    tarfile.FIFOTYPE: "pipe",
    tarfile.CHRTYPE: "characters",
    tarfile.BLKTYPE: "blocks",
}
_MODES = {
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "pipe",
    stat.S_IFREG: "file",
    stat.S_IFCHR: "characters",
    stat.S_IFBLK: "blocks",
}


@dataclass(frozen=True)
class Node:
    """A file of a tree. ``data`` is its content, what the link says, or a device's numbers; ``names`` are all
    its hard links."""

    kind: str
    mode: int
    owner: tuple[int, int]
    time: int
    data: bytes = b""
    xattrs: tuple[tuple[str, bytes], ...] = ()
    names: tuple[str, ...] = ()


def of_folder(root: Path) -> dict[str, Node]:
    """What is there; modes of links and what overlayfs itself notes do not count."""
    found, links = dict[str, Node](), dict[int, list[str]]()
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            kind = _MODES.get(stat.S_IFMT(status.st_mode), "other")
            names = sorted(
                name for name in os.listxattr(path, follow_symlinks=False) if ".overlay." not in name
            )
            data = b""
            if kind == "file":
                data = Path(path).read_bytes()
            elif kind == "link":
                data = os.readlink(os.fsencode(path))
            elif kind in ("characters", "blocks"):
                data = b"%d:%d" % (os.major(status.st_rdev), os.minor(status.st_rdev))
            if kind != "folder":
                links.setdefault(status.st_ino, []).append(os.path.relpath(path, root))
            found[os.path.relpath(path, root)] = Node(
                kind,
                stat.S_IMODE(status.st_mode) if kind != "link" else 0o777,
                (status.st_uid, status.st_gid),
                int(status.st_mtime),
                data,
                tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names),
            )
    return _linked(found, [names for names in links.values() if len(names) > 1])


def of_image(image: Image) -> dict[str, Node]:
    """What unpacking has to give."""
    found, links = dict[str, Node](), dict[str, list[str]]()
    root = image.root()
    for path, (own, _) in root.items():
        first = own.linkname.removeprefix("./") if own.islnk() else path
        if own.islnk():
            links.setdefault(first, [first]).append(path)
        entry, data = root[first]
        xattrs = sorted(
            (key.removeprefix("SCHILY.xattr."), value.encode("utf-8", "surrogateescape"))
            for key, value in entry.pax_headers.items()
            if key.startswith("SCHILY.xattr.")
        )
        if entry.issym():
            data = os.fsencode(entry.linkname)
        elif entry.isdev() and not entry.isfifo():
            data = b"%d:%d" % (entry.devmajor, entry.devminor)
        found[path] = Node(
            _KINDS.get(entry.type, "file"),
            entry.mode & 0o7777 if not entry.issym() else 0o777,
            (entry.uid, entry.gid),
            int(entry.mtime),
            data,
            tuple(xattrs),
        )
    return _linked(found, list(links.values()))


def _linked(found: dict[str, Node], groups: list[list[str]]) -> dict[str, Node]:
    for group in groups:
        for name in group:
            found[name] = replace(found[name], names=tuple(sorted(group)))
    return found


def difference(found: dict[str, Node], expected: dict[str, Node]) -> list[str]:
    """What is not equal, a line for each path."""
    return [
        f"{path!r}: {found.get(path)}, not {expected.get(path)}"
        for path in sorted(found.keys() | expected.keys())
        if found.get(path) != expected.get(path)
    ]
