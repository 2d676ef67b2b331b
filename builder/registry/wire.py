"""Answers of http.client with limits of time and size, for servers that may never finish one.

Each byte passes ``_Wire``, which holds the deadlines. A head has one deadline. A body must have a minimum
rate, which counts its chunk lines too. Interim answers, chunk extensions and trailers are limited in bytes.
"""

from __future__ import annotations

import http.client
import io
import math
import re
import socket
import time
from typing import Any

from builder.registry import limits
from builder.request import ClientOptions

_BUFFER = 1 << 16
_SIZE = re.compile(rb"[ \t]*([0-9a-fA-F]{1,15})[ \t]*(?:;.*)?", re.DOTALL)
_PLAIN = re.compile(rb"([0-9a-fA-F]{1,15})\r\n")
_USUAL_LINE = 16  # bytes: a longer one says more than a size


class TooSlow(TimeoutError):
    """A server sends data, but too slowly. The message is for users."""


class _Wire(io.RawIOBase):
    """The bytes of a connection, in time or not at all: raises TimeoutError, HTTPException for a head
    that is too long.
    """

    def __init__(self, raw: Any, connection: socket.socket, silence: float) -> None:
        self._raw = raw
        self._connection = connection
        self.silence = silence
        self.end = time.monotonic() + silence
        self.is_head = True
        self._waited = 0.0
        self._brought = 0

    def readinto(self, buffer: Any) -> int:
        begun = time.monotonic()
        left = min(self.silence, self.end - begun)
        if left <= 0:
            raise TooSlow("it did not come to an end in time")
        self._connection.settimeout(left)
        count: int = self._raw.readinto(buffer)
        self._waited += time.monotonic() - begun
        self._brought += count
        if self.is_head:
            if self._brought > limits.HEAD:
                raise http.client.HTTPException(f"its headers are longer than {limits.HEAD} bytes")
        elif self._waited > self.silence:
            if count and self._brought < limits.SLOWEST * self._waited:
                raise TooSlow(f"it sends less than {limits.SLOWEST} bytes a second")
            self._waited, self._brought = 0.0, 0
        return count

    def begin_body(self) -> None:
        self.is_head, self.end, self._waited, self._brought = False, math.inf, 0.0, 0

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class Answer(http.client.HTTPResponse):
    """An answer whose head must arrive within the timeout of *connection*."""

    def __init__(self, connection: socket.socket, *given: Any, **named: Any) -> None:
        super().__init__(connection, *given, **named)
        raw = self.fp.detach()
        self._wire = _Wire(raw, connection, connection.gettimeout() or ClientOptions().silence)
        self.fp = io.BufferedReader(self._wire, _BUFFER)
        self._line = b""  # what has come of a line
        self._left = 0  # bytes of this chunk that are still to come
        self._after = False  # whether the line after a chunk is next
        self._trailers = False
        self._complete = False
        self._aside = 0
        self._ready = bytearray()

    def finish_within(self, silence: float, end: float = math.inf) -> None:
        """Allow *silence* seconds without bytes from now on, and bytes until *end* (monotonic)."""
        self._wire.silence = silence
        self._wire.end = end

    def begin(self) -> None:
        super().begin()
        self._wire.begin_body()

    def _read_status(self) -> tuple[str, int, str]:
        """Return the final status, after interim ones (100 to 199)."""
        for _ in range(limits.INTERIM + 1):
            found: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]
            if not 100 <= found[1] < 200 or found[1] == http.HTTPStatus.SWITCHING_PROTOCOLS:
                return found
            http.client.parse_headers(self.fp)
        raise http.client.HTTPException(f"it answered more than {limits.INTERIM} times that it will answer")

    def read1(self, n: int = -1) -> bytes:
        if not self.chunked or self.fp is None:
            return super().read1(n)
        while not self._ready and not self._complete:
            came = self.fp.read1(_BUFFER)
            if not came:
                raise http.client.IncompleteRead(b"")
            self._dechunk(came)
        count = len(self._ready) if n < 0 else n
        out = bytes(self._ready[:count])
        del self._ready[:count]
        return out

    def _dechunk(self, came: bytes) -> None:
        """Parse received bytes: the content of chunks goes into ``_ready``."""
        data, place = self._line + came, 0
        size = len(data)
        while place < size and not self._complete:
            if self._left:
                part = data[place : place + self._left]
                self._ready += part
                self._left -= len(part)
                place += len(part)
                continue
            if not self._after and not self._trailers:
                place = self._whole_chunks(data, place)
            end = data.find(b"\n", place)
            if end < 0:
                break
            line = data[place:end].removesuffix(b"\r")
            place = end + 1
            if self._after:
                if line:
                    raise http.client.HTTPException("a chunk is longer than it says")
                self._after = False
            elif self._trailers:
                self._complete = not line
                self._count(len(line) + 2)
            else:
                self._begin_chunk(line)
        self._line = data[place:]
        if len(self._line) > limits.CHUNK_LINE:
            raise http.client.LineTooLong("chunk")

    def _whole_chunks(self, data: bytes, place: int) -> int:
        """Take complete chunks without extensions, the common case; return where they end."""
        ready, match = self._ready, _PLAIN.match
        while (found := match(data, place)) is not None:
            begin = found.end()
            end = begin + int(found[1], 16)
            if end == begin or data[end : end + 2] != b"\r\n":
                break
            ready += data[begin:end]
            place = end + 2
        return place

    def _begin_chunk(self, line: bytes) -> None:
        stated = _SIZE.fullmatch(line)
        if stated is None or len(line) > limits.CHUNK_LINE:
            raise http.client.HTTPException("the size of a chunk is no number")
        if len(line) > _USUAL_LINE:
            self._count(len(line))
        self._left = int(stated[1], 16)
        self._trailers = not self._left
        self._after = not self._trailers

    def _count(self, length: int) -> None:
        self._aside += length
        if self._aside > limits.ASIDE:
            raise http.client.HTTPException(f"it says more than {limits.ASIDE} bytes beside the body")
