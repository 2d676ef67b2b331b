"""ADD of an archive: unpacked over the lower layers, as docker's untar does (T30 to T39).

The bytes of a file decide whether it is a tar, compressed or not. Any other file, and a compressed file
that holds no tar, is copied as it is.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator

from builder.copy.layer_writer import Writer
from builder.copy.sources import Selected, Source
from builder.errors import CopyError
from cache.entry import BLOCK, CHARACTER, DIRECTORY, FILE, HARDLINK, SYMLINK, Entry, kind_of
from cache.errors import ArchiveError, SpaceError, UnsupportedMember
from cache.fs import image_xattrs, is_image_xattr
from cache.layer.compression import detecting
from cache.layer.merged_tree import Node
from cache.layer.tar_reader import Member, Read, TarReader

_CHUNK = 1 << 20
_LARGE = 64 << 20  # a sparse file may be said to have any size, so that space is asked for first
_MAX_ID = (1 << 31) - 1


def add_archive(writer: Writer, source: Source, selected: Selected, dest: str) -> bool:
    """Unpack a selected file into the directory *dest* if it is an archive. Return whether it is.

    Raises BuildError or ArchiveError for an archive that is damaged or leads out of *dest*.
    """
    if not is_archive(source, selected):
        return False
    _top, handle = next(source.entries(selected))
    fd = source.open(handle)
    try:
        with writer.unpacking():
            _unpack(writer, TarReader(_reader(fd)), dest)
    except ArchiveError as error:
        raise ArchiveError(f"ADD {selected.name}: {error.message}", error.hint) from None
    finally:
        os.close(fd)
    return True


def _reader(fd: int) -> Read:
    return detecting(lambda count: os.read(fd, min(count, _CHUNK)))


def is_archive(source: Source, selected: Selected) -> bool:
    """Return whether a selected file is a tar, compressed or not."""
    top, handle = next(source.entries(selected))
    if top.kind != FILE:
        return False
    fd = source.open(handle)
    try:
        reader = TarReader(_reader(fd))
        return next(iter(reader), None) is not None or reader.global_header
    except UnsupportedMember:
        return True
    except ArchiveError:
        return False
    finally:
        os.close(fd)


def _unpack(writer: Writer, reader: TarReader, dest: str) -> None:
    top = writer.resolve(dest)
    writer.make_parents(top)
    parents = {"": top}  # where directories of the archive lead
    for member in reader:
        name = _inside(member.name, member.name)
        if not name or member.kind in (CHARACTER, BLOCK):
            continue  # "./" is there, and stays as it is; nobody means to add devices
        above, _, last = name.rpartition("/")
        if above not in parents:
            parents[above] = _parent(writer, top, above, parents)
        path = f"{parents[above]}/{last}".lstrip("/")
        if member.size > _LARGE and member.size > writer.free():
            raise SpaceError(f"{name!r} has {member.size} bytes, more than there is space for", "free some")
        before = writer.stands(path)
        if member.kind == "h":
            _link(writer, member, path, top, parents)
        else:
            writer.put(path, _entry(member), reader.chunks())
        if before in (SYMLINK, HARDLINK) or (before == DIRECTORY and member.kind != DIRECTORY):
            parents = {"": top}  # it may have changed where names lead
        if member.kind == DIRECTORY:
            parents[name] = path


def _parent(writer: Writer, top: str, path: str, parents: dict[str, str]) -> str:
    """Make the directory *path* of the archive where it leads, and say where that is; *parents* are known.

    What lies in a known one is looked up there, as the whole of a long way takes long each time.
    """
    above, _, last = path.rpartition("/")
    if above in parents:
        place = f"{parents[above]}/{last}".lstrip("/")
        if writer.stands(place) == DIRECTORY:
            writer.make_parents(place, owned=False)
            return place
    place = writer.resolve_below(top, path)
    writer.make_parents(place, owned=False)  # the archive has no owner for them
    return place


def _inside(text: bytes, member: bytes) -> str:
    """Return a member's path below the destination, "" for the destination itself."""
    path = posixpath.normpath(os.fsdecode(text).lstrip("/") or ".")
    if path == ".." or path.startswith("../"):
        raise CopyError(f"{os.fsdecode(member)!r} in the archive leads out of the destination")
    return "" if path == "." else path


def _entry(member: Member) -> Entry:
    if member.uid >= _MAX_ID or member.gid >= _MAX_ID:
        raise ArchiveError(f"{os.fsdecode(member.name)!r}: owner {member.uid}:{member.gid} is out of range")
    xattrs = tuple(sorted((k, v) for k, v in member.xattrs.items() if is_image_xattr(k)))
    return Entry(
        "",
        member.kind,
        0o777 if member.kind == SYMLINK else member.mode,
        member.uid,
        member.gid,
        member.size,
        max(member.mtime, 0) * 10**9,  # as untar has it
        os.fsdecode(member.link),
        member.rdev,
        xattrs if member.kind in (FILE, DIRECTORY) else (),
    )


def _link(writer: Writer, member: Member, path: str, top: str, parents: dict[str, str]) -> None:
    """Write a hard link. Its target is relative to the destination, and may be in a lower layer."""
    name = _inside(member.link, member.name)
    above, _, last = name.rpartition("/")
    folder = parents[above] if above in parents else writer.resolve_below(top, above)
    target = f"{folder}/{last}".lstrip("/")
    entry = _entry(member)
    content: Iterator[bytes] = iter(())
    if writer.wrote(target):
        writer.retouch(target, entry)
    elif (node := writer.below(target)) is not None:
        # As untar does it: the link's own owner, mode and time become those of what it names.
        entry, content = _relinked(node, member), _content(node)
        if not writer.keeps(target, entry, node):
            writer.make_parents(target.rpartition("/")[0])
            writer.put(target, entry, _content(node))
    else:
        raise ArchiveError(f"{os.fsdecode(member.name)!r} links to {name!r}, which is not there")
    if path != target:
        writer.link(path, target, entry, content)


def _relinked(node: Node, member: Member) -> Entry:
    """Return the entry of the lower *node* with owner, mode and time of *member*; of a link, its owner."""
    found, entry = node.found, _entry(member)
    kind = kind_of(found)
    if kind == SYMLINK:
        return entry._replace(kind=kind, link=os.readlink(node.real), mode=0o777, mtime=found.st_mtime_ns)
    size = found.st_size if kind == FILE else 0
    return entry._replace(kind=kind, link="", size=size, rdev=found.st_rdev, xattrs=image_xattrs(node.real))


def _content(node: Node) -> Iterator[bytes]:
    with open(node.real, "rb") as file:
        while data := file.read(_CHUNK):
            yield data
