"""gzip, zstd, xz and bzip2: streams in, streams out, bounded memory."""

from __future__ import annotations

import bz2
import lzma
import os
import zlib
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast

from cache.errors import ArchiveError
from cache.fs import read_exactly

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

GZIP = "gzip"
ZSTD = "zstd"
NONE = "uncompressed"

_MEDIA_TYPES = {
    GZIP: "application/vnd.oci.image.layer.v1.tar+gzip",
    ZSTD: "application/vnd.oci.image.layer.v1.tar+zstd",
    NONE: "application/vnd.oci.image.layer.v1.tar",
}
_DOCKER_TYPES = {
    GZIP: "application/vnd.docker.image.rootfs.diff.tar.gzip",
    ZSTD: "application/vnd.docker.image.rootfs.diff.tar.zstd",
    NONE: "application/vnd.docker.image.rootfs.diff.tar",
}
LEVELS = {GZIP: range(0, 10), ZSTD: range(0, 23), NONE: range(0, 1)}  # 0: the usual one
_BY_MEDIA_TYPE = {media: kind for types in (_MEDIA_TYPES, _DOCKER_TYPES) for kind, media in types.items()} | {
    "application/vnd.oci.image.layer.nondistributable.v1.tar": NONE,
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": GZIP,
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": ZSTD,
    "application/vnd.docker.image.rootfs.foreign.diff.tar": NONE,
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": GZIP,
    "application/vnd.docker.image.rootfs.foreign.diff.tar.zstd": ZSTD,
}
_SKIPPABLE = b"\x2a\x4d\x18"  # after a byte of 0x50 to 0x5f: a zstd frame to be passed over (RFC 8878)
_MAGIC = {b"\x1f\x8b": GZIP, b"\x28\xb5\x2f\xfd": ZSTD, b"\xfd7zXZ\0": "xz", b"BZh": "bzip2"}
_GZIP_WBITS = 31
_GZIP_BLOCK = 1 << 20
_XZ_MEMORY = 256 << 20
_ZSTD_WINDOW = 512 << 20
_ZSTD_JOB = 2 << 20
_CHUNK = 1 << 18
_PIECE = 1 << 12  # bytes of a member that are read first: there may be thousands of small members

_ERRORS: tuple[type[Exception], ...] = (zlib.error, lzma.LZMAError, OSError, EOFError)

Read = Callable[[int], bytes]
Write = Callable[[bytes], object]


def media_type(compression: str) -> str:
    """Return the OCI media type of a layer with this compression."""
    return _MEDIA_TYPES[compression]


def docker_media_type(compression: str) -> str:
    """Return docker's media type of a layer with this compression."""
    return _DOCKER_TYPES[compression]


def compression_of(media: str) -> str:
    """Return the compression that a layer's media type names. Raises ArchiveError for unknown types."""
    try:
        return _BY_MEDIA_TYPE[media]
    except KeyError:
        raise ArchiveError(f"layers of type {media!r} are not supported") from None


def is_layer(media: str) -> bool:
    """Return whether *media* is the type of a layer that can be unpacked."""
    return media in _BY_MEDIA_TYPE


def detect(start: bytes) -> str:
    """Return the compression that the first bytes of a stream show; a tar header wins over a magic number."""
    if _is_tar(start[:512]):
        return NONE
    for magic, kind in _MAGIC.items():
        if start.startswith(magic):
            return kind
    return ZSTD if start[1:4] == _SKIPPABLE and start[0] >> 4 == 5 else NONE


def _is_tar(block: bytes) -> bool:
    """Return whether *block* is a tar header, by its checksum."""
    digits = block[148:156].strip(b" \0")
    if len(block) < 512 or not digits or digits.strip(b"01234567"):
        return False
    return sum(block[:148]) + 8 * 0x20 + sum(block[156:]) == int(digits, 8)


def detecting(read: Read, layer: bool = False) -> Read:
    """Return a read function over the decompressed stream; its first bytes show the compression.

    Raises ArchiveError for a *layer* with a compression that layers do not have.
    """
    start = read_exactly(read, 512)
    kind = detect(start)
    if layer and kind not in _MEDIA_TYPES:
        raise ArchiveError(f"a layer is compressed by {kind}; layers are plain, or by gzip or zstd")

    def source(count: int) -> bytes:
        nonlocal start
        if start:
            data, start = start[:count], start[count:]
            return data
        return read(count)

    return decompressing(source, kind)


def decompressing(read: Read, compression: str) -> Read:
    """Return a read function over the decompressed stream. Damaged input raises ArchiveError."""
    if compression == NONE:
        return read
    if compression == ZSTD:
        return _zstd_reader(read)
    return _Members(read, compression).read


class _Members:
    """A stream of one or more gzip, xz or bzip2 members, decompressed as it is read.

    Zero bytes after the last member are padding; anything else there is damage.
    """

    def __init__(self, read: Read, kind: str) -> None:
        self._source = read
        self._kind = kind
        self._errors = _ERRORS
        self._engine = self._fresh()
        self._held = b""  # what was read last
        self._next = 0  # how much of that was taken
        self._piece = _PIECE
        self._input = b""
        self._buffer = b""
        self._place = 0  # how much of it has been read
        self._done = False

    def _fresh(self) -> Any:
        """Return a new decompressor: objects of zlib, isal, lzma or bz2, which share no type (hence Any)."""
        if self._kind == GZIP:
            return self._inflater()
        if self._kind == "xz":
            return lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
        return bz2.BZ2Decompressor()

    def _inflater(self) -> Any:
        """Return a decompressor of gzip: isal's if it is installed, which takes half the time."""
        try:
            from isal import isal_zlib
        except ImportError:
            return zlib.decompressobj(_GZIP_WBITS)
        if len(self._errors) == len(_ERRORS):
            self._errors = (*_ERRORS, cast("type[Exception]", isal_zlib.error))
        return isal_zlib.decompressobj(wbits=_GZIP_WBITS)

    def read(self, count: int) -> bytes:
        while self._place == len(self._buffer) and not self._done:
            try:
                self._buffer, self._place = self._step(), 0
            except self._errors as error:
                raise ArchiveError(f"damaged {self._kind} data: {error}") from None
        data = self._buffer[self._place : self._place + count]
        self._place += len(data)
        return data

    def _step(self) -> bytes:
        """Decompress the next piece; b"" does not mean the end."""
        if self._engine.eof:
            self._next -= len(self._engine.unused_data)  # the end of what was taken last
            rest = self._take(_PIECE)
            while rest and not (rest := rest.lstrip(b"\0")):
                rest = self._take(_CHUNK)
            if not rest:
                self._done = True
                return b""
            self._engine = self._fresh()
            self._input, self._piece = rest, _PIECE
        if not self._input and getattr(self._engine, "needs_input", True):
            self._input = self._take(self._piece)
            self._piece = min(2 * self._piece, _CHUNK)
            if not self._input:
                raise EOFError("the stream ends early")
        data: bytes = self._engine.decompress(self._input, 1 << 20)
        self._input = self._engine.unconsumed_tail if self._kind == GZIP else b""
        return data

    def _take(self, count: int) -> bytes:
        """Return up to *count* bytes of the stream, b"" at its end."""
        if self._next == len(self._held):
            self._held, self._next = self._source(_CHUNK), 0
        data = self._held[self._next : self._next + count]
        self._next += len(data)
        return data


def _zstd_reader(read: Read) -> Read:
    import zstandard

    class Source:
        def read(self, size: int = -1) -> bytes:
            return read(_CHUNK if size < 0 else size)

    engine = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    stream: Any = engine.stream_reader(cast(Any, Source()), read_across_frames=True)

    def pull(count: int) -> bytes:
        try:
            data: bytes = stream.read(count)
            return data
        except zstandard.ZstdError as error:
            if "too much memory" in str(error):
                raise ArchiveError(
                    f"zstd data that needs a window of more than {_ZSTD_WINDOW >> 20} MiB",
                    "compress it without --long, or with --long=29 at most",
                ) from None
            raise ArchiveError(f"damaged zstd data: {error}") from None

    return pull


class Compressor(Protocol):
    """Turns a stream into compressed bytes handed to a writer."""

    def write(self, data: bytes) -> object: ...
    def close(self) -> None: ...


class _Gzip:
    """gzip (RFC 1952) in members of 1 MiB each, compressed in parallel, without names and times.

    So the bytes are the same however many processors there are. Every reader of gzip reads on
    after a member, as a file may be several that were put together (RFC 1952 section 2.2).
    """

    def __init__(self, write: Write, level: int) -> None:
        self._write = write
        self._level = level
        self._held: list[memoryview] = []
        self._missing = _GZIP_BLOCK  # bytes to a whole block
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: deque[Future[bytes]] = deque()

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while len(view) > self._missing:  # the last block is never empty
            self._start(b"".join([*self._held, view[: self._missing]]))
            view = view[self._missing :]
            self._held, self._missing = [], _GZIP_BLOCK
        if view:
            self._held.append(view)
            self._missing -= len(view)

    def _start(self, block: bytes) -> None:
        """Compress a block in the pool; write the oldest ones when too many wait."""
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor  # not for what is small

            self._processors = len(os.sched_getaffinity(0))
            self._pool = ThreadPoolExecutor(self._processors)
        self._waiting.append(self._pool.submit(_member, block, self._level))
        while len(self._waiting) > 2 * self._processors:
            self._write(self._waiting.popleft().result())

    def close(self) -> None:
        last = _member(b"".join(self._held), self._level)
        while self._waiting:
            self._write(self._waiting.popleft().result())
        self._write(last)
        if self._pool is not None:
            self._pool.shutdown()


def _member(block: bytes, level: int) -> bytes:
    import deflate

    return bytes(deflate.gzip_compress(block, level))


class _Zstd:
    def __init__(self, write: Write, level: int) -> None:
        import zstandard

        self._write = write
        # Fixed numbers: the frame's bytes depend on how it is parted into jobs. Large ones take much memory.
        how = zstandard.ZstdCompressionParameters.from_level(level, threads=2, job_size=_ZSTD_JOB)
        self._engine = zstandard.ZstdCompressor(compression_params=how).compressobj()

    def write(self, data: bytes) -> None:
        if packed := self._engine.compress(data):
            self._write(packed)

    def close(self) -> None:
        self._write(self._engine.flush())


class _Plain:
    def __init__(self, write: Write) -> None:
        self.write = write

    def close(self) -> None:
        pass


def compressor(write: Write, compression: str, level: int = 0) -> Compressor:
    """Return a compressor into *write*. Level 0 means gzip 1 (docs/decisions/layers.md), zstd 3."""
    if compression == GZIP:
        return _Gzip(write, level or 1)
    if compression == ZSTD:
        return _Zstd(write, level or 3)
    return _Plain(write)
