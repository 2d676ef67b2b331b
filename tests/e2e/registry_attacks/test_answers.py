"""Answers that lie, are too large, too slow, or compressed (REG-01 to REG-04, REG-11)."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable
from typing import Any

import pytest
from faults import Answer, Exchange
from stages import DATA, INDEX, MANIFEST, Stage, challenge, client, config_of, get, get_blob, guard

from builder.errors import BuildError
from builder.registry.errors import NotFound, Unavailable, Untrusted
from cache.digest import digest_of

pytestmark = pytest.mark.e2e


LIES: dict[str, Answer] = {
    "other": Answer(200, {}, DATA[::-1]),
    "truncated": Answer(200, {}, DATA[:-1]),
    "empty": Answer(200, {}, b""),
    "longer": Answer(200, {}, DATA + b"x"),
    "much-longer": Answer(200, {}, DATA * 50),
    "says-shorter": Answer(200, {"Content-Length": str(len(DATA) - 5)}, DATA),
    "no-length-and-longer": Answer(200, {"Content-Length": "", "Connection": "close"}, DATA + b"x"),
}


@pytest.mark.parametrize("kind", LIES)
def test_REG_01_blob(server: Stage, kind: str) -> None:
    server.blob(DATA)
    assert get_blob(server, DATA) == DATA

    def lie(exchange: Exchange) -> None:
        exchange.send(LIES[kind])
        exchange.end()

    server.answers[f"/v2/x/blobs/{digest_of(DATA)}"] = lie
    server.asked.clear()
    with pytest.raises((Untrusted, Unavailable)):
        get_blob(server, DATA)
    assert len(server.asked) <= 8


def test_REG_02_manifest_by_digest(server: Stage) -> None:
    """The body's digest decides; what headers say of it does not count."""
    right = b'{"right": 1}'
    name = server.manifest(right)
    assert get(server, name) == right
    server.answers[f"/v2/x/manifests/{name}"] = Answer(
        200, {"Content-Type": MANIFEST, "Docker-Content-Digest": name}, b'{"wrong": 1}'
    )
    with pytest.raises(Untrusted, match="has the digest"):
        get(server, name)
    lying = {"Content-Type": MANIFEST, "Docker-Content-Digest": "sha256:" + "0" * 64}
    server.answers["/v2/x/manifests/latest"] = Answer(200, lying, right)
    with client(server) as registry:
        assert registry.manifest("x", "latest").digest == name


def test_REG_02_tag_that_moves(server: Stage) -> None:
    """A tag is asked for once; from there on digests are."""
    server.image()
    config_of(server)
    assert [asked.method for asked in server.asked if asked.route.endswith("/latest")] == ["GET"]


def ambiguous(image: dict[str, Any]) -> dict[str, tuple[dict[str, Any], str]]:
    return {
        "both": ({**image, "manifests": []}, MANIFEST),
        "both-as-index": ({**image, "manifests": [], "mediaType": INDEX}, INDEX),
        "image-as-index": (image, INDEX),
        "index-as-image": ({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}, MANIFEST),
        "index-without-type": ({**{k: v for k, v in image.items() if k != "mediaType"}}, INDEX),
    }


@pytest.mark.parametrize(
    "kind", ["both", "both-as-index", "image-as-index", "index-as-image", "index-without-type"]
)
def test_REG_03_two_in_one(server: Stage, kind: str) -> None:
    image = server.image()
    config_of(server)
    value, media = ambiguous(image)[kind]
    server.manifest(value, media)
    with pytest.raises(Untrusted):
        config_of(server)


@pytest.mark.parametrize("media", [MANIFEST, f"{MANIFEST}; charset=utf-8", "application/json", ""])
def test_REG_03_benign(server: Stage, media: str) -> None:
    """Parameters are ignored, and servers that know no types are no liars."""
    server.manifest(server.image(), media)
    config_of(server)


def endless(status: int, headers: dict[str, str]) -> tuple[Callable[[Exchange], None], list[int]]:
    """A body without an end; how much of it was taken."""
    taken: list[int] = []

    def answer(exchange: Exchange) -> None:
        lines = {**headers, "Transfer-Encoding": "chunked"}
        exchange.write(f"HTTP/1.1 {status} X\r\n".encode())
        exchange.write("".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode() + b"\r\n")
        while True:
            exchange.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            taken.append(65536)

    return answer, taken


def test_REG_04_endless_manifest(server: Stage) -> None:
    server.answers["/v2/x/manifests/latest"], taken = endless(200, {"Content-Type": MANIFEST})
    with pytest.raises(Untrusted, match="longer than"):
        get(server)
    assert sum(taken) < 16 << 20
    server.manifest(b'{"a": "' + b"x" * ((4 << 20) - 9) + b'"}')
    assert len(get(server)) == 4 << 20


def test_REG_04_endless_blob(server: Stage) -> None:
    server.answers[f"/v2/x/blobs/{digest_of(DATA)}"], taken = endless(200, {})
    with pytest.raises(Untrusted):
        get_blob(server, DATA)
    assert sum(taken) < 16 << 20


def test_REG_04_endless_error(server: Stage) -> None:
    """It is an error as any other."""
    server.answers["/v2/x/manifests/latest"], taken = endless(404, {})
    with pytest.raises(NotFound) as raised:
        get(server)
    assert sum(taken) < 16 << 20 and len(raised.value.message) < 1000


def test_REG_04_endless_token(server: Stage) -> None:
    guard(server, f"http://{server.host}/token")
    assert get(server) == b"{}"
    server.answers["/token"], taken = endless(200, {})
    with pytest.raises(Untrusted, match="longer than"):
        get(server)
    assert sum(taken) < 16 << 20


def test_REG_04_huge_config(server: Stage) -> None:
    """What is said to be too large is not even asked for."""
    image = server.image()
    image["config"]["size"] = 9 << 20
    server.manifest(image)
    with pytest.raises(BuildError, match="bytes"):
        config_of(server)
    assert not any("/blobs/" in asked.path for asked in server.asked)


@pytest.mark.parametrize("what", ["manifest", "blob"])
def test_REG_04_slowly(server: Stage, what: str) -> None:
    """A byte now and then, for ever, is as good as nothing."""

    def drip(exchange: Exchange) -> None:
        exchange.write(exchange.head(Answer(200, {"Content-Type": MANIFEST}, DATA)))
        for byte in DATA:
            exchange.write(bytes([byte]))
            exchange._handler.wfile.flush()
            time.sleep(0.02)

    server.answers["/v2/x/manifests/latest"] = drip
    server.answers[f"/v2/x/blobs/{digest_of(DATA)}"] = drip
    start = time.monotonic()
    with pytest.raises(Unavailable):
        get(server, patience=0.1) if what == "manifest" else get_blob(server, DATA, patience=0.1)
    assert time.monotonic() - start < 10


BOMB = gzip.compress(b"\0" * (64 << 20), mtime=0)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
def test_REG_11_compressed_answers(server: Stage, encoding: str) -> None:
    """They are refused where they matter, and nowhere inflated."""
    packed = {"Content-Encoding": encoding, "Content-Type": MANIFEST}
    server.answers["/v2/x/manifests/latest"] = Answer(200, packed, BOMB)
    server.answers[f"/v2/x/blobs/{digest_of(BOMB)}"] = Answer(200, packed, BOMB)
    with pytest.raises(Untrusted, match="compressed"):
        get(server)
    with pytest.raises(Untrusted, match="compressed"):
        get_blob(server, BOMB)
    server.answers["/v2/x/manifests/latest"] = Answer(404, packed, BOMB)
    with pytest.raises(NotFound):
        get(server)
    guard(server, f"http://{server.host}/token")
    usual = server.answers["/v2/x/manifests/latest"]
    assert callable(usual)

    def packed_challenge(exchange: Exchange) -> None:
        if "authorization" in exchange.asked.headers:
            return usual(exchange)
        exchange.send(Answer(401, {**challenge(f"http://{server.host}/token"), **packed}, BOMB))

    server.answers["/v2/x/manifests/latest"] = packed_challenge
    assert get(server) == b"{}"
    server.answers["/token"] = Answer(200, packed, BOMB)
    with pytest.raises(Untrusted, match="compressed"):
        get(server)


def test_REG_11_benign(server: Stage) -> None:
    """A layer is compressed itself, which is not the answer's concern."""
    server.answers[f"/v2/x/blobs/{digest_of(BOMB)}"] = Answer(200, {"Content-Encoding": "identity"}, BOMB)
    assert get_blob(server, BOMB) == BOMB
