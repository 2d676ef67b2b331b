"""HTTP for registries: retries, redirects and limits in one place. The only user of urllib3.

Redirects are followed here, not by the library: credentials stay with the origin they were
made for, https never becomes http, and an address on a private or loopback network is only
followed if the registry itself is there (REG-06 to REG-10). Bodies are never
decompressed in transit (D11).
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO
from urllib.parse import quote, unquote, urljoin, urlsplit

import urllib3

from builder.errors import BuildError
from builder.registry import proxies
from builder.registry.addresses import leads_inside, origin_of, same_origin
from builder.registry.errors import Unavailable, Untrusted
from builder.registry.wire import Answer, TooSlow
from builder.request import ClientOptions
from builder.support.json_strict import loads
from grammar.structs import field, struct

TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
TRIES = 6
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 10
_CONNECT_TRIES = 3  # nobody listens, or the name is not known: seldom cured by waiting
_FIRST_DELAY = 0.5
_LONGEST_DELAY = 30.0
_LONGEST_RETRY_AFTER = 60.0
_CONNECT_TIMEOUT = 15.0
_CHUNK = 1 << 18
_KEEPING_METHOD = frozenset({307, 308})
_AS_IT_IS = "pybuild-url"
_AUTHORITY = re.compile(r"[a-zA-Z]+://[^/?#]*")
_ABSOLUTE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")
_NEVER_SENT = re.compile(r"[^\x21-\x7e]")
_IDLE_CONNECTIONS = 8
_DETAIL = 300  # characters of an error's own words that are shown


# What is sent: bytes, or a file that is opened anew for each try; its size is in a header.
Body = bytes | Callable[[], BinaryIO]


class BrokenOff(OSError):
    """The connection ended, or was silent for too long, before the answer was complete."""


class _NotConnected(BrokenOff):
    """No connection could be made."""


class _Answering:
    """A connection whose answers are bounded; the one that is read now is ``answer``.

    It asks for what the header ``_AS_IT_IS`` says, a URL that the library has not spelled anew: signatures
    are made of its bytes. That header is not sent.
    """

    answer: Answer

    def request(
        self, method: str, url: str, body: Any = None, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        given = dict(headers or {})
        if exact := given.pop(_AS_IT_IS, ""):
            url = _AUTHORITY.sub("", exact) if url.startswith("/") else exact
            url = f"/{url}" if url[:1] in ("", "?") else url
        super().request(method, url, body, given, **more)  # type: ignore[misc]

    def response_class(self, *given: Any, **named: Any) -> Answer:
        self.answer = Answer(*given, **named)
        return self.answer


class _Clear(_Answering, urllib3.connection.HTTPConnection):  # type: ignore[misc]
    pass


class _Secured(_Answering, urllib3.connection.HTTPSConnection):  # type: ignore[misc]
    pass


class _ClearPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Clear


class _SecuredPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Secured


@struct(frozen=False)
class Response:
    """Status, headers (the first of each name) and the stream of a body.

    ``data`` is the body where it was asked for whole, ``challenges`` are the headers of a 401. What is read
    whole has to be here at ``end`` (monotonic seconds); ``patience`` is seconds that nothing may come.
    """

    status: int
    headers: Mapping[str, str]
    challenges: tuple[str, ...]
    url: str
    patience: float
    end: float
    _raw: Any  # of urllib3, with a connection of ours (_Answering)
    data: bytes = b""

    def read(self, limit: int, what: str) -> bytes:
        """The whole body. Raises Untrusted when it is longer than *limit* bytes, BrokenOff."""
        data = bytearray()
        for piece in self._pieces(limit + 1, self.end):
            data += piece
        if len(data) > limit:
            raise Untrusted(f"{what} is longer than {limit} bytes")
        return bytes(data)

    def detail(self) -> str:
        """Return the text of an error answer as one printable line of limited length."""
        if "content-encoding" in self.headers:
            return ""
        if self.headers.get("content-type", "").startswith("text/html"):
            return "with a web page"
        data = self.data
        with contextlib.suppress(OSError):
            data = data or b"".join(self._pieces(_CHUNK, self.end))
        text = _stated(data) or data[: 4 * _DETAIL].decode("utf-8", "replace")
        return "".join(char if char.isprintable() else " " for char in text).strip()[:_DETAIL]

    def discard(self) -> None:
        """Discard the rest of the answer."""
        with contextlib.suppress(OSError):
            for _ in self._pieces(_CHUNK, self.end):
                pass

    def first(self, limit: int) -> bytes:
        """Return the first piece of the body, at most *limit* bytes. Raises BrokenOff."""
        return next(self._pieces(limit, self.end), b"")

    def chunks(self, limit: int) -> Iterator[bytes]:
        """The body in pieces, at most *limit* bytes.

        Raises BrokenOff where it ends too soon or is too slow.
        """
        return self._pieces(limit, math.inf)

    def _pieces(self, limit: int, end: float) -> Iterator[bytes]:
        left = limit
        try:
            if self._raw.connection is not None:  # else nothing more is to come
                self._raw.connection.answer.finish_within(self.patience, end)
            while left > 0:
                data = self._raw.read1(min(_CHUNK, left), decode_content=False)
                if not data:
                    break
                left -= len(data)
                yield data
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise BrokenOff(_reason(error)) from None
        finally:
            self._raw.close()


@struct(frozen=False)
class Transport:
    """Connections to one registry, or other server, and to where it redirects.

    After it gave up once (``lost`` says why), every request fails at once: else each of a hundred layers
    would wait as long.
    ``patience`` is seconds without an answer, ``timeout`` what all tries may take of them.
    ``sleep`` and ``jitter`` are seams for tests.
    """

    registry: str
    scheme: str = "https"
    encoded: bool = False  # a body may come compressed, the caller sees to it
    verified: bool = True  # whether the registry itself (no other host) needs a certificate that is trusted
    tries: int = TRIES
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random
    patience: float = ClientOptions().silence
    timeout: float = ClientOptions().timeout
    lost: str = ""
    _pools: dict[tuple[str, bool], urllib3.PoolManager] = field(factory=dict)

    def close(self) -> None:
        for pool in self._pools.values():
            pool.clear()

    def get(self, url: str, headers: Mapping[str, str]) -> Response:
        """GET; see ``request``."""
        return self.request("GET", url, headers)

    def request(
        self, method: str, url: str, headers: Mapping[str, str], body: Body | None = None, limit: int = 0
    ) -> Response:
        """A request with retries and safe redirects. Any final status is returned, not raised.

        *body* is sent anew in each try. With *limit* the answer's body is read within the try, at
        most that many bytes of it; without it is the caller's to read. Raises Unavailable after the
        last try, and Untrusted for what must not be followed or is too long.
        """
        if self.lost:
            raise self._unavailable()
        failures, tries = 0, self.tries
        end = time.monotonic() + self.timeout
        while True:
            response = None
            try:
                response = self.attempt(method, url, headers, body, end)
                if limit:
                    self._load(response, limit)
                if response.status not in TRANSIENT:
                    return response
                failure = f"it answered {response.status} {response.detail()}".strip()
            except _NotConnected as error:
                failure, tries = str(error), min(tries, _CONNECT_TRIES)
            except BrokenOff as error:
                failure = str(error)
            failures += 1
            wait = self._wait(failures, response)
            if failures >= tries or time.monotonic() + wait >= end:
                raise self.give_up(f"{self.registry} could not be reached: {failure[:_DETAIL]}")
            self.sleep(wait)

    def _load(self, response: Response, limit: int) -> None:
        """Read the whole body. That of an error is only shown, and may be cut."""
        if response.status >= 400:
            with contextlib.suppress(BrokenOff):
                response.data = response.first(min(limit, _CHUNK))
            response.discard()
        else:
            response.data = response.read(limit, f"what {self.registry} answered")

    def give_up(self, why: str) -> Unavailable:
        """Return the error to raise for the reason *why*. All later requests fail."""
        self.lost = why
        return self._unavailable()

    def _unavailable(self) -> Unavailable:
        hint = "check the name, the network and any proxy"
        if "it answered 429" in self.lost:
            hint = f"wait, or log in: pybuild login {self.registry}"
        return Unavailable(self.lost, hint)

    def pause(self, failures: int, response: Response | None) -> None:
        """Wait before the next try: longer after each failure, and at least as long as Retry-After says."""
        self.sleep(self._wait(failures, response))

    def _wait(self, failures: int, response: Response | None) -> float:
        wait = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** (failures - 1)) * self.jitter()
        return max(wait, _retry_after(response.headers) if response else 0.0)

    def attempt(
        self, method: str, url: str, headers: Mapping[str, str], body: Body | None = None, end: float = 0.0
    ) -> Response:
        """Make a request once, following safe redirects. Raises BrokenOff and Untrusted.

        The answer has to begin until *end* (monotonic seconds; 0: as if it was the first try). Files
        may take as long as they are, and the answer to them has its own time.
        """
        kept, origin = dict(headers), origin_of(url)
        end = math.inf if callable(body) else end or time.monotonic() + self.timeout
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._once(method, url, kept, body, end)
            if response.status not in _REDIRECTS or "location" not in response.headers:
                return response
            response.discard()
            keeps_method = method in ("GET", "HEAD") or response.status in _KEEPING_METHOD
            source, url = url, self._redirect(url, response.headers["location"])
            if not keeps_method or (method not in ("GET", "HEAD") and not same_origin(source, url)):
                raise Untrusted(f"{self.registry} redirects an upload, which is not followed")
            if origin_of(url) != origin:
                kept = {k: v for k, v in kept.items() if k.lower() not in ("authorization", "cookie")}
        raise Untrusted(f"{self.registry} redirects more than {_MAX_REDIRECTS} times")

    def _once(
        self, method: str, url: str, headers: dict[str, str], body: Body | None, end: float
    ) -> Response:
        left = end - time.monotonic()
        if left <= 0:
            raise BrokenOff("it did not come to an end in time")
        sent = body() if callable(body) else body
        try:
            raw = self._pool(url).request(
                method,
                url,
                body=sent,
                headers={
                    "Accept-Encoding": "identity",
                    "User-Agent": "pybuild",
                    **headers,
                    _AS_IT_IS: _sendable(url),
                },
                redirect=False,
                preload_content=False,
                decode_content=False,
                timeout=urllib3.Timeout(connect=min(_CONNECT_TIMEOUT, left), read=min(self.patience, left)),
            )
        except urllib3.exceptions.SSLError as error:
            raise self._tls_failure(url, str(error)) from None
        except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError) as error:
            raise _NotConnected(_reason(error)) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise BrokenOff(_reason(error)) from None
        finally:
            if sent is not None and not isinstance(sent, bytes):
                sent.close()
        found: dict[str, str] = {}
        for name, value in raw.headers.items():
            found.setdefault(name.lower(), value)
        encoding = found.get("content-encoding", "identity")
        if encoding != "identity" and not self.encoded and raw.status < 400:
            raw.close()
            raise Untrusted(f"{self.registry} compressed an answer although it was told not to")
        challenges = tuple(raw.headers.getlist("www-authenticate"))
        end = min(end, time.monotonic() + self.timeout)
        return Response(raw.status, found, challenges, url, self.patience, end, raw)

    def _pool(self, url: str) -> urllib3.PoolManager:
        """Return the connections for a URL: with its proxy, and with or without checks of certificates."""
        proxy = proxies.proxy_for(url, os.environ)
        verified = self.verified or origin_of(url)[1:] != origin_of(f"{self.scheme}://{self.registry}")[1:]
        if (proxy, verified) not in self._pools:
            self._pools.setdefault((proxy, verified), self._made(proxy, verified))
        return self._pools[proxy, verified]

    def _made(self, proxy: str, verified: bool) -> urllib3.PoolManager:
        options: dict[str, Any] = {
            "retries": False,
            "blocksize": _CHUNK,
            "maxsize": _IDLE_CONNECTIONS,
        }
        if not verified:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
            options |= {"cert_reqs": "CERT_NONE", "assert_hostname": False}
        if not proxy:
            return _bounded(urllib3.PoolManager(**options))
        parts = urlsplit(proxy)
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            options["proxy_headers"] = urllib3.make_headers(proxy_basic_auth=pair)
            proxy = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        return _bounded(urllib3.ProxyManager(proxy, **options))

    def _tls_failure(self, url: str, text: str) -> BrokenOff | Untrusted:
        """A connection that broke off while it was made may be tried again, the rest stays as it is."""
        host = urlsplit(url).netloc
        if "CERTIFICATE_VERIFY_FAILED" in text:
            return Untrusted(
                f"{host} has no certificate that this machine trusts: {text[:_DETAIL]}",
                "add its certificate authority to the machine's, or name it in SSL_CERT_FILE",
            )
        if "EOF" in text or "timed out" in text:
            return BrokenOff(text)
        hint = f"use --insecure-registry {host} if it speaks plain HTTP" if "WRONG_VERSION" in text else ""
        return Untrusted(f"{host} speaks no TLS that this machine does: {text[:_DETAIL]}", hint)

    def resolve(self, source: str, location: str) -> str:
        """Return the URL of a Location header that *source* sent. Raises Untrusted where it is unsafe."""
        return self._redirect(source, location)

    def _redirect(self, source: str, location: str) -> str:
        """Return where *source* redirects to. Raises Untrusted where that must not be followed."""
        try:
            location = _NEVER_SENT.sub(_escaped_byte, location.strip())  # a header's characters are bytes
            target = location if _ABSOLUTE.match(location) else urljoin(source, location)
            parts, _origin_of_it = urlsplit(target), origin_of(target)
        except ValueError:
            raise Untrusted(f"{self.registry} redirects to what is no URL") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise Untrusted(f"{self.registry} redirects to {parts.scheme}:, which is not followed")
        if urlsplit(source).scheme == "https" and parts.scheme == "http":
            raise Untrusted(f"{self.registry} redirects from https to http")
        if origin_of(target) != origin_of(source) and leads_inside(self.registry, parts.hostname):
            raise Untrusted(f"{self.registry} sends to {parts.hostname}, which is not on the internet")
        return target


def _sendable(url: str) -> str:
    """Return a URL as it is sent: without its fragment, and with invalid characters escaped."""
    return _NEVER_SENT.sub(lambda match: quote(match[0]), url.partition("#")[0])


def _escaped_byte(match: re.Match[str]) -> str:
    return quote(match[0].encode("latin-1", "replace"))


def _bounded(manager: urllib3.PoolManager) -> urllib3.PoolManager:
    manager.pool_classes_by_scheme = {"http": _ClearPool, "https": _SecuredPool}
    return manager


def _stated(data: bytes) -> str:
    """Return the first error of a body in the format of registries; "" for any other body."""
    try:
        value = loads(data, "an error", _CHUNK)
        first = value["errors"][0] if isinstance(value, dict) else None
        return f"{first['code']}: {first['message']}" if first else ""
    except (BuildError, LookupError, TypeError):
        return ""


def _reason(error: Exception) -> str:
    """Return why a connection failed, in words for users."""
    if isinstance(error, urllib3.exceptions.ReadTimeoutError):
        return (
            str(error.__cause__) if isinstance(error.__cause__, TooSlow) else "it said nothing for too long"
        )
    timed_out = urllib3.exceptions.ConnectTimeoutError
    if isinstance(error, timed_out) and not isinstance(error, urllib3.exceptions.NewConnectionError):
        return f"no connection in {_CONNECT_TIMEOUT:.0f} seconds"
    if isinstance(error, urllib3.exceptions.ProxyError):
        return f"the proxy: {_reason(error.original_error)}"
    if isinstance(error, urllib3.exceptions.ProtocolError) and isinstance(error.args[-1], Exception):
        error = error.args[-1]
    if isinstance(error, urllib3.exceptions.IncompleteRead):
        return f"the connection broke off after {error.partial} bytes"
    text = getattr(error, "strerror", None) or str(error)
    return str(text).rpartition("): ")[2] or type(error).__name__


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds of Retry-After, within limits."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 9:
        return min(float(text), _LONGEST_RETRY_AFTER)
    try:
        moment = parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return max(0.0, min(moment - time.time(), _LONGEST_RETRY_AFTER))
