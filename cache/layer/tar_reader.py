"""Read tar headers from an untrusted stream: v7, ustar, PAX, GNU long names and sparse files.

Multi-volume archives and unknown member types are refused by name. Limits are per member, so no
header can make the reader hold more than a mebibyte.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from cache.errors import ArchiveError, UnsupportedMember
from cache.fs import is_image_xattr, read_exactly

_BLOCK = 512
_HEADER_LIMIT = 1 << 20
_RECORD_LIMIT = 10_000
_PATH_LIMIT = 4096
_SIZE_LIMIT = 1 << 50
_ID_LIMIT = 1 << 32
_TIME_LIMIT = 1 << 40
_XATTR_NAME, _XATTR_SIZE = 255, 1 << 16  # linux/limits.h
_ZEROS = bytes(1 << 20)

Read = Callable[[int], bytes]

_KINDS = {b"0": "f", b"\0": "f", b"7": "f", b"1": "h", b"2": "l", b"3": "c", b"4": "b", b"5": "d", b"6": "p"}
_KINDS[b"S"] = "f"  # a sparse file


class Member:
    """One member as the archive describes it; ``name`` and ``link`` are unchecked bytes."""

    def __init__(self, name: bytes, kind: str, mode: int) -> None:
        self.name = name
        self.kind = kind
        self.mode = mode
        self.uid = 0
        self.gid = 0
        self.size = 0
        self.mtime = 0
        self.link = b""
        self.rdev = 0
        self.xattrs: dict[str, bytes] = {}


class TarReader:
    """Members of the tar that *read* delivers; ``read(n)`` returns up to n bytes, b"" at the end.

    Iterate over members. Call ``chunks`` for a file's content before the next member, or it is skipped.
    Sparse files are given whole, holes as zeros. With *blank*, an empty stream is an archive without
    members. Raises ArchiveError for a malformed archive, and UnsupportedMember for a member of an unknown
    kind.
    """

    def __init__(self, read: Read, blank: bool = False) -> None:
        self._read = read
        self._blank = blank
        self._left = 0
        self._pad = 0
        self._parts: list[tuple[int, int]] | None = (
            None  # of a sparse file: offsets and lengths, then its end
        )
        self.ended = False  # True once the end marker was read
        self.global_header = False  # True once one was read: no member, but a header

    def __iter__(self) -> Iterator[Member]:
        zero_blocks = 0
        pax: dict[bytes, bytes] = {}
        long_name = long_link = b""
        first = True
        while True:
            self._skip()
            block = self._exactly(_BLOCK, "a header", end_ok=True)
            if not block:
                if first and self._blank:
                    self.ended = True
                    return
                if first:
                    raise ArchiveError("the archive is empty")
                if pax or long_name or long_link:
                    raise ArchiveError("the archive ends inside an extended header")
                return
            first = False
            if not block.strip(b"\0"):
                zero_blocks += 1
                self.ended = True
                if zero_blocks == 2:
                    return
                continue
            zero_blocks, self.ended = 0, False
            member, kind = _parse(block)
            if kind in b"xgLKXN":
                data = self._special(member.size)
                if kind in (b"x", b"X"):
                    pax = _pax_records(data)
                elif kind == b"L":
                    long_name = data.rstrip(b"\0")
                elif kind == b"K":
                    long_link = data.rstrip(b"\0")
                self.global_header |= kind == b"g"
                continue  # global headers carry nothing a layer needs
            member.name = long_name or member.name
            member.link = long_link or member.link
            _apply_pax(member, pax)
            parts = _sparse_parts(pax)
            if parts is not None:
                member.name = pax.get(b"GNU.sparse.name") or member.name
            if kind == b"\0" and member.name.endswith(b"/"):
                member.kind = "d"  # v7 archives mark directories so
            _check(member, kind)
            stored = self._old_map(block, member) if kind == b"S" else None
            if member.kind != "f":
                member.size = 0  # only files have content, whatever the header says
            self._left = member.size
            self._pad = -member.size % _BLOCK
            self._parts = None
            if stored is not None:
                self._begin_sparse(member, {b"GNU.sparse.size": b"%d" % stored[0]}, stored[1])
            elif parts is not None and member.kind == "f":
                self._begin_sparse(member, pax, parts)
            pax, long_name, long_link = {}, b"", b""
            yield member

    def _begin_sparse(self, member: Member, pax: dict[bytes, bytes], parts: list[int]) -> None:
        """Make *member* the whole file whose data parts are stored (GNU tar's manual, "Sparse Formats")."""
        name = os.fsdecode(member.name[:200])
        if not parts and pax.get(b"GNU.sparse.major") == b"1":
            parts = self._stored_map(name)
        size = pax.get(b"GNU.sparse.size") or pax.get(b"GNU.sparse.realsize") or b"%d" % member.size
        if not size.isdigit() or len(size) > 19 or int(size) > _SIZE_LIMIT:
            raise ArchiveError(f"{name!r}: a sparse file's size is out of range")
        if len(parts) % 2:
            raise ArchiveError(f"{name!r}: the map of a sparse file is wrong")
        pairs = list(zip(parts[::2], parts[1::2], strict=True))
        ends = [0, *(offset + length for offset, length in pairs)]
        rising = all(offset >= end for (offset, _), end in zip(pairs, ends, strict=False))
        if not rising or ends[-1] > int(size) or sum(length for _, length in pairs) != self._left:
            raise ArchiveError(f"{name!r}: the map of a sparse file is wrong")
        member.size = int(size)
        self._parts = [*pairs, (member.size, 0)]

    def _old_map(self, block: bytes, member: Member) -> tuple[int, list[int]]:
        """Return the size and map of a sparse file in GNU tar's own format, which may take more blocks."""
        size, parts = _number(block[483:495], "size"), []
        table, count, more = block[386:482], 4, block[482]
        while True:
            for place in range(0, 24 * count, 24):
                if not table[place]:
                    break
                parts += [_number(table[place + at : place + at + 12], "part of a map") for at in (0, 12)]
            if not more:
                return size, parts
            if len(parts) > 2 * _RECORD_LIMIT:
                raise ArchiveError(
                    f"{os.fsdecode(member.name[:200])!r}: the map of a sparse file is too long"
                )
            table, count = self._exactly(_BLOCK, "the map of a sparse file"), 21
            more = table[504]

    def _stored_map(self, name: str) -> list[int]:
        """Return the map that precedes the data parts: their number, then offset and length of each."""
        text, lines, wanted = b"", 0, 1
        while lines < wanted:
            if self._left < _BLOCK or len(text) >= _HEADER_LIMIT:
                raise ArchiveError(f"{name!r}: the map of a sparse file is cut short or too long")
            block = self._exactly(_BLOCK, "the map of a sparse file")
            self._left -= _BLOCK
            text += block
            lines += block.count(b"\n")
            if wanted == 1 and lines:
                wanted += 2 * _numbers(name, [text.partition(b"\n")[0]])[0]
        return _numbers(name, text.split(b"\n")[1:wanted])

    def chunks(self) -> Iterator[bytes]:
        """Yield the content of the last member."""
        if self._parts is None:
            yield from self._stored(self._left)
            return
        parts, self._parts = self._parts, None
        place = 0
        for offset, length in parts:
            while place < offset:
                yield _ZEROS[: offset - place]
                place += min(len(_ZEROS), offset - place)
            yield from self._stored(length)
            place += length

    def _stored(self, count: int) -> Iterator[bytes]:
        end = self._left - count
        while self._left > end:
            data = self._read(min(self._left - end, 1 << 20))
            if not data:
                raise ArchiveError("the archive ends inside a file")
            self._left -= len(data)
            yield data

    def drain(self) -> None:
        """Read all that follows the end marker, so that a digest covers the whole stream."""
        while self._read(1 << 20):
            pass

    def _skip(self) -> None:
        for _ in self._stored(self._left):
            pass
        while self._pad and (data := self._read(self._pad)):
            self._pad -= len(data)

    def _exactly(self, count: int, what: str, end_ok: bool = False) -> bytes:
        data = read_exactly(self._read, count)
        if len(data) < count and (data or not end_ok):
            raise ArchiveError(f"the archive ends inside {what}")
        return data

    def _special(self, size: int) -> bytes:
        if size > _HEADER_LIMIT:
            raise ArchiveError(f"an extended header of {size} bytes (the limit is {_HEADER_LIMIT})")
        data = self._exactly(size, "an extended header") if size else b""
        if size % _BLOCK:
            self._exactly(-size % _BLOCK, "an extended header")
        return data


def _parse(block: bytes) -> tuple[Member, bytes]:
    stated = _number(block[148:156], "checksum")
    plain = block[:148] + b"        " + block[156:]
    signed = sum(b - 256 if b > 127 else b for b in plain) if stated != sum(plain) else stated
    if stated != signed:
        raise ArchiveError("a header's checksum is wrong: this is not a tar archive, or it is damaged")
    name = block[0:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].split(b"\0", 1)[0]):
        name = prefix + b"/" + name
    kind = block[156:157]
    member = Member(name, _KINDS.get(kind, ""), _number(block[100:108], "mode"))
    member.uid = _number(block[108:116], "uid")
    member.gid = _number(block[116:124], "gid")
    member.size = _number(block[124:136], "size")
    member.mtime = _number(block[136:148], "mtime")
    member.link = block[157:257].split(b"\0", 1)[0]
    if member.kind in ("c", "b"):
        member.rdev = _device(_number(block[329:337], "devmajor"), _number(block[337:345], "devminor"))
    if member.kind != "f" and not 0 <= member.size <= _SIZE_LIMIT:
        raise ArchiveError("a header's size is out of range")
    return member, kind


def _device(major: int, minor: int) -> int:
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise ArchiveError(f"device number {major}:{minor} is out of range")
    return os.makedev(major, minor)


def _number(text: bytes, what: str) -> int:
    """Return an octal field, or a base-256 one if its first bit is set."""
    if text[:1] >= b"\x80":
        value = int.from_bytes(text, "big", signed=False) & ((1 << (8 * len(text) - 1)) - 1)
        if text[:1] == b"\xff":
            value = int.from_bytes(text, "big", signed=True)
        return value
    digits = text.strip(b" \0").split(b"\0", 1)[0].strip()
    if digits and (len(digits) > 12 or not all(48 <= d <= 55 for d in digits)):
        raise ArchiveError(f"a header's {what} is not a number: {text!r}")
    return int(digits, 8) if digits else 0


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """Return ``<length> <key>=<value>\\n`` records; a wrong length is an error (UNP-15)."""
    records: dict[bytes, bytes] = {}
    pieces: list[bytes] = []
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 12)
        digits = data[position:space] if space > 0 else b""
        if not digits.isdigit():
            if not data[position:].strip(b"\0"):
                break
            raise ArchiveError("a PAX record has no length")
        length = int(digits)
        record = data[space + 1 : position + length]
        key, equals, value = record.partition(b"=")
        if position + length > len(data) or not equals or not value.endswith(b"\n") or not key:
            raise ArchiveError("a PAX record's length is wrong")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            pieces.append(value[:-1])  # a key of old formats that repeats
        records[key] = value[:-1]
        position += length
        if len(records) > _RECORD_LIMIT:
            raise ArchiveError("a PAX header has too many records")
    if pieces:
        records[b"GNU.sparse.map"] = b",".join(pieces)
    return records


def _sparse_parts(pax: dict[bytes, bytes]) -> list[int] | None:
    """Return offsets and lengths of a sparse file's parts, [] if its data has them, None if it is whole."""
    version = (pax.get(b"GNU.sparse.major", b""), pax.get(b"GNU.sparse.minor", b""))
    if version == (b"1", b"0"):
        return []
    if version not in ((b"0", b"0"), (b"0", b"1"), (b"", b"")) or b"GNU.sparse.map" not in pax:
        return None
    parts = pax[b"GNU.sparse.map"]
    return _numbers("a PAX header", parts.split(b",")) if parts else []


def _numbers(name: str, texts: list[bytes]) -> list[int]:
    if not all(text.isdigit() and len(text) <= 19 for text in texts):
        raise ArchiveError(f"{name!r}: the map of a sparse file is not made of numbers")
    return [int(text) for text in texts]


def _apply_pax(member: Member, pax: dict[bytes, bytes]) -> None:
    for key, value in pax.items():
        if key == b"path":
            member.name = value
        elif key == b"linkpath":
            member.link = value
        elif key in (b"uid", b"gid", b"size"):
            if not value.isdigit() or len(value) > 19:
                raise ArchiveError(f"a PAX header's {key.decode()} is not a number")
            setattr(member, key.decode(), int(value))
        elif key == b"mtime":
            member.mtime = _pax_time(value)
        elif key.startswith(b"SCHILY.xattr."):
            if b"\0" in key:
                raise ArchiveError("the name of an extended attribute holds a NUL byte")
            member.xattrs[os.fsdecode(key[13:])] = value


def _pax_time(value: bytes) -> int:
    whole, _, _fraction = value.partition(b".")
    sign = -1 if whole.startswith(b"-") else 1
    digits = whole.lstrip(b"-")
    if not digits.isdigit() or len(digits) > 19:
        raise ArchiveError("a PAX header's mtime is not a number")
    return sign * int(digits)


def _check(member: Member, kind: bytes) -> None:
    """Check a member after overrides: a known kind, numbers and names within limits."""
    shown = os.fsdecode(member.name[:200])
    if not member.kind:
        raise UnsupportedMember(f"{shown!r}: members of type {kind!r} are not supported")
    if b"\0" in member.name or b"\0" in member.link:
        raise ArchiveError(f"{shown!r}: a name holds a NUL byte")
    if len(member.name) > _PATH_LIMIT or len(member.link) > _PATH_LIMIT:
        raise ArchiveError(f"{shown!r}: a name longer than {_PATH_LIMIT} bytes")
    if not 0 <= member.size <= _SIZE_LIMIT:
        raise ArchiveError(f"{shown!r}: a size of {member.size} bytes")
    if not (0 <= member.uid < _ID_LIMIT - 1 and 0 <= member.gid < _ID_LIMIT - 1):
        raise ArchiveError(f"{shown!r}: owner {member.uid}:{member.gid} is out of range")
    for key, value in member.xattrs.items():
        if is_image_xattr(key) and (len(os.fsencode(key)) > _XATTR_NAME or len(value) > _XATTR_SIZE):
            raise UnsupportedMember(
                f"{shown!r}: the extended attribute {key[:100]!r} has a name of {len(os.fsencode(key))} "
                f"and a value of {len(value)} bytes; Linux has {_XATTR_NAME} and {_XATTR_SIZE} at most"
            )
    if abs(member.mtime) > _TIME_LIMIT:
        member.mtime = 0  # as moby's and containerd's readers have it
    member.mode &= 0o7777
