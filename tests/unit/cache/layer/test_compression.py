"""Compressors: what they write others read, the same bytes whatever the pieces and processors."""

from __future__ import annotations

import gzip
import io
import os
import random
import subprocess
import sys
import tarfile
import time

import pytest

from cache.layer import compression as comp

BLOCK = 1 << 20


def sample(size: int) -> bytes:
    rng = random.Random(size)
    words = [rng.randbytes(rng.randrange(1, 40)) for _ in range(500)]
    data = bytearray()
    while len(data) < size:
        data += rng.choice(words)
    return bytes(data[:size])


def packed(data: bytes, compression: str, piece: int = 65536, level: int = 0) -> bytes:
    out: list[bytes] = []
    engine = comp.compressor(out.append, compression, level)
    for start in range(0, len(data), piece):
        engine.write(data[start : start + piece])
    engine.close()
    return b"".join(out)


@pytest.mark.parametrize("compression", [comp.GZIP, comp.ZSTD, comp.NONE])
@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_round_trip(compression: str, size: int) -> None:
    data = sample(size)
    read = iter([packed(data, compression)])
    stream = comp.decompressing(lambda count: next(read, b""), compression)
    found = b""
    while more := stream(1 << 16):
        found += more
    assert found == data


@pytest.mark.parametrize("level", [0, 1, 6, 9])
def test_gzip_as_others_read_it(level: int) -> None:
    """The standard library and gzip(1) read it, members and all."""
    data = sample(2 * BLOCK + 77)
    made = packed(data, comp.GZIP, level=level)
    assert gzip.decompress(made) == data
    assert subprocess.run(["gzip", "-dc"], input=made, capture_output=True, check=True).stdout == data
    assert made[:8] == b"\x1f\x8b\x08" + bytes(5), "no name and no time"


def test_same_bytes_whatever_the_pieces() -> None:
    data = sample(3 * BLOCK)
    assert (
        packed(data, comp.GZIP, 1000) == packed(data, comp.GZIP, BLOCK) == packed(data, comp.GZIP, len(data))
    )


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this machine has one processor")
def test_same_bytes_whatever_the_processors() -> None:
    """A process that is held to one processor writes what one with all of them does."""
    code = (
        "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from cache.layer import compression as c;"
        "e = c.compressor(sys.stdout.buffer.write, 'gzip'); e.write(sys.stdin.buffer.read()); e.close()"
    )
    data = sample(4 * BLOCK)
    one = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True).stdout
    assert one == packed(data, comp.GZIP)


@pytest.mark.parametrize("how", ["gzip", "bzip2", "xz"])
def test_many_small_members(how: str) -> None:
    """A stream of nothing but empty members takes no longer than its length."""
    empty = subprocess.check_output([how], input=b"")
    source = io.BytesIO(empty * 30_000 + subprocess.check_output([how], input=b"end"))
    stream = comp.decompressing(source.read, how)
    started = time.process_time()
    assert stream(100) + stream(100) == b"end"
    assert time.process_time() - started < 3


def test_what_looks_compressed() -> None:
    """A tar whose first name begins as a compressed file does is a tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        made.addfile(tarfile.TarInfo("BZh9"))
    assert comp.detect(buffer.getvalue()) == comp.NONE
    assert comp.detect(gzip.compress(buffer.getvalue())) == comp.GZIP
