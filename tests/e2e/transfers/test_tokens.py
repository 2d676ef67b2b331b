"""Tokens that end, are never good, or are asked for in odd ways."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from clients import client
from faults import Answer, Exchange, Listener

from builder.registry.client import Registry
from builder.registry.credentials import Credentials
from builder.registry.errors import RegistryError, Unauthorized
from builder.registry.transport import Transport

pytestmark = pytest.mark.e2e

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Tokens:
    """A registry whose tokens end: each is good for so many requests, or seconds as it says."""

    def __init__(self, server: Listener, good_for: int, expires_in: object = None) -> None:
        self.server = server
        self.given = 0
        self.left = 0
        self.good_for = good_for
        self.expires_in = expires_in
        server.answer = self.answer

    def answer(self, exchange: Exchange) -> None:
        asked = exchange.asked
        if asked.route == "/token":
            self.given, self.left = self.given + 1, self.good_for
            extra = "" if self.expires_in is None else f', "expires_in": {self.expires_in}'
            exchange.send(Answer(200, {}, f'{{"token": "t{self.given}"{extra}}}'.encode()))
        elif asked.headers.get("authorization") == f"Bearer t{self.given}" and self.left > 0:
            self.left -= 1
            exchange.send(Answer(200, {"Content-Type": MANIFEST}, b"{}"))
        else:
            challenge = f'Bearer realm="http://{self.server.host}/token",service="s"'
            exchange.send(Answer(401, {"WWW-Authenticate": challenge}))


def test_token_is_renewed(server: Listener) -> None:
    """One that ends early is replaced by one new one, for as many threads as there are."""
    tokens = Tokens(server, 10)
    with client(server.host) as registry:
        for _ in range(25):
            assert registry.manifest("x", "1").data == b"{}"
        assert tokens.given == 3
        tokens.left = 0
        tokens.good_for = 1000
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: registry.manifest("x", "1"), range(16)))
    assert tokens.given == 4


def test_token_is_renewed_in_time(server: Listener) -> None:
    """Before it ends, so that no upload is sent in vain; one that does not say is good for a minute."""
    tokens = Tokens(server, 1000, expires_in=1)
    with client(server.host) as registry:
        registry.manifest("x", "1")
        time.sleep(0.8)
        registry.manifest("x", "1")
        assert tokens.given == 2 and [asked.route for asked in server.asked].count("/v2/x/manifests/1") == 3


@pytest.mark.parametrize("expires_in", ["0", "-5", '"soon"', "1e400", "true", "null", "99999999999999999999"])
def test_token_with_an_odd_lifetime(server: Listener, expires_in: str) -> None:
    tokens = Tokens(server, 1000, expires_in)
    with client(server.host) as registry:
        for _ in range(3):
            registry.manifest("x", "1")
    assert tokens.given == 1


def test_token_that_is_never_good(server: Listener) -> None:
    tokens = Tokens(server, 0)
    with client(server.host) as registry, pytest.raises(RegistryError, match="not allowed"):
        registry.manifest("x", "1")
    assert tokens.given == 1 and len(server.asked) == 3


def test_two_challenges(server: Listener) -> None:
    """Bearer is taken where Basic is offered first, or last."""
    Tokens(server, 100)
    usual = server.answer

    def both(exchange: Exchange) -> None:
        if exchange.asked.route == "/token" or "authorization" in exchange.asked.headers:
            return usual(exchange)
        realm = f'Bearer realm="http://{server.host}/token"\r\nWWW-Authenticate: Basic realm="x"'
        exchange.send(Answer(401, {"WWW-Authenticate": realm}))

    server.answer = both
    with client(server.host) as registry:
        assert registry.manifest("x", "1").data == b"{}"


@pytest.mark.parametrize(
    "offered",
    [('Negotiate', 'Basic realm="x"'), ('Negotiate, Basic realm="x"',), ('Basic realm="x", Negotiate',),
     ('Negotiate YII=', 'NTLM', 'Digest realm="d", nonce="n", qop="auth,auth-int"', 'basic realm="x"'),
     ('Bearer', 'Basic realm="x"'), ('Basic',), ('Negotiate, Bearer realm="http://HOST/token"',)],
)  # fmt: skip
def test_challenges_of_other_kinds(server: Listener, offered: tuple[str, ...]) -> None:
    """The scheme that is known is taken, wherever it stands."""
    Tokens(server, 100)
    usual = server.answer
    basic = Credentials("me", "pw").basic()

    def answer(exchange: Exchange) -> None:
        given = exchange.asked.headers.get("authorization", "")
        if exchange.asked.route == "/token" or given.startswith("Bearer"):
            return usual(exchange)
        if given == basic:
            return exchange.send(Answer(200, {"Content-Type": "application/json"}, b"{}"))
        lines = "\r\nWWW-Authenticate: ".join(offered).replace("HOST", server.host)
        exchange.send(Answer(401, {"WWW-Authenticate": lines}))

    server.answer = answer
    transport = Transport(server.host, "http", sleep=lambda _: None)
    with Registry(server.host, transport=transport, credentials=Credentials("me", "pw")) as registry:
        assert registry.manifest("x", "1").data == b"{}"
    with Registry(server.host, transport=transport, credentials=Credentials()) as registry:
        if "token" not in str(offered):
            with pytest.raises(Unauthorized, match="needs credentials"):
                registry.manifest("x", "1")
