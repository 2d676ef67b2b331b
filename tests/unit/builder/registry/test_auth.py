"""What answers a challenge: Basic, or a token from a token server."""

from __future__ import annotations

import json
import math

import pytest

from builder.registry.auth import Grant, TokenRequest, authorization, parse_challenges
from builder.registry.credentials import Credentials
from builder.registry.errors import Unauthorized, Untrusted

ME = Credentials("me", "secret")
BEARER = 'Bearer realm="https://auth.test/token",service="registry.test"'


def grant(
    challenges: tuple[str, ...], credentials: Credentials, answer: object = None
) -> tuple[TokenRequest | None, Grant]:
    """Return the request for a token, if there was one, and the result of the flow."""
    flow = authorization(challenges, "registry.test", False, ("repository:x:pull",), credentials)
    asked = None
    try:
        asked = next(flow)
        flow.send(json.dumps(answer).encode())
    except StopIteration as done:
        found: Grant = done.value
        return asked, found
    raise AssertionError("the flow has not ended")


@pytest.mark.parametrize(
    "header, wanted",
    [
        ("Basic realm=x", [("basic", {"realm": "x"})]),
        (
            "Negotiate, " + BEARER,
            [("negotiate", {}), ("bearer", {"realm": "https://auth.test/token", "service": "registry.test"})],
        ),
        ('Bearer realm="a\\"b"', [("bearer", {"realm": 'a"b'})]),
        ("", []),
        ('Bearer realm="open', [("bearer", {"realm": "open"})]),
    ],
)
def test_challenges(header: str, wanted: list[tuple[str, dict[str, str]]]) -> None:
    assert parse_challenges(header) == wanted


def test_basic() -> None:
    assert grant(("Basic",), ME) == (None, Grant("Basic bWU6c2VjcmV0"))
    with pytest.raises(Unauthorized, match="needs credentials"):
        grant(("Basic",), Credentials())


def test_bearer_goes_before_basic() -> None:
    asked, found = grant(("Basic", BEARER), ME, {"token": "t", "expires_in": 300})
    assert found == Grant("Bearer t", 300.0) and asked is not None
    assert asked.url == "https://auth.test/token?scope=repository%3Ax%3Apull&service=registry.test"
    assert asked.headers == {"Authorization": "Basic bWU6c2VjcmV0"} and asked.body is None


def test_lifetimes() -> None:
    lives = [
        grant((BEARER,), ME, {"access_token": "t", "expires_in": text})[1].lifetime
        for text in (None, -1, True, "9", 10**9)
    ]
    assert lives == [60, 60, 60, 60, 86400]
    assert grant(("Basic",), ME)[1].lifetime == math.inf


def test_an_identity_token_is_posted() -> None:
    asked, _found = grant((BEARER,), Credentials(identity_token="i"), {"token": "t"})
    assert asked is not None and asked.body is not None and b"refresh_token=i" in asked.body
    assert "Authorization" not in asked.headers


@pytest.mark.parametrize(
    "realm",
    ["http://auth.test/", "https://me:x@auth.test/", "ftp://a/", "https://[", "https://169.254.169.254/"],
)
def test_REG_06_unsafe_realms(realm: str) -> None:
    with pytest.raises(Untrusted):
        grant((f'Bearer realm="{realm}"',), ME, {"token": "t"})


@pytest.mark.parametrize("answer", [[], {}, {"token": 3}, {"token": "a\nb"}, {"token": "\u00e9"}])
def test_answers_without_a_token(answer: object) -> None:
    with pytest.raises(Untrusted):
        grant((BEARER,), ME, answer)
