"""Anonymous bearer tokens: from a 401's challenge to the token request, without I/O."""

from __future__ import annotations

from collections.abc import Generator
from urllib.parse import quote, urlsplit

from builder.registry.errors import Unauthorized, Untrusted
from builder.registry.transport import leads_inside
from builder.strict_json import loads

TOKEN_LIMIT = 1 << 16


def parse_challenge(header: str) -> tuple[str, dict[str, str]]:
    """``Bearer realm="...",service="..."`` as its scheme and parameters; one pass, lenient."""
    scheme, _, rest = header.strip().partition(" ")
    parameters: dict[str, str] = {}
    place = 0
    while place < len(rest):
        equals = rest.find("=", place)
        if equals < 0:
            break
        key = rest[place:equals].strip(" ,\t").lower()
        place = equals + 1
        if rest[place : place + 1] == '"':
            end = rest.find('"', place + 1)
            end = len(rest) if end < 0 else end
            value, place = rest[place + 1 : end], end + 1
        else:
            end = rest.find(",", place)
            end = len(rest) if end < 0 else end
            value, place = rest[place:end].strip(), end
        parameters[key] = value
    return scheme.lower(), parameters


def anonymous_token(header: str, registry: str, repository: str) -> Generator[str, bytes, str]:
    """Yield the URL to get a token from, receive the body, return the Authorization value.

    The realm must be https (or the registry's own origin's scheme on the same host) and not
    a private address other than the registry's (REG-06). Raises Unauthorized and Untrusted.
    """
    scheme, parameters = parse_challenge(header)
    realm = parameters.get("realm", "")
    if scheme != "bearer" or not realm:
        raise Unauthorized(
            f"{registry}/{repository} needs credentials", "private images are not supported in this version"
        )
    try:
        parts = urlsplit(realm)
        host, _port = parts.hostname or "", parts.port
    except ValueError:
        raise Untrusted(f"{registry} sends token requests to what is no URL") from None
    own = urlsplit(f"//{registry}").hostname == host
    if parts.username is not None or (parts.scheme != "https" and not (parts.scheme == "http" and own)):
        raise Untrusted(f"{registry} sends token requests to {parts.scheme}://{host}, which is not safe")
    if leads_inside(registry, host):
        raise Untrusted(f"{registry} sends token requests to {host}, which is not on the internet")
    query = f"scope={quote(f'repository:{repository}:pull', safe='')}"
    if service := parameters.get("service"):
        query += f"&service={quote(service, safe='')}"
    body = yield f"{realm}{'&' if parts.query else '?'}{query}"
    answer = loads(body, f"the token from {host}", TOKEN_LIMIT)
    token = answer.get("token") or answer.get("access_token") if isinstance(answer, dict) else None
    if not isinstance(token, str) or not token.isprintable():
        raise Untrusted(f"{host} answered a token request without a token")
    return f"Bearer {token}"
