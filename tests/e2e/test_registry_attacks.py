"""REG-01 to REG-18 of the threat model, each with what is harmless and looks alike (S15).

The registry is on one address, a second listener on another remembers every header that reaches it:
no credentials may, in no test.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import Answer, Exchange, Listener, certificate
from harness import Pybuild

from builder.errors import BuildError
from builder.images.pull import pull_config
from builder.oci.model import host as machine
from builder.registry.addresses import leads_inside
from builder.registry.client import Registry
from builder.registry.credentials import Credentials, CredentialStore
from builder.registry.errors import NotFound, RegistryError, Unauthorized, Unavailable, Untrusted
from builder.registry.transport import Transport
from builder.request import ClientOptions
from cache.descriptor import Descriptor
from cache.digest import digest_of
from cache.errors import CacheError
from grammar.reference import parse_reference

pytestmark = pytest.mark.e2e

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYER = "application/vnd.docker.image.rootfs"
ME = Credentials("me", "hunter2")
SECRETS = ("hunter2", base64.b64encode(b"me:hunter2").decode(), "tok")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine's configuration."""
    (tmp_path / "registries.conf").write_text("")
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(tmp_path / "registries.conf"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))


@pytest.fixture
def nothing_is_left() -> None:
    """Nearly no containers are made here, so there is nothing to take a census of."""


class Stage(Listener):
    """A registry that answers by route (and method, where that is said); ``sent`` counts body bytes."""

    def __init__(self, host: str = "127.0.0.1", tls: tuple[Path, Path] | None = None) -> None:
        super().__init__(host, tls)
        self.answers: dict[str, Answer | Callable[[Exchange], None]] = {}
        self.guarded = False
        self.sent = 0
        self.answer = self._answer

    def _answer(self, exchange: Exchange) -> None:
        asked = exchange.asked
        if self.guarded and asked.headers.get("authorization") != ME.basic():
            return exchange.send(Answer(401, {"WWW-Authenticate": 'Basic realm="x"'}))
        found = self.answers.get(f"{asked.method} {asked.route}") or self.answers.get(asked.route)
        if callable(found):
            return found(exchange)
        answer = found or Answer(404)
        self.sent += len(answer.body)
        exchange.send(answer)

    def manifest(self, value: dict[str, Any] | bytes, media: str = MANIFEST, name: str = "latest") -> str:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.answers[f"/v2/x/manifests/{name}"] = Answer(200, {"Content-Type": media}, data)
        self.answers[f"/v2/x/manifests/{digest_of(data)}"] = Answer(200, {"Content-Type": media}, data)
        return digest_of(data)

    def blob(self, data: bytes) -> dict[str, Any]:
        self.answers[f"/v2/x/blobs/{digest_of(data)}"] = Answer(200, {}, data)
        return {"mediaType": "application/octet-stream", "digest": digest_of(data), "size": len(data)}

    def image(self) -> dict[str, Any]:
        """A sound image without layers; its manifest."""
        platform = {"os": machine().os, "architecture": machine().architecture}
        config = self.blob(json.dumps({**platform, "rootfs": {"type": "layers", "diff_ids": []}}).encode())
        value = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": []}
        self.manifest(value)
        return value


@pytest.fixture
def server() -> Iterator[Stage]:
    with Stage() as made:
        yield made


@pytest.fixture
def other() -> Iterator[Stage]:
    """Somebody else. No secret may get here."""
    with Stage("127.0.0.2") as made:
        yield made
        assert not any(secret in str(asked.headers) for asked in made.asked for secret in SECRETS)


def client(server: Listener, credentials: Credentials = ME, patience: float = 10.0) -> Registry:
    transport = Transport(server.host, "http", sleep=lambda _: None, jitter=lambda: 1.0, patience=patience)
    return Registry(server.host, transport=transport, credentials=credentials)


def get(server: Listener, reference: str = "latest", patience: float = 10.0) -> bytes:
    with client(server, patience=patience) as registry:
        return registry.manifest("x", reference).data


def get_blob(server: Listener, data: bytes, patience: float = 10.0) -> bytes:
    sink = io.BytesIO()
    with client(server, patience=patience) as registry:
        try:
            registry.blob("x", Descriptor("", digest_of(data), len(data)), sink, lambda count: None)
        finally:
            assert len(sink.getvalue()) <= len(data)
    return sink.getvalue()


def config_of(server: Listener) -> None:
    """Pull manifest and config as a build does."""
    pull_config(parse_reference(f"{server.host}/x"), machine(), ClientOptions())


def challenge(realm: str) -> dict[str, str]:
    return {"WWW-Authenticate": f'Bearer realm="{realm}",service="s"'}


def guard(server: Stage, realm: str, token: bytes = b'{"token": "tok"}') -> None:
    """Manifests need a token from *realm*; the server itself gives one at /token."""
    data = Answer(200, {"Content-Type": MANIFEST}, b"{}")

    def answer(exchange: Exchange) -> None:
        good = exchange.asked.headers.get("authorization") == "Bearer tok"
        exchange.send(data if good else Answer(401, challenge(realm), b"{}"))

    server.answers["/v2/x/manifests/latest"] = answer
    server.answers["/token"] = Answer(200, {}, token)


# -- what is not what it should be ----------------------------------------------------------

DATA = bytes(range(256)) * 200
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


# -- too much ---------------------------------------------------------------------------------


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


# -- where credentials must not go -------------------------------------------------------------


def test_REG_05_layer_elsewhere(server: Stage, other: Stage, tmp_path: Path) -> None:
    """A layer's urls are never asked; the registry is."""
    pybuild = Pybuild(tmp_path / "store", tmp_path)
    layer = gzip.compress(b"\0" * 1024, mtime=0)
    image = server.image()
    config: dict[str, Any] = {"os": machine().os, "architecture": machine().architecture}
    config |= {"rootfs": {"type": "layers", "diff_ids": [digest_of(b"\0" * 1024)]}}
    image["config"] = server.blob(json.dumps(config).encode())
    image["layers"] = [
        {
            **server.blob(layer),
            "mediaType": f"{LAYER}.foreign.diff.tar.gzip",
            "urls": [f"http://{other.host}/layer"],
        }
    ]
    server.manifest(image)
    env = {
        "DOCKER_CONFIG": str(tmp_path / "docker"),
        "CONTAINERS_REGISTRIES_CONF": str(tmp_path / "registries.conf"),
    }
    (tmp_path / "docker").mkdir()
    auths = {server.host: {"auth": SECRETS[1]}, other.host: {"auth": SECRETS[1]}}
    (tmp_path / "docker/config.json").write_text(json.dumps({"auths": auths}))
    name = f"{server.host}/x"
    del server.answers[f"/v2/x/blobs/{digest_of(layer)}"]
    server.guarded = True
    pybuild("pull", name, env=env).failed()
    server.blob(layer)
    pybuild("pull", name, env=env).ok()
    assert not other.asked


REALMS = [
    "http://OTHER/token", "file:///etc/passwd", "http://169.254.169.254/t", "https://169.254.169.254/t",
    "https://[fd00:ec2::254]/t", "https://10.0.0.1/t", "https://0.0.0.0/t", "https://[::]/t", "https://0/t",
    "https://me@HOST/t", "http://me:pw@HOST/t", "https://2852039166/t", "https://0xa9.0xfe.0xa9.0xfe/t",
    "https://[::ffff:169.254.169.254]/t", "https://[fe80::1]/t", "gopher://HOST/t", "//HOST/t", "", "x",
    "http://[::1", "https://HOST:x/", "https://h:99999/", "http://example.com/t", "HTTP://OTHER/t", "https:///t",
]  # fmt: skip


@pytest.mark.parametrize("realm", REALMS)
def test_REG_06_realm(server: Stage, other: Stage, realm: str) -> None:
    guard(server, realm.replace("OTHER", other.host).replace("HOST", server.host))
    with pytest.raises(RegistryError):
        get(server)
    assert not other.asked and all(asked.route != "/t" for asked in server.asked)


def test_REG_06_benign_realm(server: Stage) -> None:
    """A registry in the clear has its own token server in the clear, which gets the credentials."""
    guard(server, f"http://{server.host}/token")
    assert get(server) == b"{}"
    (asked,) = [asked for asked in server.asked if asked.route == "/token"]
    assert asked.headers["authorization"] == ME.basic()


def test_REG_06_realm_in_the_clear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry with TLS has none without, not even on its own host."""
    key, cert = certificate(tmp_path / "tls", "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    with Stage(tls=(key, cert)) as server, Stage() as clear:
        clear.answers["/token"] = server.answers["/token"] = Answer(200, {}, b'{"token": "tok"}')
        guard(server, f"http://{clear.host}/token")
        with Registry(server.host, credentials=ME) as registry, pytest.raises(Untrusted, match="not safe"):
            registry.manifest("x", "latest")
        assert not clear.asked
        guard(server, f"https://{server.host}/token")
        with Registry(server.host, credentials=ME) as registry:
            assert registry.manifest("x", "latest").data == b"{}"


@pytest.mark.parametrize("identity", [False, True])
def test_REG_06_token_server_that_redirects(server: Stage, other: Stage, identity: bool) -> None:
    """What it redirects to gets neither the password nor an identity token."""
    guard(server, f"http://{server.host}/token")
    server.answers["/token"] = Answer(307, {"Location": f"http://{other.host}/token"})
    other.answers["/token"] = Answer(200, {}, b'{"token": "other"}')
    who = Credentials(identity_token="hunter2") if identity else ME
    with client(server, who) as registry, pytest.raises(RegistryError):
        registry.manifest("x", "latest")
    assert identity or other.asked


def push(server: Listener, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(DATA)
    with client(server) as registry:
        what = Descriptor("", digest_of(DATA), len(DATA))
        registry.push_blob("x", what, str(tmp_path / "blob"), "", lambda count: None)


def test_REG_07_upload_elsewhere(server: Stage, other: Stage, tmp_path: Path) -> None:
    """Storage on another host gets the bytes, as the registry wants, but no credentials; nor later on."""
    server.guarded = True
    server.answers["POST /v2/x/blobs/uploads/"] = Answer(202, {"Location": f"http://{other.host}/up?a=b"})
    other.answers["PUT /up"] = Answer(201)
    push(server, tmp_path)
    (asked,) = other.asked
    assert asked.path == f"/up?a=b&digest={digest_of(DATA).replace(':', '%3A')}"
    back = {"Location": f"http://{server.host}/back", "Range": "0-9"}
    other.answers["PUT /up"] = Answer(503)
    other.answers["PATCH /up"] = Answer(202, back)
    server.asked.clear()
    with pytest.raises(RegistryError):
        push(server, tmp_path)
    assert all("authorization" not in asked.headers for asked in server.asked if asked.route == "/back")


def test_REG_07_benign(server: Stage, tmp_path: Path) -> None:
    server.guarded = True
    server.answers["POST /v2/x/blobs/uploads/"] = Answer(202, {"Location": "/up?state=1"})
    server.answers["PUT /up"] = Answer(201)
    push(server, tmp_path)


@pytest.mark.parametrize(
    "location",
    ["http://169.254.169.254/", "file:///x", "http://me:pw@HOST/", "http://[::1", "gopher://HOST/", "http://0/x",
     "http://[::ffff:a9fe:a9fe]/", ""],
)  # fmt: skip
def test_REG_07_upload_inside(server: Stage, tmp_path: Path, location: str) -> None:
    server.answers["POST /v2/x/blobs/uploads/"] = Answer(
        202, {"Location": location.replace("HOST", server.host)}
    )
    with pytest.raises(RegistryError):
        push(server, tmp_path)
    assert all(asked.method in ("POST", "HEAD") for asked in server.asked)


def test_REG_07_downgrade() -> None:
    transport = Transport("registry.test")
    with pytest.raises(Untrusted, match="https to http"):
        transport.resolve("https://registry.test/v2/x", "http://registry.test/up")
    with pytest.raises(Untrusted, match="https to http"):
        transport.resolve("HTTPS://registry.test/v2/x", "http://registry.test/up")
    assert transport.resolve("https://registry.test/v2/x", "/up") == "https://registry.test/up"


def test_REG_07_upload_that_comes_back_from_elsewhere(server: Stage, other: Stage, tmp_path: Path) -> None:
    """A place that is relative to where a redirect led is not the registry's: it gets no credentials."""
    server.guarded = True
    server.answers["POST /v2/x/blobs/uploads/"] = Answer(202, {"Location": "/up"})
    server.answers["PUT /up"] = Answer(503)
    server.answers["GET /up"] = Answer(307, {"Location": f"http://{other.host}/there"})
    other.answers["GET /there"] = Answer(204, {"Location": "/on", "Range": "0-9"})
    with pytest.raises(RegistryError):
        push(server, tmp_path)


@pytest.mark.parametrize("kind", ["manifests/latest", "blobs"])
def test_REG_08_redirect_that_wants_credentials(server: Stage, other: Stage, kind: str) -> None:
    """They are the registry's; without wanting any, the other host is as good."""
    server.guarded = True
    route = f"/v2/x/{kind}" + (f"/{digest_of(DATA)}" if kind == "blobs" else "")
    server.answers[route] = Answer(307, {"Location": f"http://{other.host}/there"})
    other.answers["/there"] = Answer(200, {"Content-Type": MANIFEST}, DATA)

    def ask() -> bytes:
        return get_blob(server, DATA) if kind == "blobs" else get(server)

    assert ask() == DATA and len(other.asked) == 1
    for wants in (
        'Basic realm="x"',
        f'Bearer realm="http://{other.host}/token"',
        f'Bearer realm="http://{server.host}/token"',
    ):
        other.answers["/there"] = Answer(401, {"WWW-Authenticate": wants})
        server.answers["/token"] = Answer(200, {}, b'{"token": "tok"}')
        with pytest.raises(Untrusted, match="wants credentials"):
            ask()
    assert all(asked.route == "/there" for asked in other.asked)
    assert all(asked.route != "/token" for asked in server.asked)


def test_REG_08_redirect_to_another_port(server: Stage) -> None:
    """Another port is another origin."""
    with Stage() as port:
        server.guarded = True
        server.answers["/v2/x/manifests/latest"] = Answer(307, {"Location": f"http://{port.host}/there"})
        port.answers["/there"] = Answer(200, {"Content-Type": MANIFEST}, b"{}")
        assert get(server) == b"{}"
        assert "authorization" not in port.asked[0].headers


def test_REG_08_redirect_and_back(server: Stage, other: Stage) -> None:
    """Credentials that were left behind are not picked up again."""
    server.answers["/v2/x/manifests/latest"] = Answer(307, {"Location": f"http://{other.host}/there"})
    other.answers["/there"] = Answer(307, {"Location": f"http://{server.host}/back"})
    server.answers["/back"] = Answer(200, {"Content-Type": MANIFEST}, b"{}")
    with client(server) as registry:
        assert registry.manifest("x", "latest").data == b"{}"
    assert "authorization" not in server.asked[-1].headers


def test_REG_09_links_are_not_followed(server: Stage, other: Stage) -> None:
    """Nothing is asked in pages, so no next page is ever fetched."""
    server.image()
    for answer in server.answers.values():
        assert isinstance(answer, Answer)
        answer.headers["Link"] = f'<http://{other.host}/next>; rel="next"'
    config_of(server)
    assert not other.asked


@pytest.mark.parametrize("hops, fine", [(10, True), (11, False), (1000, False)])
def test_REG_10_chain(server: Stage, hops: int, fine: bool) -> None:
    server.answers["/v2/x/manifests/latest"] = Answer(302, {"Location": f"/1?{hops - 1}"})

    def hop(exchange: Exchange) -> None:
        left = int(exchange.asked.path.partition("?")[2])
        if left:
            exchange.send(Answer(307, {"Location": f"/1?{left - 1}"}))
        else:
            exchange.send(Answer(200, {"Content-Type": MANIFEST}, b"{}"))

    server.answers["/1"] = hop
    if fine:
        assert get(server) == b"{}"
    else:
        with pytest.raises(Untrusted, match="more than 10 times"):
            get(server)
        assert len(server.asked) == 11


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "gopher://HOST/", "ftp://HOST/", "javascript:x", "data:,x", "http://", "http:///x",
     "http://HOST\\@169.254.169.254/", "//169.254.169.254/x", "http://" + "a" * 300 + "/", "http://a..b/",
     "http://HOST:99999/", "http://HOST:-1/", "http://\u00e9/", "http://%31%36%39.254.169.254/", "unix:/x"],
)  # fmt: skip
def test_REG_10_odd_redirect(server: Stage, location: str) -> None:
    server.answers["/v2/x/manifests/latest"] = Answer(
        307, {"Location": location.replace("HOST", server.host)}
    )
    with pytest.raises(RegistryError) as raised:
        get(server)
    assert "\n" not in raised.value.message


def test_REG_10_header_injection(server: Stage) -> None:
    """What is encoded stays so: no header and no second request comes of it."""
    server.answers["/v2/x/manifests/latest"] = Answer(307, {"Location": "/a%0d%0aEvil:%20x%0d%0a b\tc"})
    with pytest.raises(RegistryError):
        get(server)
    assert not any("evil" in asked.headers for asked in server.asked) and len(server.asked) == 2


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


# -- odd documents ----------------------------------------------------------------------------


def item(server: Stage, **changes: Any) -> dict[str, Any]:
    """The entry of an index for a sound image."""
    name = server.manifest(server.image())
    size = len(json.dumps(server.image()))
    platform = {"os": machine().os, "architecture": machine().architecture}
    return {"mediaType": MANIFEST, "digest": name, "size": size, "platform": platform, **changes}


def index(server: Stage, *items: Any) -> str:
    return server.manifest({"schemaVersion": 2, "mediaType": INDEX, "manifests": list(items)}, INDEX)


def test_REG_12_benign(server: Stage) -> None:
    """An entry among strangers; a wrong ``data`` is not looked at."""
    odd: list[Any] = [{"os": 1}, {}, None, [], "x", {"os": "linux"}]
    strange = [{**item(server), "platform": platform} for platform in odd]
    index(server, *strange, item(server, data="bm8="))
    config_of(server)


@pytest.mark.parametrize("size", [-1, -(10**18), 1.5, "12", None, True, [], 10**30])
def test_REG_12_size(server: Stage, size: object) -> None:
    image = server.image()
    image["config"]["size"] = size
    server.manifest(image)
    with pytest.raises((BuildError, CacheError)):
        config_of(server)


def test_REG_12_size_zero(server: Stage) -> None:
    image = server.image()
    image["config"]["size"] = 0
    server.manifest(image)
    with pytest.raises(Untrusted):
        config_of(server)


@pytest.mark.parametrize("kind", ["itself", "deep", "many", "no-list", "list-of-lists", "no-digest"])
def test_REG_12_index(server: Stage, kind: str) -> None:
    """Bounded in depth and number."""
    entry = item(server)
    if kind == "itself":
        server.answers[f"/v2/x/manifests/{'sha256:' + '0' * 64}"] = Answer(
            200, {"Content-Type": INDEX}, b"{}"
        )
        index(server, {**entry, "digest": "sha256:" + "0" * 64})
    elif kind == "deep":
        for _ in range(1000):
            entry = {**entry, "digest": index(server, entry), "mediaType": INDEX}
    elif kind == "many":
        index(server, *[entry] * 20_000)
    elif kind == "no-list":
        server.manifest({"schemaVersion": 2, "mediaType": INDEX, "manifests": {"a": 1}}, INDEX)
    elif kind == "list-of-lists":
        index(server, [entry])
    else:
        index(server, {**entry, "digest": None})
    start = time.monotonic()
    with pytest.raises((BuildError, CacheError)):
        config_of(server)
    assert time.monotonic() - start < 5 and len(server.asked) < 8


@pytest.mark.parametrize(
    "digest",
    ["sha256:../../../../etc/passwd", "sha256:" + "A" * 64, "sha512:" + "0" * 128, "sha256:" + "0" * 63, "md5:x",
     "sha256:" + "0" * 64 + "/../../x", "sha256:%2e%2e", "", None, 5],
)  # fmt: skip
def test_REG_16_digest_as_path(server: Stage, digest: object) -> None:
    """What is no digest is not asked for, with or without credentials."""
    image = server.image()
    image["config"]["digest"] = digest
    server.manifest(image)
    with pytest.raises((BuildError, CacheError)):
        config_of(server)
    assert [asked.route for asked in server.asked] == ["/v2/x/manifests/latest"]


# -- credential helpers -------------------------------------------------------------------------


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CredentialStore]:
    """A configuration with a helper of these lines."""

    def make(script: str, name: str = "test") -> CredentialStore:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        path = folder / "docker-credential-test"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        (tmp_path / "config.json").write_text(json.dumps({"credsStore": name}))
        return CredentialStore(str(tmp_path / "config.json"), patience=1.0)

    return make


GOOD = 'read -r given; echo "{\\"Username\\": \\"me\\", \\"Secret\\": \\"hunter2\\"}"'


def test_REG_14_benign(helper: Callable[..., CredentialStore]) -> None:
    assert helper(GOOD).find("r.test") == ME
    assert helper(f"echo hunter2 >&2; {GOOD}").find("r.test") == ME
    store = helper("echo credentials not found in native keychain; exit 1")
    assert store.find("r.test").anonymous and not store.warnings


@pytest.mark.parametrize(
    "script, says",
    [
        ("while :; do echo 0123456789012345678901234567890123456789; done", "more than"),
        ("exec sleep 30", "did not answer"),
        ("exec >&-; exec sleep 30", "did not answer"),
        ("echo hunter2 >&2; exit 3", "failed with 3"),
        ("echo hunter2; exit 3", "failed with 3"),
        ("kill -9 $$", "failed with -9"),
        ("echo hunter2", "not valid JSON"),
        ("echo []", "answered no credentials"),
        ('echo "{\\"Username\\": 5, \\"Secret\\": []}"', "answered no credentials"),
    ],
)
def test_REG_14_helper(helper: Callable[..., CredentialStore], script: str, says: str) -> None:
    """Bounded in time and memory; what it says of secrets is in no message."""
    start = time.monotonic()
    store = helper(script)
    assert store.find("r.test").anonymous
    assert time.monotonic() - start < 5
    (warning,) = store.warnings
    assert says in warning and "hunter2" not in warning


@pytest.mark.parametrize("name", ["../test", "a b", "x/../test", "$(id)", "test\n", "é", "-", "."])
def test_REG_14_name(helper: Callable[..., CredentialStore], name: str) -> None:
    store = helper("echo called > $0.log", name)
    assert store.find("r.test").anonymous and store.warnings
    assert not list(Path(store.path).parent.glob("bin/*.log"))


def test_REG_14_the_warning_is_seen(server: Stage, tmp_path: Path) -> None:
    """Who is refused reads why there were no credentials."""
    server.guarded = True
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker/config.json").write_text("{")
    with Registry(server.host) as registry, pytest.raises(Unauthorized) as raised:
        registry.manifest("x", "latest")
    assert "config.json is not valid JSON" in raised.value.hint and "pybuild login" in raised.value.hint


# -- TLS ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize(
    "kind", ["good", "self-signed", "wrong-host", "expired", "old", "client-certificate"]
)
def test_REG_15_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A clear error at once; no fall-back to HTTP, no credentials before the certificate is known."""
    names = ("elsewhere.test",) if kind == "wrong-host" else ("127.0.0.1", "localhost")
    key, cert = certificate(tmp_path / "tls", *names, expired=kind == "expired")
    if kind != "self-signed":
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    with Stage(tls=(key, cert)) as server:
        server.manifest(b"{}")
        server.guarded = True
        if kind == "old":
            server.context.set_ciphers("ALL:@SECLEVEL=0")
            server.context.minimum_version = ssl.TLSVersion.TLSv1
            server.context.maximum_version = ssl.TLSVersion.TLSv1_1
        if kind == "client-certificate":
            server.context.verify_mode = ssl.CERT_REQUIRED
            server.context.load_verify_locations(cert)
        transport = Transport(server.host, sleep=lambda _: None)
        with Registry(server.host, transport=transport, credentials=ME) as registry:
            if kind == "good":
                assert registry.manifest("x", "latest").data == b"{}"
                return
            with pytest.raises(RegistryError) as raised:
                registry.manifest("x", "latest")
        assert not server.asked and server.connections <= 8
        if kind in ("self-signed", "wrong-host", "expired"):
            assert "no certificate that this machine trusts" in raised.value.message
            assert server.connections == 2  # one looked whether it speaks HTTP


def test_REG_15_http_where_tls_is_wanted(server: Stage) -> None:
    """Another host than loopback is not asked in the clear, whatever it would say."""
    server.manifest(b"{}")
    transport = Transport("registry.test", sleep=lambda _: None)
    with pytest.raises(Untrusted) as raised:
        transport.request("GET", f"https://{server.host}/v2/x/manifests/latest", {})
    assert "--insecure-registry" in raised.value.hint and not server.asked


@pytest.mark.parametrize(
    "addresses, inside",
    [(["93.184.216.34"], False), (["169.254.169.254"], True), (["93.184.216.34", "127.0.0.1"], True), (["::1"], True),
     (["fd00::1"], True), (["::ffff:10.0.0.1"], True), (["100.100.100.200"], True), (["0.0.0.0"], True),
     (["64:ff9b::a00:1"], True), (["64:ff9b::a9fe:a9fe"], True), (["64:ff9b::7f00:1"], True), (["64:ff9b:1::a00:1"], True),
     (["::10.0.0.1"], True), (["2002:a00:1::1"], True), (["2001:0:1:2:3:4:f5ff:fffe"], True), (["fec0::1"], True),
     (["168.63.129.16"], True), (["64:ff9b::808:808"], False), (["2002:808:808::1"], False), (["100.64.0.1"], True)],
)  # fmt: skip
def test_REG_17_names_that_lead_inside(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str], inside: bool
) -> None:
    """Names are looked up. That one changes until it is connected to is not excluded (see docs)."""
    usual = socket.getaddrinfo

    def look_up(host: str, *args: Any, **named: Any) -> Any:
        if host == "rebind.test":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]
        if host == "registry.test":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 0))]
        return usual(host, *args, **named)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert leads_inside("registry.test", "rebind.test") is inside
    assert not leads_inside("rebind.test", "rebind.test")


@pytest.mark.parametrize(
    "own, target, inside",
    [("100.64.1.1", "100.64.1.2", False), ("10.0.0.1", "10.9.9.9", False), ("10.0.0.1", "192.168.0.1", False),
     ("[64:ff9b::a00:1]", "10.0.0.2", False), ("[64:ff9b::6440:101]", "100.64.1.2", False), ("[fd00::1]", "10.0.0.1", False),
     ("100.64.1.1", "10.0.0.1", True), ("10.0.0.1", "100.64.1.1", True), ("100.64.1.1", "100.100.100.200", True),
     ("10.0.0.1", "127.0.0.1", True), ("8.8.8.8", "100.64.1.1", True), ("10.0.0.1", "64:ff9b::a9fe:a9fe", True),
     ("169.254.0.1", "169.254.0.2", True), ("100.64.1.1", "8.8.8.8", False)],
)  # fmt: skip
def test_REG_17_kinds_of_networks(own: str, target: str, inside: bool) -> None:
    """From one network to the same kind; where clouds tell secrets is of no kind."""
    assert leads_inside(f"{own}:5000", target) is inside


def test_REG_18_names_of_strangers(server: Stage, tmp_path: Path) -> None:
    """An image is called what the command line says, whatever it says of itself."""
    image = server.image()
    names = {"org.opencontainers.image.ref.name": "docker.io/library/alpine:3",
             "io.containerd.image.name": "docker.io/library/debian:12"}  # fmt: skip
    server.manifest({**image, "annotations": names})
    pybuild = Pybuild(tmp_path / "store", tmp_path)
    env = {"CONTAINERS_REGISTRIES_CONF": str(tmp_path / "registries.conf")}
    pybuild("pull", f"{server.host}/x", env=env).ok()
    listed = pybuild("images").ok().out
    assert f"{server.host}/x" in listed and "alpine" not in listed and "debian" not in listed


def test_second_listener_would_hear(other: Stage) -> None:
    """The guard of these tests works: what is sent to the other host is seen there."""
    command = ["curl", "-s", "-u", "me:nothing", f"http://{other.host}/"]
    subprocess.run(command, check=False, capture_output=True)
    with client(other, Credentials("a", "b")) as registry, pytest.raises(NotFound):
        registry.manifest("x", "1")
    assert other.asked
