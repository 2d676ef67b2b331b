"""ADD of a URL: fetched, or found unchanged since it was fetched (T33, T40, T102, T108)."""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from builder.environment import Environment
from builder.errors import FetchError
from builder.events import Meter
from builder.plan.identity import identity
from builder.plan.ops import FetchUrl
from builder.plan.remote import redacted
from builder.registry.transport import Response, Transport
from builder.request import Secret
from builder.run.secrets import find_secret, one_line
from cache.digest import SnapshotId
from cache.entry import FILE, Entry
from cache.kernel import write_all
from cache.keys import CacheKey, derive
from cache.layer.snapshots import commit, draft
from cache.store import Store, write_error
from grammar.structs import as_dict, struct

_LIMIT = 1 << 40
_MODE = 0o600
_CHUNK = 1 << 20
_NAME_LIMIT = 255  # bytes, of most file systems


@struct
class Fetched:
    """A fetched file: its snapshot, and the values with which a server tells whether it changed."""

    snapshot: SnapshotId
    digest: str
    etag: str
    modified: str

    def key(self, op: FetchUrl) -> CacheKey:
        """Return the cache key: it covers the content of the file, not its URL."""
        return derive("file", {"name": op.name, "digest": self.digest, "modified": self.modified})


def fetch_url(op: FetchUrl, environment: Environment, fresh: bool) -> tuple[CacheKey, SnapshotId]:
    """Return the key and the snapshot of the file at a URL.

    A file with a checksum is taken from the store without a request. For any other the server is asked
    whether it changed. With *fresh* it is always fetched. Raises BuildError.
    """
    store = environment.store
    memo = derive(*identity(op))
    last = None if fresh else _remembered(store, memo)
    if last is not None and op.checksum:
        return last.key(op), last.snapshot
    if len(os.fsencode(op.name)) > _NAME_LIMIT:
        raise FetchError(f"{redacted(op.url)} names a file of more than {_NAME_LIMIT} bytes")
    parts = urlsplit(op.url)
    try:
        _port = parts.port
    except ValueError:  # its message would show part of a password
        hint = "in a password, write / as %2F, # as %23, ? as %3F, @ as %40"
        raise FetchError(f"{redacted(op.url)} is no URL: what follows its host is no port", hint) from None
    headers = {**_known(last), **_credentials(parts, environment.secrets)}
    transport = Transport(
        parts.netloc.rpartition("@")[2],
        parts.scheme,
        encoded=True,
        patience=environment.client.silence,
        timeout=environment.client.timeout,
    )
    try:
        response = transport.get(_asked(parts), headers)
        if response.status == 304 and last is not None:
            return last.key(op), last.snapshot
        if response.status != 200:
            raise FetchError(f"{redacted(op.url)} answered {response.status}", "check the address")
        made = _store(op, response, environment)
    finally:
        transport.close()
    store.memos.set_fetched_url(memo, as_dict(made) | {"snapshot": str(made.snapshot)})
    return made.key(op), made.snapshot


def _asked(parts: SplitResult) -> str:
    """Return the URL of the request, without fragment and credentials."""
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))


def _remembered(store: Store, memo: str) -> Fetched | None:
    known = store.memos.fetched_url(memo)
    if known is None:
        return None
    last = Fetched(SnapshotId(known["snapshot"]), known["digest"], known["etag"], known["modified"])
    return last if store.index.usable(last.snapshot) else None


def _known(last: Fetched | None) -> dict[str, str]:
    """Return the headers with which a server answers 304 if the file is unchanged."""
    if last is not None and last.etag:
        return {"If-None-Match": last.etag}
    return {}


def _credentials(parts: SplitResult, secrets: Mapping[str, Secret]) -> dict[str, str]:
    """Return the header with the credentials: of the secrets named after the host, or of the URL."""
    host = parts.hostname or ""
    if token := find_secret(secrets, f"HTTP_AUTH_TOKEN_{host}"):
        return {"Authorization": one_line(f"Bearer {token}", f"HTTP_AUTH_TOKEN_{host}")}
    if header := find_secret(secrets, f"HTTP_AUTH_HEADER_{host}"):
        return {"Authorization": one_line(header, f"HTTP_AUTH_HEADER_{host}")}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
    return {}


def _store(op: FetchUrl, response: Response, environment: Environment) -> Fetched:
    length = response.headers.get("content-length", "")
    total = int(length) if length.isascii() and length.isdigit() and len(length) < 16 else 0
    meter = Meter(f"fetching {op.name}", total, environment.sink)
    modified = response.headers.get("last-modified", "")
    when = _time(modified)
    with draft(environment.store, ()) as made:
        sha = hashlib.sha256()
        size = 0
        try:
            with open(os.path.join(made.upper, op.name), "xb", buffering=0) as file:
                for data in _content(op, response, meter, environment):
                    sha.update(data)
                    size += len(data)
                    write_all(file.fileno(), data)
                os.fchmod(file.fileno(), _MODE)
                os.utime(file.fileno(), ns=(when, when))
        except OSError as error:
            raise write_error(error, f"the content of {redacted(op.url)}") from None
        meter.finish()
        digest = "sha256:" + sha.hexdigest()
        if op.checksum and digest != op.checksum:
            raise FetchError(f"digest mismatch for {redacted(op.url)}: {digest} (expected: {op.checksum})")
        snapshot = commit(made, [Entry(op.name, FILE, _MODE, size=size, mtime=when, digest=digest[7:])])
    return Fetched(snapshot, digest, response.headers.get("etag", ""), modified)


def _content(op: FetchUrl, response: Response, meter: Meter, environment: Environment) -> Iterator[bytes]:
    """Yield the body. A gzip encoding that was not requested is decoded, as curl does."""
    inflate = None
    if response.headers.get("content-encoding") == "gzip":
        inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)
    got = 0
    try:
        for data in response.chunks(_LIMIT):
            environment.cancellation.check()
            got += len(data)
            meter.add(len(data))
            if inflate is None:
                yield data
                continue
            if inflate.eof:
                raise zlib.error("there is more after the end of what is compressed")
            packed = data
            while packed and not inflate.eof:
                environment.cancellation.check()
                yield inflate.decompress(packed, _CHUNK)
                packed = inflate.unconsumed_tail
    except (OSError, zlib.error) as error:
        raise FetchError(f"{redacted(op.url)}: {error}", "build again") from None
    length = response.headers.get("content-length", "")
    if (length.isdigit() and length != str(got)) or (inflate is not None and not inflate.eof):
        raise FetchError(f"{redacted(op.url)} broke off after {got} of {length} bytes", "build again")


def _time(modified: str) -> int:
    """Return Last-Modified in nanoseconds; 0 if the server does not send it."""
    try:
        return int(parsedate_to_datetime(modified).timestamp()) * 10**9
    except (TypeError, ValueError, OverflowError):
        return 0
