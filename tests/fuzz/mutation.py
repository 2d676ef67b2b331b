"""Change bytes at random: what fuzz targets are fed with."""

from __future__ import annotations

import random
from collections.abc import Sequence

_ODD = [b"\0", b"\xff", b"\n", b"\r\n", b"\\", b'"', b"'", b"$", b"{", b"}", b"[", b"]", b"*", b"?", b"!", b"/",
        b"..", b"-1", b"0", b"9" * 25, b"\xf0\x9f\x92\xa9", b"\xed\xa0\x80", b"${a:-$", b"<<E", b"`"]  # fmt: skip
_LONGEST = 1 << 16  # bytes of an input


def mutated(seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """Return one of *seeds* after a few random changes."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        _change(data, seeds, chance)
    return bytes(data[:_LONGEST])


def _change(data: bytearray, seeds: Sequence[bytes], chance: random.Random) -> None:
    """Make one change in *data*: to a bit or a byte, or to a run of them."""
    start = chance.randrange(len(data) + 1)
    end = min(start + chance.choice((1, 2, 4, 16, 256)), len(data))
    kind = chance.randrange(7)
    if kind == 0 and data:
        data[start - 1] ^= 1 << chance.randrange(8)
    elif kind == 1 and data:
        data[start - 1] = chance.randrange(256)
    elif kind == 2:
        del data[start:end]
    elif kind == 3:
        data[start:end] = chance.choice(_ODD)
    elif kind == 4:
        data[start:start] = chance.choice(_ODD) * chance.choice((1, 1, 2, 100))
    elif kind == 5:
        data[start:start] = bytes(data[start:end]) * chance.choice((1, 1, 3, 50))
    else:
        other = chance.choice(seeds)
        place = chance.randrange(len(other) + 1)
        data[start:end] = other[place : place + chance.choice((4, 16, 64, 512))]
