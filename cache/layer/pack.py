"""Layer directory to layer tar: the same tree gives the same bytes on any machine and day.

The format is what BuildKit's layers use (T76, T81, T84): ustar headers,
numeric ids, whole-second times, a PAX header only for what ustar cannot hold, names without
a leading "./", directories with a trailing slash, two zero blocks at the end. Headers are
packed by hand: the standard library's tarfile takes six times as long.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator

from cache.digest import DiffId
from cache.entry import (
    BLOCK,
    CHARACTER,
    DIRECTORY,
    FIFO,
    FILE,
    HARDLINK,
    SYMLINK,
    WHITEOUT,
    Entry,
    kind_of,
)
from cache.errors import CorruptError
from cache.fs import image_xattrs
from cache.index import LayerTar

_TYPES = {FILE: b"0", HARDLINK: b"1", SYMLINK: b"2", CHARACTER: b"3", BLOCK: b"4", DIRECTORY: b"5"}
_TYPES |= {FIFO: b"6", WHITEOUT: b"0"}
_BLOCK = 512
_CHUNK = 1 << 20
_END = bytes(2 * _BLOCK)
# Name, mode, owner, size and time before the checksum; type, link, no owner's names and device after it.
_FRONT = b"%b%07o\0%07o\0%07o\0%011o\0%011o\0"
_BACK = b"%b%bustar\00000" + bytes(64) + b"%07o\0%07o\0"
_MAX_ID = 1 << 21
_MAX_SIZE = 1 << 33
WHITEOUT_PREFIX = ".wh."

Write = Callable[[bytes], object]


def walk(root: int) -> Iterator[Entry]:
    """Yield the members of the layer directory open as *root*, in tar order, hard links resolved.

    Sockets are left out, as BuildKit does (T21).
    """
    seen: dict[tuple[int, int], str] = {}
    stack: list[tuple[str, list[str]]] = [("", sorted(os.listdir(root), reverse=True))]
    while stack:
        parent, names = stack[-1]
        if not names:
            stack.pop()
            continue
        name = names.pop()
        path = f"{parent}/{name}" if parent else name
        found = os.stat(path, dir_fd=root, follow_symlinks=False)
        kind = kind_of(found)
        if not kind:
            continue
        link = ""
        xattrs: tuple[tuple[str, bytes], ...] = ()
        if kind == SYMLINK:
            link = os.readlink(path, dir_fd=root)
        elif kind in (FILE, DIRECTORY):
            xattrs = image_xattrs(f"/proc/self/fd/{root}/{path}")
        if kind != DIRECTORY and kind != WHITEOUT and found.st_nlink > 1:
            first = seen.setdefault((found.st_dev, found.st_ino), path)
            if first != path:
                kind, link, xattrs = HARDLINK, first, ()
        yield Entry(
            path,
            kind,
            found.st_mode & 0o7777,
            found.st_uid,
            found.st_gid,
            found.st_size if kind == FILE else 0,
            found.st_mtime_ns,
            link,
            found.st_rdev if kind in (CHARACTER, BLOCK) else 0,
            xattrs,
        )
        if kind == DIRECTORY:
            stack.append((path, sorted(os.listdir(_below(root, path)), reverse=True)))


def _below(root: int, path: str) -> str:
    return f"/proc/self/fd/{root}/{path}"


def pack(root: int, entries: Iterable[Entry], write: Write) -> LayerTar:
    """Write the tar of *entries* to *write*, reading files below the directory open as *root*.

    Raises CorruptError when a file is not as long as its entry says.
    """
    sha = hashlib.sha256()
    total = 0
    pending: list[bytes] = []
    held = 0
    for entry in entries:
        head = header(entry)
        pending.append(head)
        held += len(head)
        if entry.kind == FILE and entry.size:
            fd = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
            try:
                left = entry.size
                while left:
                    data = os.read(fd, min(left, _CHUNK))
                    if not data:
                        raise CorruptError(f"{entry.path} in a layer is shorter than its {entry.size} bytes")
                    pending.append(data)
                    held += len(data)
                    left -= len(data)
                    if held >= _CHUNK:
                        total += _flush(pending, sha.update, write)
                        held = 0
            finally:
                os.close(fd)
            pad = -entry.size % _BLOCK
            if pad:
                pending.append(bytes(pad))
                held += pad
        if held >= _CHUNK:
            total += _flush(pending, sha.update, write)
            held = 0
    pending.append(_END)
    total += _flush(pending, sha.update, write)
    return LayerTar(DiffId("sha256:" + sha.hexdigest()), total)


def _flush(pending: list[bytes], *consumers: Write) -> int:
    data = b"".join(pending)
    pending.clear()
    for consume in consumers:
        consume(data)
    return len(data)


def header(entry: Entry) -> bytes:
    """Return the header block of one member, after its PAX header if it needs one."""
    path, mode, seconds = entry.path, entry.mode, entry.mtime // 1_000_000_000
    if entry.kind == DIRECTORY:
        path += "/"
    elif entry.kind == WHITEOUT:
        parent, slash, name = path.rpartition("/")
        path, mode, seconds = f"{parent}{slash}{WHITEOUT_PREFIX}{name}", 0, 0
    name_bytes = os.fsencode(path)
    link_bytes = os.fsencode(entry.link) if entry.link else b""
    records: dict[bytes, bytes] = {}
    if len(name_bytes) > 100 or not name_bytes.isascii():
        records[b"path"] = name_bytes
    if len(link_bytes) > 100 or not link_bytes.isascii():
        records[b"linkpath"] = link_bytes
    uid, gid = entry.uid, entry.gid
    if uid >= _MAX_ID:
        records[b"uid"], uid = b"%d" % uid, 0
    if gid >= _MAX_ID:
        records[b"gid"], gid = b"%d" % gid, 0
    size = entry.size
    if size >= _MAX_SIZE:
        records[b"size"], size = b"%d" % size, 0
    if not 0 <= seconds < _MAX_SIZE:
        records[b"mtime"], seconds = b"%d" % seconds, 0
    for key, value in entry.xattrs:
        records[b"SCHILY.xattr." + os.fsencode(key)] = value
    rdev = entry.rdev
    major, minor = (os.major(rdev), os.minor(rdev)) if rdev else (0, 0)
    block = _block(
        _FRONT % (_ascii_field(name_bytes).ljust(100, b"\0"), mode, uid, gid, size, seconds),
        _BACK % (_TYPES[entry.kind], _ascii_field(link_bytes).ljust(100, b"\0"), major, minor),
    )
    return _pax(name_bytes, records) + block if records else block


def _block(front: bytes, back: bytes) -> bytes:
    """Return the header block of the fields before and after the checksum."""
    block = (front + b"        " + back).ljust(_BLOCK, b"\0")
    # The sum of the bytes, by the low half of adler32: ten times faster than sum(), and
    # exact because half a block sums to less than adler's modulus.
    check = (zlib.adler32(block[:256]) & 0xFFFF) + (zlib.adler32(block[256:]) & 0xFFFF) - 2
    return b"%b%06o\0 %b" % (front, check, block[156:])


def _ascii_field(text: bytes) -> bytes:
    """Return what fits a field of 100 bytes: ASCII only, without a slash at a cut."""
    if not text.isascii():
        text = os.fsencode("".join(c for c in os.fsdecode(text) if ord(c) < 128))
    if len(text) > 100:
        cut = text[:100]
        return cut.rstrip(b"/") if cut.endswith(b"/") else cut
    return text


def _pax(name: bytes, records: dict[bytes, bytes]) -> bytes:
    body = b"".join(_record(key, records[key]) for key in sorted(records))
    directory, _, last = name.rpartition(b"/")
    shown = b"/".join(item for item in (directory, b"PaxHeaders.0", last) if item)
    shown = _ascii_field(shown).rstrip(b"/").ljust(100, b"\0")
    head = _block(_FRONT % (shown, 0, 0, 0, len(body), 0), _BACK % (b"x", bytes(100), 0, 0))
    return head + body + bytes(-len(body) % _BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    """Return ``<length> <key>=<value>\\n``, where the length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) != len(str(rest)):
        length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)
