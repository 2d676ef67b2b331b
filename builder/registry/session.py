"""Requests to one registry, authorized by a token for each scope that is renewed before it expires."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from builder.registry import proxies
from builder.registry.addresses import is_loopback, same_origin
from builder.registry.auth import TOKEN_LIMIT, authorization
from builder.registry.credentials import Credentials, CredentialStore
from builder.registry.errors import NotFound, RegistryError, Unauthorized, Untrusted
from builder.registry.transport import TRIES, Body, Response, Transport
from builder.request import ClientOptions
from grammar.structs import struct

ANSWER_LIMIT = TOKEN_LIMIT
_HUB = {"docker.io": "registry-1.docker.io"}
_PROBE_SECONDS = 5.0
_PROBES = 3
_EARLY = 60.0  # seconds before its end that a token is renewed, or a quarter of its life


@struct
class _Token:
    """An Authorization header, when it expires (monotonic seconds), and the challenges that it answers."""

    value: str
    until: float
    challenges: tuple[str, ...]


class Session:
    """One registry's ``/v2/`` (``base``). HTTPS; plain HTTP only with a loopback host or an *insecure*
    one, and only if it answers that (REG-15). The certificate of an insecure one may be anyone's.
    """

    def __init__(
        self,
        registry: str,
        options: ClientOptions,
        transport: Transport | None = None,
        credentials: Credentials | None = None,
        tries: int = TRIES,
    ) -> None:
        """*credentials* are those of docker's configuration, if None. Of the usual number of tries *tries*
        have their share of the time.
        """
        self.name = registry
        host = _HUB.get(registry, registry)
        insecure = registry in options.insecure
        self._plain = (insecure or is_loopback(registry)) and _speaks_http(host)
        scheme = "http" if self._plain else "https"
        self.base = f"{scheme}://{host}/v2"
        self.transport = transport or Transport(
            host,
            scheme,
            verified=not insecure,
            tries=tries,
            patience=options.silence * tries / TRIES,
            timeout=options.timeout * tries / TRIES,
        )
        self._given = credentials
        self._credentials: dict[str, Credentials] = {}  # by repository
        self._warnings: list[str] = []  # why there may be no credentials
        self._tokens: dict[tuple[str, ...], _Token] = {}  # by scopes
        self._authorizing = threading.Lock()

    def ask(
        self,
        method: str,
        url: str,
        scopes: tuple[str, ...],
        headers: dict[str, str],
        body: Body | None = None,
        limit: int = ANSWER_LIMIT,
    ) -> Response:
        """Make a request, and make it again with a token where the registry wants one.

        It is retried as ``Transport.request`` says; so is the meaning of *limit*. Raises RegistryError.
        """
        return self._authorized(
            url, scopes, lambda token: self.transport.request(method, url, headers | token, body, limit)
        )

    def ask_once(
        self,
        method: str,
        url: str,
        scopes: tuple[str, ...],
        headers: dict[str, str],
        body: Body | None = None,
    ) -> Response:
        """Make a request without retries, as ``Transport.attempt`` does.

        Raises RegistryError, and BrokenOff where the connection breaks.
        """
        return self._authorized(
            url, scopes, lambda token: self.transport.attempt(method, url, headers | token, body)
        )

    def _authorized(
        self, url: str, scopes: tuple[str, ...], send: Callable[[dict[str, str]], Response]
    ) -> Response:
        """Send with the token for *scopes*, and again with a new one after a 401."""
        token = self._token(scopes)
        response = send(_header(token))
        if response.status == 401 and response.challenges and same_origin(response.url, url):
            response.discard()
            response = send(_header(self._renewed(scopes, token, response.challenges)))
        if response.status == 401 and not same_origin(response.url, url):
            response.discard()
            elsewhere = urlsplit(response.url).netloc
            raise Untrusted(f"{self.name} redirects to {elsewhere}, which wants credentials")
        return response

    def _token(self, scopes: tuple[str, ...]) -> str | None:
        """Return the token for *scopes*, renewed shortly before it expires; None before the first."""
        token = self._tokens.get(scopes)
        if token is None:
            return None
        if time.monotonic() < token.until:
            return token.value
        return self._renewed(scopes, token.value, token.challenges)

    def _renewed(self, scopes: tuple[str, ...], old: str | None, challenges: tuple[str, ...]) -> str:
        """Return a token other than *old*: one that another thread has got meanwhile, or a new one."""
        with self._authorizing:
            token = self._tokens.get(scopes)
            if token is None or token.value == old:
                token = self._authorization(challenges, scopes)
                self._tokens[scopes] = token
            return token.value

    def _authorization(self, challenges: tuple[str, ...], scopes: tuple[str, ...]) -> _Token:
        credentials = self._given or self._found(scopes[0].split(":")[1] if scopes else "")
        flow = authorization(challenges, self.name, self._plain, scopes, credentials)
        asked_at = time.monotonic()
        try:
            asked = next(flow)
            method = "GET" if asked.body is None else "POST"
            response = self.transport.request(method, asked.url, asked.headers, asked.body, TOKEN_LIMIT)
            if response.status != 200:
                whose = "for nobody" if credentials.anonymous else "for these credentials"
                raise Unauthorized(f"{self.name} gave no token {whose} ({response.status})")
            flow.send(response.data)
        except StopIteration as done:
            grant = done.value
            good = grant.lifetime - min(_EARLY, grant.lifetime / 4)
            return _Token(grant.value, asked_at + good, challenges)
        except Unauthorized as error:
            raise Unauthorized(error.message, self._login_hint()) from None
        raise AssertionError("a token takes one request")

    def _found(self, repository: str) -> Credentials:
        """Return the stored credentials for a repository ("": for the registry)."""
        if repository not in self._credentials:
            store = CredentialStore()
            self._credentials[repository] = store.find(self.name, repository)
            self._warnings = store.warnings
        return self._credentials[repository]

    def _login_hint(self) -> str:
        return "; ".join([*self._warnings, f"run pybuild login {self.name}"])

    def failure(self, response: Response, what: str) -> RegistryError:
        """Return the error for an answer with an unexpected status."""
        detail = response.detail()
        response.discard()
        if response.status == 404:
            return NotFound(f"{what} does not exist ({detail})", "check the name and the tag")
        if response.status in (401, 403):
            hint = f"{self._login_hint()}, as a user with access"
            return Unauthorized(f"{what}: not allowed with these credentials ({detail})", hint)
        return RegistryError(f"{self.name} answered {response.status} for {what}: {detail}")


def _header(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": token}


def _speaks_http(host: str) -> bool:
    """Return whether a registry answers plain HTTP. The probe sends no credentials."""
    if proxies.proxy_for(f"http://{host}/v2/", os.environ):
        return True  # who is insecure and behind a proxy cannot be looked at
    parts = urlsplit(f"//{host}")
    for _ in range(_PROBES):
        try:
            address = (parts.hostname or "", parts.port or 80)
            with socket.create_connection(address, timeout=_PROBE_SECONDS) as connection:
                connection.settimeout(_PROBE_SECONDS)
                connection.sendall(f"GET /v2/ HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
                answer = connection.recv(64)
        except ConnectionResetError:
            continue
        except OSError:
            break
        # A TLS server answers with an alert or, in words, with 400; a server beside it may send there.
        return answer.startswith(b"HTTP/") and answer[9:12] != b"400" and answer[9:10] != b"3"
    return False
