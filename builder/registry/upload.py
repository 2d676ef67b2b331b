"""Upload of one blob to a registry (distribution-spec 1.1, "Pushing blobs").

POST starts an upload and returns its Location, which each answer may change. One PUT sends the whole blob.
If that breaks, or is too large for the registry or a proxy, the rest is sent in chunks by PATCH: a GET of
the Location returns how much has arrived. A PUT without bytes completes the upload.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import BinaryIO, cast
from urllib.parse import quote

from builder.registry.addresses import same_origin
from builder.registry.errors import Unauthorized, Untrusted
from builder.registry.session import Session
from builder.registry.transport import TRANSIENT, Body, BrokenOff, Response
from cache.descriptor import Descriptor
from grammar.structs import struct

_CHUNK = 16 << 20  # bytes of a PATCH
_SMALLEST_CHUNK = 1 << 18  # what no proxy finds too large
_PROGRESS = 1 << 20  # bytes that have to arrive before an upload breaks off, to be no failure
_STREAM = "application/octet-stream"
_TOO_LARGE = 413
_TAKEN = (201, 202, 204)
_ENDED = (201, 204)
_MAYBE_CHUNKS = (400, 404, 405, 411, 415, 501)  # what registries say that take uploads in chunks only


@struct(frozen=False)
class Upload:
    """The state of one upload. ``_location`` is "" before it is begun, ``_arrived`` the bytes that the
    registry has, ``_chunk`` the size of a PATCH, 0 while the whole is sent by one PUT.
    """

    session: Session
    repository: str
    descriptor: Descriptor
    path: str
    progress: Callable[[int], None]
    _location: str = ""
    _own: bool = True  # whether the location is the registry itself, which gets credentials
    _arrived: int = 0
    _chunk: int = 0
    _smallest: int = _SMALLEST_CHUNK
    _whole_refused: bool = False
    _refusals: int = 0  # of the whole, which may be because only chunks are taken
    _gone: int = 0  # uploads that the registry did not know when the first chunk came
    _counted: int = 0
    _moved: float = 0.0  # when bytes were sent last, in monotonic seconds

    def run(self, mount_from: str | None) -> bool:
        """Have the blob mounted from the repository *mount_from*, or send it.

        Return True if bytes were sent. Raises RegistryError.
        """
        failures, best, wasted = 0, 0, 0.0
        while True:
            self._moved = time.monotonic()
            if not self._location:
                if failures and has_blob(self.session, self.repository, self.descriptor):
                    self._show(self.descriptor.size)  # only the answer was lost
                    return True
                if self._begin(mount_from):
                    self._show(self.descriptor.size)
                    return False
                mount_from = None
            response = None
            try:
                response = self._send_chunks() if self._chunk else self._send_whole()
                if response is None:
                    return True
                why = f"it answered {response.status} {response.detail()}".strip()
                response.discard()
            except BrokenOff as error:
                why = str(error)
                self._look()
            failures += 1
            wasted += time.monotonic() - self._moved
            if self._arrived - best >= _PROGRESS:
                failures, best, wasted = 1, self._arrived, 0.0
            if failures >= self.session.transport.tries or wasted >= self.session.transport.timeout:
                raise self.session.transport.give_up(f"{self._what} broke off: {why}")
            self.session.transport.pause(failures, response)

    @property
    def _what(self) -> str:
        return f"the upload of {self.session.name}/{self.repository}@{self.descriptor.digest}"

    def _begin(self, mount_from: str | None) -> bool:
        """Start an upload. Return True if the blob was mounted, so that nothing is to be sent."""
        start = f"{self.session.base}/{quote(self.repository)}/blobs/uploads/"
        scopes = push_scopes(self.repository)
        self._arrived = 0
        self._show(0)
        response = self._mount(start, mount_from) if mount_from else None
        if response is None:
            response = self.session.ask("POST", start, scopes, {"Content-Length": "0"}, b"")
        if response.status == 201 and mount_from:
            return True
        if response.status != 202:
            raise self.session.failure(response, f"starting {self._what}")
        least = response.headers.get("oci-chunk-min-length", "")
        if least.isascii() and least.isdigit() and len(least) < 12:
            self._smallest = max(_SMALLEST_CHUNK, int(least))
        self._move(response)
        return False

    def _mount(self, start: str, mount_from: str) -> Response | None:
        """Ask the registry to mount the blob. Return its answer, None where it refuses."""
        url = f"{start}?mount={self.descriptor.digest}&from={quote(mount_from, safe='')}"
        scopes = (*push_scopes(self.repository), f"repository:{mount_from}:pull")
        try:
            response = self.session.ask("POST", url, scopes, {"Content-Length": "0"}, b"")
        except Unauthorized:
            return None
        return response if response.status in (201, 202) else None

    def _send_whole(self) -> Response | None:
        """PUT all bytes. Return None if they arrived, else an answer after which a retry may help."""
        response = self._put(0, self.descriptor.size)
        if response.status in _ENDED:
            response.discard()
            return None
        if response.status == _TOO_LARGE:
            self._whole_refused = True
            self._chunk = max(_CHUNK, self._smallest)
        elif response.status in TRANSIENT:
            self._chunk = max(_CHUNK, self._smallest)
        elif response.status in _MAYBE_CHUNKS and not self._refusals:
            self._refusals += 1
            self._whole_refused = (
                response.status != 404
            )  # else the upload may just be gone, or somewhere else
            self._chunk = max(_CHUNK, self._smallest)
        elif response.status != 416:
            raise self.session.failure(response, self._what)
        self._location = ""
        return response

    def _send_chunks(self) -> Response | None:
        """PATCH the missing bytes and complete the upload. Return None if that worked, else the answer."""
        while self._arrived < self.descriptor.size:
            start, count = self._arrived, min(self._chunk, self.descriptor.size - self._arrived)
            response = self._patch(start, count)
            if response.status in _TAKEN and self._arrived == start + count:
                continue
            if response.status == _TOO_LARGE and self._chunk > self._smallest:
                response.discard()
                self._shrink()
                continue
            if response.status in _TAKEN:
                pass  # not all of it: counted as a failure
            elif response.status == 416 or response.status in TRANSIENT:
                self._look()
            elif response.status == 404 and (self._arrived or not self._refusals or not self._gone):
                self._location, self._gone = "", self._gone + (not self._arrived)
            elif self._whole_refused or response.status == 404:
                raise self.session.failure(response, self._what)
            else:  # it does not take chunks
                self._chunk, self._location = 0, ""
            return response
        response = self._put(self.descriptor.size, 0)
        if response.status in _ENDED:
            response.discard()
            return None
        if response.status in TRANSIENT:
            self._look()
        elif response.status in (404, 416):
            self._location = ""
        elif self._whole_refused:
            raise self.session.failure(response, self._what)
        else:
            self._chunk, self._location = 0, ""
        return response

    def _shrink(self) -> None:
        self._chunk = max(self._smallest, min(self._chunk, self.descriptor.size) // 4)

    def _look(self) -> None:
        """Ask how much has arrived. Where the registry does not know, the upload starts anew.

        Chunks become smaller: a proxy may just cut a request that is too large for it.
        """
        if self._chunk:
            self._shrink()
        self._chunk = self._chunk or max(_CHUNK, self._smallest)
        try:
            response = self._ask("GET", self._location, {}, None)
        except BrokenOff:
            self._location = ""
            return
        if response.status == 204:
            self._take(response, self._arrived)
        else:
            response.discard()
            self._location = ""

    def _put(self, start: int, count: int) -> Response:
        mark = "&" if "?" in self._location else "?"
        url = f"{self._location}{mark}digest={quote(self.descriptor.digest, safe='')}"
        headers = {"Content-Type": _STREAM, "Content-Length": str(count)}
        return self._ask("PUT", url, headers, self._slice(start, count))

    def _patch(self, start: int, count: int) -> Response:
        headers = {
            "Content-Type": _STREAM,
            "Content-Length": str(count),
            "Content-Range": f"{start}-{start + count - 1}",
        }
        response = self._ask("PATCH", self._location, headers, self._slice(start, count))
        if response.status in _TAKEN:
            self._take(response, start + count)
        return response

    def _take(self, response: Response, assumed: int) -> None:
        """Note how many bytes have arrived, *assumed* where the answer does not say, and the new Location."""
        text = response.headers.get("range", "").removeprefix("bytes=")
        first, _, last = text.partition("-")
        arrived = int(last) + 1 if first == "0" and last.isdigit() and len(last) < 19 else assumed
        # "0-0" is what registries say of an upload without bytes, and of one with a single byte.
        self._arrived = 0 if text == "0-0" and assumed != 1 else arrived
        if self._arrived > self.descriptor.size:
            raise Untrusted(f"{self.session.name} says that more has arrived of {self._what} than there is")
        self._show(self._arrived)
        if "location" in response.headers:
            self._move(response)
        else:
            response.discard()

    def _move(self, response: Response) -> None:
        """Continue at the Location of an answer, which may be at another host (REG-07)."""
        location = response.headers.get("location", "")
        response.discard()
        if not location:
            raise Untrusted(f"{self.session.name} does not say where to go on with {self._what}")
        was_own = self._own if self._location else True
        self._location = self.session.transport.resolve(response.url, location)
        self._own = was_own and same_origin(self._location, self.session.base)

    def _ask(self, method: str, url: str, headers: dict[str, str], body: Body | None) -> Response:
        """Make one try, with credentials only if the Location is at the registry. Raises BrokenOff."""
        if self._own:
            return self.session.ask_once(method, url, push_scopes(self.repository), headers, body)
        return self.session.transport.attempt(method, url, headers, body)

    def _slice(self, start: int, count: int) -> Body:
        """Return a part of the file that reports progress while it is read."""
        if not count:
            return b""

        def opened() -> BinaryIO:
            self._show(start)
            return cast(BinaryIO, _Part(self.path, start, count, lambda done: self._show(start + done)))

        return opened

    def _show(self, position: int) -> None:
        self._moved = time.monotonic()
        self.progress(position - self._counted)
        self._counted = position


def push_scopes(repository: str) -> tuple[str, ...]:
    """Return the scopes of a token for a push."""
    return (f"repository:{repository}:pull,push",)


def has_blob(session: Session, repository: str, descriptor: Descriptor) -> bool:
    """Return whether the repository has a blob. Raises RegistryError."""
    url = f"{session.base}/{quote(repository)}/blobs/{descriptor.digest}"
    response = session.ask("HEAD", url, push_scopes(repository), {})
    length = response.headers.get("content-length", str(descriptor.size))
    return response.status == 200 and length == str(descriptor.size)


class _Part(io.RawIOBase):
    """Some bytes of a file; ``read`` reports to *show* how many were read so far."""

    def __init__(self, path: str, start: int, count: int, show: Callable[[int], None]) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        self._file.seek(start)
        self._left = count
        self._done = 0
        self._show = show

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        self._done += len(data)
        self._show(self._done)
        return data

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()
