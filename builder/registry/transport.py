"""HTTP for registries: retries, redirects and limits in one place. The only user of urllib3.

Redirects are followed here, not by the library: credentials stay with the origin they were
made for, https never becomes http, and an address on a private or loopback network is only
followed if the registry itself is there (security.md REG-06 to REG-10). Bodies are never
decompressed in transit (D11).
"""

from __future__ import annotations

import contextlib
import ipaddress
import random
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO
from urllib.parse import urljoin, urlsplit

import urllib3

from builder.registry.errors import Unavailable, Untrusted

_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 10
_TRIES = 6
_CONNECT_TRIES = 3  # nobody listens, or the name is not known: seldom cured by waiting
_FIRST_DELAY = 0.5
_LONGEST_DELAY = 30.0
_LONGEST_RETRY_AFTER = 60.0
_CONNECT_TIMEOUT = 15.0
_READ_TIMEOUT = 60.0
_CHUNK = 1 << 18


# What is sent: bytes, or a file that is opened anew for each try; its size is in a header.
Body = bytes | Callable[[], BinaryIO]


class _NotConnected(OSError):
    """No connection could be made."""


@dataclass(slots=True)
class Response:
    """Status, headers and the stream of a body."""

    status: int
    headers: Mapping[str, str]
    url: str
    _raw: Any

    def read(self, limit: int, what: str) -> bytes:
        """The whole body. Raises Untrusted when it is longer than *limit* bytes."""
        data = b"".join(self.chunks(limit + 1))
        if len(data) > limit:
            raise Untrusted(f"{what} is longer than {limit} bytes")
        return data

    def discard(self) -> None:
        """Let go of the answer, whatever more there is of it."""
        with contextlib.suppress(OSError):
            for _ in self.chunks(_CHUNK):
                pass

    def chunks(self, limit: int) -> Iterator[bytes]:
        """The body in pieces, at most about *limit* bytes. Raises OSError when it breaks off."""
        left = limit
        try:
            while left > 0 and (data := self._raw.read(min(_CHUNK, left), decode_content=False)):
                left -= len(data)
                yield data
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise OSError(f"the connection broke off: {error}") from None
        finally:
            self._raw.close()


@dataclass(slots=True)
class Transport:
    """A connection pool to one registry, or other server. ``sleep`` and ``jitter`` are seams for tests."""

    registry: str
    scheme: str = "https"
    encoded: bool = False  # a body may come compressed, the caller sees to it
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random
    _pool: Any = field(default=None)

    def __post_init__(self) -> None:
        timeout = urllib3.Timeout(connect=_CONNECT_TIMEOUT, read=_READ_TIMEOUT)
        proxy = _proxy_for(self.registry, self.scheme)
        if proxy:
            self._pool = urllib3.ProxyManager(proxy, timeout=timeout, retries=False, blocksize=_CHUNK)
        else:
            self._pool = urllib3.PoolManager(timeout=timeout, retries=False, blocksize=_CHUNK, maxsize=8)

    def close(self) -> None:
        self._pool.clear()

    def get(self, url: str, headers: Mapping[str, str]) -> Response:
        """GET; see ``request``."""
        return self.request("GET", url, headers)

    def request(
        self, method: str, url: str, headers: Mapping[str, str], body: Body | None = None, tries: int = _TRIES
    ) -> Response:
        """A request with retries and safe redirects. Any final status is returned, not raised.

        *body* is sent anew in each of the *tries*. Raises Unavailable after the last and Untrusted
        for an unsafe redirect.
        """
        failure, attempt = "", 0
        while attempt < tries:
            response = None
            try:
                response = self._follow(method, url, dict(headers), body)
            except _NotConnected as error:
                failure, tries = str(error), min(tries, _CONNECT_TRIES)
            except OSError as error:
                failure = str(error)
            if response is not None and response.status not in _TRANSIENT:
                return response
            wait = min(_LONGEST_DELAY, _FIRST_DELAY * 2**attempt) * self.jitter()
            if response is not None:
                failure = f"it answered {response.status}"
                wait = max(wait, _retry_after(response.headers))
                response._raw.close()
            attempt += 1
            if attempt < tries:
                self.sleep(wait)
        raise Unavailable(
            f"{self.registry} could not be reached: {failure[:300]}",
            "check the name, the network and any proxy",
        )

    def _follow(self, method: str, url: str, headers: dict[str, str], body: Body | None) -> Response:
        origin = _origin(url)
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._once(method, url, headers, body)
            if response.status not in _REDIRECTS or "location" not in response.headers:
                return response
            if method not in ("GET", "HEAD"):
                response._raw.close()
                raise Untrusted(f"{self.registry} redirects an upload, which is not followed")
            response._raw.close()
            target = self._redirect(url, response.headers["location"])
            url = target
            if _origin(url) != origin:
                headers = {k: v for k, v in headers.items() if k.lower() not in ("authorization", "cookie")}
        raise Untrusted(f"{self.registry} redirects more than {_MAX_REDIRECTS} times")

    def _once(self, method: str, url: str, headers: dict[str, str], body: Body | None) -> Response:
        try:
            raw = self._pool.request(
                method,
                url,
                body=body() if callable(body) else body,
                headers={"Accept-Encoding": "identity", "User-Agent": "pybuild", **headers},
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except urllib3.exceptions.SSLError as error:
            if "CERTIFICATE_VERIFY_FAILED" not in str(error):
                raise OSError(str(error)) from None
            raise Untrusted(
                f"{self.registry} has no certificate that this machine trusts: {error}",
                "add its certificate authority to the machine's, or name it in SSL_CERT_FILE",
            ) from None
        except urllib3.exceptions.NewConnectionError as error:
            raise _NotConnected(str(error).rpartition("): ")[2]) from None
        except urllib3.exceptions.HTTPError as error:
            raise OSError(str(error)) from None
        found = {key.lower(): value for key, value in raw.headers.items()}
        if found.get("content-encoding", "identity") != "identity" and not self.encoded:
            raw.close()
            raise Untrusted(f"{self.registry} compressed an answer although it was told not to")
        return Response(raw.status, found, url, raw)

    def resolve(self, source: str, location: str) -> tuple[str, bool]:
        """Where a Location that came from *source* leads, and whether that is the same origin.

        Raises Untrusted where nothing is to be sent.
        """
        target = self._redirect(source, location)
        return target, _origin(target) == _origin(source)

    def _redirect(self, source: str, location: str) -> str:
        """Where *source* redirects to. Raises Untrusted where that is not to be followed."""
        try:
            target = urljoin(source, location)
            parts, _origin_of_it = urlsplit(target), _origin(target)
        except ValueError:
            raise Untrusted(f"{self.registry} redirects to what is no URL") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise Untrusted(f"{self.registry} redirects to {parts.scheme}:, which is not followed")
        if source.startswith("https:") and parts.scheme == "http":
            raise Untrusted(f"{self.registry} redirects from https to http")
        if _origin(target) != _origin(source) and leads_inside(self.registry, parts.hostname):
            raise Untrusted(f"{self.registry} sends to {parts.hostname}, which is not on the internet")
        return target


def leads_inside(registry: str, host: str) -> bool:
    """Whether *registry* names a *host* that only someone inside could reach, as it is not there itself.

    From a private network to the same kind of network is fine; a link-local address, where
    clouds keep their secrets, never is.
    """
    own = urlsplit(f"//{registry}").hostname or ""
    if host == own:
        return False
    kinds = _kinds(host) - {"internet"}
    return "other" in kinds or not kinds <= _kinds(own)


def _kinds(host: str) -> set[str]:
    """On what kinds of network *host* is. Names are looked up, so that no spelling hides one."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return {"internet"}  # only a proxy may know it
    return {_kind(ipaddress.ip_address(address[0])) for *_, address in found}


def _kind(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    if address.is_global:
        return "internet"
    if address.is_loopback:
        return "loopback"
    return "private" if address.is_private and not address.is_link_local else "other"


def is_loopback(registry: str) -> bool:
    """Whether a registry's ``host[:port]`` is on this machine; such may be asked over HTTP."""
    host = urlsplit(f"//{registry}").hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    default = 443 if parts.scheme == "https" else 80
    return parts.scheme, parts.hostname or "", parts.port or default


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds the registry asks us to wait, within reason; a date in the past is no time."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 9:
        return min(float(text), _LONGEST_RETRY_AFTER)
    try:
        moment = parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError):
        return 0.0
    return max(0.0, min(moment - time.time(), _LONGEST_RETRY_AFTER))


def _proxy_for(registry: str, scheme: str) -> str:
    """The proxy of the environment for *scheme*, unless no_proxy or loopback speaks against it."""
    from urllib.request import getproxies, proxy_bypass

    host = urlsplit(f"//{registry}").hostname or registry
    if is_loopback(registry) or proxy_bypass(host):
        return ""
    return getproxies().get(scheme, "")
