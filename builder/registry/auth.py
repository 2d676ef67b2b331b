"""Answer the challenge of a 401: by Basic, or by a bearer token from a token server. No I/O happens here."""

from __future__ import annotations

import math
import re
from collections.abc import Generator
from urllib.parse import quote, urlencode, urlsplit

from builder.registry.addresses import leads_inside
from builder.registry.credentials import Credentials
from builder.registry.errors import Unauthorized, Untrusted
from builder.support.json_strict import loads
from grammar.structs import struct

TOKEN_LIMIT = 1 << 16
# A word and, where it is a parameter, its value.
_PART = re.compile(r"""([^\s,="]+)(?:\s*(=)\s*(?:("(?:[^"\\]|\\.)*"?)|([^\s,"]*)))?""")
_ESCAPED = re.compile(r"\\(.)")
_LIFETIME = 60.0  # of a token that does not say (distribution's token specification)
_LONGEST_LIFETIME = 86400.0


def parse_challenges(header: str) -> list[tuple[str, dict[str, str]]]:
    """``Negotiate, Bearer realm="...",service="..."`` to schemes with their parameters, leniently."""
    found: list[tuple[str, dict[str, str]]] = []
    for word, equals, quoted, plain in _PART.findall(header):
        if not equals:
            found.append((word.lower(), {}))
        elif found and (quoted or plain):  # without a value it is the end of what Negotiate says
            found[-1][1].setdefault(word.lower(), _ESCAPED.sub(r"\1", quoted[1:].removesuffix('"')) or plain)
    return found


@struct
class Grant:
    """The value of an Authorization header and its lifetime in seconds."""

    value: str
    lifetime: float = math.inf


@struct
class TokenRequest:
    """A request to a token server: POST if it has a body, else GET."""

    url: str
    headers: dict[str, str]
    body: bytes | None = None


def authorization(
    challenges: tuple[str, ...],
    registry: str,
    plain: bool,
    scopes: tuple[str, ...],
    credentials: Credentials,
) -> Generator[TokenRequest, bytes, Grant]:
    """Yield a request for a token if one is needed, receive the body of its answer, and return the grant.

    *challenges* are WWW-Authenticate headers. Bearer goes before Basic; other schemes are ignored.

    The realm must be https (or http on the host of a registry that is itself *plain*) and not a
    private address other than the registry's (REG-06). Raises Unauthorized and Untrusted.
    """
    parsed = [challenge for header in challenges for challenge in parse_challenges(header)]
    bearer = (parameters for scheme, parameters in parsed if scheme == "bearer" and parameters.get("realm"))
    parameters = next(bearer, {})
    if not parameters and credentials.user and any(scheme == "basic" for scheme, _ in parsed):
        return Grant(credentials.basic())
    if credentials.registry_token:
        return Grant(f"Bearer {credentials.registry_token}")
    if not parameters:
        raise Unauthorized(f"{registry} needs credentials", f"pybuild login {registry}")
    realm = parameters["realm"]
    host = _realm_host(realm, registry, plain)
    body = yield _token_request(realm, parameters.get("service", ""), scopes, credentials)
    answer = loads(body, f"the token from {host}", TOKEN_LIMIT)
    if not isinstance(answer, dict):
        raise Untrusted(f"{host} answered a token request with something else")
    token = answer.get("token") or answer.get("access_token")
    if not isinstance(token, str) or not (token.isascii() and token.isprintable()):
        raise Untrusted(f"{host} answered a token request without a token")
    return Grant(f"Bearer {token}", _lifetime(answer.get("expires_in")))


def _realm_host(realm: str, registry: str, plain: bool) -> str:
    """Return the host of a token server after checking its URL. Raises Untrusted."""
    try:
        parts = urlsplit(realm)
        host, _port = parts.hostname or "", parts.port
    except ValueError:
        raise Untrusted(f"{registry} sends token requests to what is no URL") from None
    safe = parts.scheme == "https" or (
        parts.scheme == "http" and plain and urlsplit(f"//{registry}").hostname == host
    )
    if not safe or parts.username is not None:
        raise Untrusted(f"{registry} sends token requests to {parts.scheme}://{host}, which is not safe")
    if leads_inside(registry, host):
        raise Untrusted(f"{registry} sends token requests to {host}, which is not on the internet")
    return host


def _lifetime(stated: object) -> float:
    """Return the lifetime in seconds that a token server states, within limits."""
    if isinstance(stated, int) and not isinstance(stated, bool) and stated > 0:
        return min(float(stated), _LONGEST_LIFETIME)
    return _LIFETIME


def _token_request(
    realm: str, service: str, scopes: tuple[str, ...], credentials: Credentials
) -> TokenRequest:
    given = [("service", service)] if service else []
    if credentials.identity_token:
        form = [("grant_type", "refresh_token"), ("client_id", "pybuild"), *given]
        form += [("scope", " ".join(scopes)), ("refresh_token", credentials.identity_token)]
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return TokenRequest(realm, headers, urlencode(form).encode())
    query = urlencode([("scope", scope) for scope in scopes] + given, quote_via=quote, safe="")
    url = f"{realm}{'&' if urlsplit(realm).query else '?'}{query}"
    return TokenRequest(url, {"Authorization": credentials.basic()} if credentials.user else {})
