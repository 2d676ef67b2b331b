"""How bytes go to and from registries: uploads in pieces, tokens that end, connections, proxies, mirrors."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faults import Answer, Exchange, Listener, Proxy, Uploads, certificate

from builder.registry.client import Registry
from builder.registry.credentials import Credentials
from builder.registry.errors import Blocked, NotFound, RegistryError, Unauthorized, Unavailable, Untrusted
from builder.registry.repository import open_for_push, open_repository
from builder.registry.transport import Transport
from builder.request import ClientOptions
from cache.descriptor import Descriptor
from cache.digest import digest_of
from grammar.reference import parse_reference

pytestmark = pytest.mark.e2e

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MIB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_is_left() -> None:
    """No containers are made here, so there is nothing to take a census of."""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials, proxies or mirrors of the machine's."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "no-docker"))
    monkeypatch.setenv("HOME", str(tmp_path / "no-home"))
    (tmp_path / "registries.conf").write_text("")
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(tmp_path / "registries.conf"))
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def client(host: str, credentials: Credentials | None = None, patience: float = 10.0) -> Registry:
    transport = Transport(host, "http", sleep=lambda _: None, jitter=lambda: 1.0, patience=patience)
    return Registry(host, transport=transport, credentials=credentials)


# -- uploads -------------------------------------------------------------------------------


@pytest.fixture
def uploads() -> Iterator[Uploads]:
    with Uploads() as made:
        yield made


@pytest.fixture(scope="module")
def data() -> bytes:
    return random.Random(7).randbytes(20 * MIB + 12345)


@pytest.fixture
def send(uploads: Uploads, data: bytes, tmp_path: Path) -> Callable[[], None]:
    """Push the data, and see that it arrived and that the progress says so."""
    path = tmp_path / "blob"
    path.write_bytes(data)

    def sending() -> None:
        counted: list[int] = []
        with client(uploads.host) as registry:
            assert registry.push_blob(
                "a/b", Descriptor("", digest_of(data), len(data)), str(path), "", counted.append
            )
        assert uploads.blobs == {digest_of(data): data}
        assert sum(counted) == len(data)

    return sending


def methods(server: Listener) -> str:
    return " ".join(asked.method for asked in server.asked)


def test_upload_whole(uploads: Uploads, send: Callable[[], None]) -> None:
    send()
    assert methods(uploads) == "POST PUT"


def test_upload_goes_on(uploads: Uploads, data: bytes, send: Callable[[], None]) -> None:
    """Where it broke off: no byte is sent twice."""
    uploads.cuts = [5 * MIB, 7 * MIB]
    send()
    assert uploads.taken == len(data)
    assert methods(uploads).startswith("POST PUT GET PATCH GET PATCH") and methods(uploads).endswith("PUT")
    ranges = [asked.headers["content-range"] for asked in uploads.asked if asked.method == "PATCH"]
    assert ranges[0].startswith(f"{5 * MIB}-") and ranges[1].startswith(f"{12 * MIB}-")


@pytest.mark.parametrize("by_reset", [False, True])
def test_upload_too_large_for_a_proxy(uploads: Uploads, send: Callable[[], None], by_reset: bool) -> None:
    """Chunks become small enough, whether that is said or the connection just ends."""
    uploads.largest, uploads.refuse_by_reset = MIB, by_reset
    send()
    sizes = [int(asked.headers["content-length"]) for asked in uploads.asked if asked.method == "PATCH"]
    assert sizes[-2] <= MIB and len(uploads.asked) < 60 * 1.6


def test_upload_of_chunks_as_large_as_wanted(uploads: Uploads, send: Callable[[], None]) -> None:
    uploads.cuts, uploads.smallest = [MIB, MIB, 6 * MIB], 7 * MIB
    send()
    sizes = [int(asked.headers["content-length"]) for asked in uploads.asked if asked.method == "PATCH"]
    assert len(sizes) > 2 and min(sizes[:-1]) >= 7 * MIB


@pytest.mark.parametrize("status", [400, 404, 405, 501])
@pytest.mark.parametrize("chunks", [True, False])
def test_upload_in_chunks_only(
    uploads: Uploads, data: bytes, send: Callable[[], None], status: int, chunks: bool
) -> None:
    """Who refuses the whole gets chunks, once; who refuses those too is told of soon."""
    usual, uploads.chunks = uploads.answer, chunks

    def answer(exchange: Exchange) -> None:
        if exchange.asked.method == "PUT" and exchange.asked.headers["content-length"] != "0":
            return exchange.send(Answer(status))
        usual(exchange)

    uploads.answer = answer
    if chunks:
        send()
        assert methods(uploads) == "POST PUT HEAD POST PATCH PATCH PUT"
    else:
        with pytest.raises(RegistryError, match=f"answered 405|does not exist|answered {status}"):
            send()
        assert len(uploads.asked) < 12


@pytest.mark.parametrize("status", [307, 308])
def test_upload_redirected(uploads: Uploads, send: Callable[[], None], status: int) -> None:
    """On the same origin, with method and bytes; what is said there is relative to that place."""
    usual = uploads.answer

    def answer(exchange: Exchange) -> None:
        asked = exchange.asked
        if asked.route.startswith("/v2/") and asked.method in ("POST", "PUT"):
            return exchange.send(Answer(status, {"Location": asked.path.replace("/v2/", "/moved/v2/")}))
        asked.path = asked.path.replace("/moved/", "/")
        usual(exchange)

    uploads.answer = answer
    send()
    assert methods(uploads) == "POST POST PUT PUT"


@pytest.mark.parametrize("status", [301, 302, 303, 307])
def test_upload_redirected_where_it_must_not(uploads: Uploads, send: Callable[[], None], status: int) -> None:
    """Neither to another origin, nor by what makes a GET of it."""
    host = f"http://127.0.0.2:{uploads.port}" if status == 307 else ""
    uploads.answer = lambda exchange: exchange.send(Answer(status, {"Location": f"{host}/v2/elsewhere"}))
    with pytest.raises(Untrusted, match="redirects an upload"):
        send()
    assert len(uploads.asked) == 1


SIGNED = "/b%2fc/%7Ed/[x]|~!$&'()*+,;=:@/a//./b?sig=%2f%2F%c3%A9+[|]{}^`\\\"<>&X-Amz=a%20b&empty=&?"


@pytest.mark.parametrize("absolute", [True, False])
def test_signed_urls(uploads: Uploads, absolute: bool) -> None:
    """They are asked for byte by byte as they came, in redirects and uploads, but for what no request may hold."""
    data, usual = b"x" * 1000, uploads.answer
    place = f"http://{uploads.host}{SIGNED}" if absolute else SIGNED
    if not absolute:
        place = place.replace("/./", "/-/")
    told = place.partition(uploads.host)[2] or place

    def answer(exchange: Exchange) -> None:
        asked = exchange.asked
        if asked.path == told:
            return exchange.send(Answer(200, {}, data))
        if asked.path.startswith(told + "&digest="):
            exchange.read()
            return exchange.send(Answer(201))
        if asked.method == "POST":
            return exchange.send(Answer(202, {"Location": place}))
        if "/blobs/" in asked.path and asked.method == "GET":
            return exchange.send(Answer(307, {"Location": f"{place}#part"}))
        usual(exchange)

    uploads.answer = answer
    sink = io.BytesIO()
    with client(uploads.host) as registry:
        registry.blob("x", Descriptor("", digest_of(data), len(data)), sink, lambda count: None)
        registry.push_blob("x", Descriptor("", digest_of(data), 5), __file__, "", lambda count: None)
    assert sink.getvalue() == data and methods(uploads) == "GET GET POST PUT"
    assert not any("pybuild-url" in asked.headers for asked in uploads.asked)


@pytest.mark.parametrize("status", [200, 202, 302])
def test_upload_that_is_not_confirmed(uploads: Uploads, send: Callable[[], None], status: int) -> None:
    """Only 201 and 204 say that a blob is there."""
    usual = uploads.answer

    def vague(exchange: Exchange) -> None:
        if exchange.asked.method == "PUT":
            exchange.send(Answer(status, {"Location": "/x"}))
        else:
            usual(exchange)

    uploads.answer = vague
    with pytest.raises(RegistryError):
        send()
    assert len(uploads.asked) < 20


@pytest.mark.parametrize("how", ["mounted", "told to upload", "not allowed", "no token", "not known"])
def test_mount(uploads: Uploads, data: bytes, tmp_path: Path, how: str) -> None:
    """From another repository; whatever the registry has against that, the blob is sent."""
    usual = uploads.answer

    def answer(exchange: Exchange) -> None:
        asked = exchange.asked
        if asked.route == "/token":
            return exchange.send(Answer(403))
        if "mount=" not in asked.path or how == "told to upload":
            return usual(exchange)
        assert asked.path.endswith(f"?mount={digest_of(data)}&from=c%2Fd")
        if how == "mounted":
            uploads.blobs[digest_of(data)] = data
        realm = (
            {"WWW-Authenticate": f'Bearer realm="http://{uploads.host}/token"'} if how == "no token" else {}
        )
        exchange.send(
            Answer({"mounted": 201, "not allowed": 403, "no token": 401, "not known": 405}[how], realm)
        )

    uploads.answer = answer
    (tmp_path / "blob").write_bytes(data)
    counted: list[int] = []
    with client(uploads.host) as registry:
        blob = Descriptor("", digest_of(data), len(data))
        sent = registry.push_blob("a/b", blob, str(tmp_path / "blob"), "c/d", counted.append)
    assert (
        sent is (how != "mounted") and sum(counted) == len(data) and uploads.blobs == {digest_of(data): data}
    )


def test_upload_without_chunks(uploads: Uploads, send: Callable[[], None]) -> None:
    """A registry that knows no PATCH gets the whole again."""
    uploads.cuts, uploads.chunks = [5 * MIB], False
    send()
    assert methods(uploads) == "POST PUT GET PATCH HEAD POST PUT"


def test_upload_refused(uploads: Uploads, send: Callable[[], None]) -> None:
    uploads.largest, uploads.chunks = MIB, False
    with pytest.raises(RegistryError, match="answered 405 for the upload"):
        send()
    assert len(uploads.asked) < 10


def test_upload_too_large_at_all(uploads: Uploads, send: Callable[[], None]) -> None:
    uploads.largest = 1000
    with pytest.raises(RegistryError, match="answered 413 for the upload"):
        send()
    assert len(uploads.asked) < 20


def test_upload_whose_answer_is_lost(uploads: Uploads, data: bytes, send: Callable[[], None]) -> None:
    """It has arrived, so it is not sent again."""
    usual = uploads.answer

    def lose(exchange: Exchange) -> None:
        if exchange.asked.method != "PUT":
            return usual(exchange)
        uploads.blobs[digest_of(data)] = exchange.read()
        uploads.answer = usual
        uploads._parts.clear()
        exchange.reset()

    uploads.answer = lose
    send()
    assert methods(uploads) == "POST PUT GET HEAD"


@pytest.mark.parametrize("range_", ["0-0", "0-99", "0-99999999999"])
def test_upload_that_never_arrives(
    uploads: Uploads, data: bytes, send: Callable[[], None], range_: str
) -> None:
    """A registry whose answers make no progress is given up."""
    uploads.cuts = [MIB]
    usual = uploads.answer

    def forget(exchange: Exchange) -> None:
        if exchange.asked.method == "PATCH":
            exchange.send(Answer(202, {"Location": exchange.asked.path, "Range": range_}))
        else:
            usual(exchange)

    uploads.answer = forget
    with pytest.raises((Unavailable, Untrusted)):
        send()
    assert len(uploads.asked) < 40


# -- tokens --------------------------------------------------------------------------------


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


@pytest.fixture
def server() -> Iterator[Listener]:
    with Listener() as made:
        yield made


@pytest.fixture
def other() -> Iterator[Listener]:
    with Listener("127.0.0.2") as made:
        yield made


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


# -- connections and downloads -------------------------------------------------------------


def test_connections_are_kept(server: Listener) -> None:
    """As many as transfers at once, for any number of requests, redirected ones among them."""
    blob = b"x" * 300_000

    def answer(exchange: Exchange) -> None:
        if exchange.asked.route.startswith("/cdn"):
            time.sleep(0.005)
            exchange.send(Answer(200, {}, blob))
        else:
            exchange.send(Answer(307, {"Location": "/cdn/x"}, b"over there"))

    server.answer = answer
    what = Descriptor("", digest_of(blob), len(blob))
    with client(server.host) as registry:
        for _ in range(10):
            registry.blob("x", what, io.BytesIO(), lambda count: None)
        assert server.connections <= 1 + 1
        with ThreadPoolExecutor(3) as pool:
            for _ in pool.map(
                lambda _: registry.blob("x", what, io.BytesIO(), lambda count: None), range(30)
            ):
                pass
    assert server.connections <= 5 and server.peak <= 3


@pytest.mark.parametrize("honest", [True, False])
def test_download_goes_on(server: Listener, honest: bool) -> None:
    """Also where a server ignores Range and begins anew; progress counts each byte once."""
    blob = random.Random(1).randbytes(4 * MIB)
    cuts = [MIB, 2 * MIB, 10]

    def answer(exchange: Exchange) -> None:
        start = int(exchange.asked.headers.get("range", "bytes=0-")[6:-1])
        part = blob[start:] if honest else blob
        status = 206 if start and honest else 200
        if not cuts:
            return exchange.send(Answer(status, {}, part))
        exchange.write(exchange.head(Answer(status, {}, part)) + part[: cuts.pop(0)])
        exchange.end()

    server.answer = answer
    sink, counted = io.BytesIO(), list[int]()
    with client(server.host) as registry:
        registry.blob("x", Descriptor("", digest_of(blob), len(blob)), sink, counted.append)
    assert sink.getvalue() == blob and sum(counted) == len(blob)


def test_long_download_over_a_bad_line(server: Listener) -> None:
    """Breaking off again and again is no failure as long as there is progress."""
    blob = random.Random(2).randbytes(12 * MIB)

    def answer(exchange: Exchange) -> None:
        start = int(exchange.asked.headers.get("range", "bytes=0-")[6:-1])
        exchange.write(exchange.head(Answer(206 if start else 200, {}, blob[start:])))
        exchange.write(blob[start : start + MIB])
        exchange.end()

    server.answer = answer
    sink = io.BytesIO()
    with client(server.host) as registry:
        registry.blob("x", Descriptor("", digest_of(blob), len(blob)), sink, lambda count: None)
    assert sink.getvalue() == blob and len(server.asked) == 12


def test_full_disk_is_no_broken_connection(server: Listener) -> None:
    blob = b"x" * 100_000
    server.answer = lambda exchange: exchange.send(Answer(200, {}, blob))

    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    with client(server.host) as registry, pytest.raises(OSError, match="No space"):
        registry.blob("x", Descriptor("", digest_of(blob), len(blob)), Full(), lambda count: None)
    assert len(server.asked) == 1


def test_nobody_listens() -> None:
    with Listener() as gone:
        pass
    slept: list[float] = []
    transport = Transport(gone.host, sleep=slept.append, jitter=lambda: 1.0)
    with (
        Registry(gone.host, transport=transport) as registry,
        pytest.raises(Unavailable, match="Connection refused"),
    ):
        registry.manifest("x", "1")
    assert slept == [0.5, 1.0]


def test_registry_that_is_gone(server: Listener) -> None:
    """Who gave up does not wait again for each of many layers."""
    server.answer = lambda exchange: exchange.send(Answer(503, {"Retry-After": "60"}))
    slept: list[float] = []
    transport = Transport(server.host, "http", sleep=slept.append, jitter=lambda: 1.0)
    with Registry(server.host, transport=transport) as registry:
        for _ in range(50):
            with pytest.raises(Unavailable, match="answered 503"):
                registry.manifest("x", "1")
    assert len(server.asked) == 6 and slept == [60.0] * 5


@pytest.mark.parametrize(
    "value, seconds",
    [("3", 3.0), ("100000", 60.0), ("-1", 0.5), ("x", 0.5), ("", 0.5), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.5),
     ("Fri, 31 Dec 9999 23:59:59 GMT", 60.0), ("0", 0.5), ("999999999999", 0.5)],
)  # fmt: skip
def test_retry_after(server: Listener, value: str, seconds: float) -> None:
    """Seconds or a date, a minute at the most."""
    answers = [Answer(429, {"Retry-After": value}), Answer(200, {"Content-Type": MANIFEST}, b"{}")]
    server.answer = lambda exchange: exchange.send(answers.pop(0))
    slept: list[float] = []
    with Registry(
        server.host, transport=Transport(server.host, "http", sleep=slept.append, jitter=lambda: 1.0)
    ) as r:
        r.manifest("x", "1")
    assert slept == [seconds]


def test_limit_of_the_hub(server: Listener) -> None:
    """What a registry says with 429 is what its user has to read."""
    said = b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "You have reached your pull rate limit."}]}'
    server.answer = lambda exchange: exchange.send(Answer(429, {}, said))
    with (
        client(server.host) as registry,
        pytest.raises(Unavailable, match="reached your pull rate") as raised,
    ):
        registry.manifest("x", "1")
    assert "pybuild login" in raised.value.hint


# -- proxies -------------------------------------------------------------------------------


def good(exchange: Exchange) -> None:
    exchange.send(Answer(200, {"Content-Type": MANIFEST}, b"{}"))


def test_https_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A name that only the proxy knows; the proxy's password is for the proxy alone."""
    key, cert = certificate(tmp_path / "tls", "registry.test")
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    with Listener(tls=(key, cert)) as server, Proxy(server.host) as proxy:
        server.answer = good
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:s%40cret@{proxy.host}")
        with Registry("registry.test") as registry:
            assert registry.manifest("x", "1").data == b"{}"
        (connect,) = proxy.asked
        assert connect.method == "CONNECT" and connect.path == "registry.test:443"
        basic = base64.b64encode(b"me:s@cret").decode()
        assert connect.headers["proxy-authorization"] == f"Basic {basic}"
        assert all("proxy-authorization" not in asked.headers for asked in server.asked)


def test_http_proxy(server: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """An insecure registry that only the proxy reaches, with a proxy that is written without a scheme."""
    server.answer = good
    with Proxy(server.host) as proxy:
        monkeypatch.setenv("http_proxy", proxy.host)
        with Registry("registry.test:5000", ClientOptions(frozenset({"registry.test:5000"}))) as registry:
            assert registry.manifest("x", "1").data == b"{}"
        assert [asked.method for asked in proxy.asked] == ["GET"]


def test_no_proxy(server: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_PROXY is asked for each host: the registry's, and the one it redirects to."""
    server.answer = good
    with Proxy(server.host) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}")
        monkeypatch.setenv("NO_PROXY", "registry.test")
        with Registry("a.registry.test:5000", ClientOptions(frozenset({"a.registry.test:5000"}))) as registry:
            registry._transport = Transport("a.registry.test:5000", "http", sleep=lambda _: None)
            with pytest.raises(Unavailable):
                registry.manifest("x", "1")
        assert not proxy.asked
        monkeypatch.setenv("NO_PROXY", "other.test")
        server.answer = lambda exchange: exchange.send(
            Answer(307, {"Location": "http://other.test/y"})
            if exchange.asked.route.startswith("/v2")
            else Answer()
        )
        with Registry("registry.test:5000", ClientOptions(frozenset({"registry.test:5000"}))) as registry:
            registry._transport = Transport("registry.test:5000", "http", sleep=lambda _: None)
            with pytest.raises(Unavailable):
                registry.manifest("x", "1")
        assert proxy.asked and all("other.test" not in asked.path for asked in proxy.asked)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "socks5h://h", "http://", "http://h:x", "ftp://x"])
def test_unusable_proxy(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    from builder.errors import BuildError

    monkeypatch.setenv("HTTPS_PROXY", proxy)
    says = "HTTPS_PROXY is a SOCKS proxy" if proxy.startswith("socks") else "HTTPS_PROXY is not"
    with Registry("registry.test") as registry, pytest.raises(BuildError, match=says):
        registry.manifest("x", "1")


def test_proxy_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with Listener() as proxy:
        proxy.answer = lambda exchange: exchange.send(Answer(407))
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@{proxy.host}")
        transport = Transport("registry.test", sleep=lambda _: None)
        with Registry("registry.test", transport=transport) as registry, pytest.raises(Unavailable) as raised:
            registry.manifest("x", "1")
    assert "407" in raised.value.message and "secret" not in raised.value.message


# -- mirrors -------------------------------------------------------------------------------


class Images(Listener):
    """A registry of single manifests and blobs; it may want a password. Who asks wrong is told 404."""

    def __init__(self, name: str, password: str = "") -> None:
        super().__init__()
        self.name = name
        self.password = password
        self.things: dict[str, bytes] = {}
        self.answer = self._answer

    def image(self, repository: str, tag: str, data: bytes) -> None:
        for reference in (tag, digest_of(data)):
            self.things[f"/v2/{repository}/manifests/{reference}"] = data
        self.things[f"/v2/{repository}/blobs/{digest_of(data)}"] = data

    def _answer(self, exchange: Exchange) -> None:
        basic = "Basic " + base64.b64encode(f"me:{self.password}".encode()).decode()
        if self.password and exchange.asked.headers.get("authorization") != basic:
            return exchange.send(Answer(401, {"WWW-Authenticate": 'Basic realm="x"'}))
        data = self.things.get(exchange.asked.route)
        if data is None:
            return exchange.send(Answer(404))
        exchange.send(Answer(200, {"Content-Type": MANIFEST}, data))


@pytest.fixture
def origin() -> Iterator[Images]:
    with Images("origin") as made:
        made.image("team/app", "1", b'{"from": "origin"}')
        yield made


@pytest.fixture
def mirror() -> Iterator[Images]:
    with Images("mirror") as made:
        yield made


@pytest.fixture
def configured(tmp_path: Path) -> Callable[[str], None]:
    def write(text: str) -> None:
        (tmp_path / "registries.conf").write_text(text)

    return write


def table(origin: Images, *mirrors: Images, more: str = "", each: str = "") -> str:
    text = f'[[registry]]\nprefix = "{origin.host}/team"\n{more}\n'
    for mirror in mirrors:
        text += f'[[registry.mirror]]\nlocation = "{mirror.host}/copies"\n{each}\n'
    return text


def fetch(name: str) -> bytes:
    reference = parse_reference(name)
    with open_repository(reference, ClientOptions()) as repository:
        fetched = repository.fetch()
        sink = io.BytesIO()
        what = Descriptor("", fetched.digest, len(fetched.data))
        repository.blob(what, sink, lambda count: None)
        assert sink.getvalue() == fetched.data
        return fetched.data


def test_mirror_first(origin: Images, mirror: Images, configured: Callable[[str], None]) -> None:
    mirror.image("copies/app", "1", b'{"from": "mirror"}')
    configured(table(origin, mirror))
    assert fetch(f"{origin.host}/team/app:1") == b'{"from": "mirror"}'
    assert not origin.asked and [asked.route.split("/")[2] for asked in mirror.asked] == ["copies"] * 2
    assert fetch(f"{mirror.host}/copies/app:1") == b'{"from": "mirror"}'  # a name without a table


def test_mirror_lacks_it(origin: Images, mirror: Images, configured: Callable[[str], None]) -> None:
    configured(table(origin, mirror))
    assert fetch(f"{origin.host}/team/app:1") == b'{"from": "origin"}'
    assert len(mirror.asked) == 2 and len(origin.asked) == 2


def test_mirror_is_gone(origin: Images, mirror: Images, configured: Callable[[str], None]) -> None:
    """It is not waited for again."""
    mirror.answer = lambda exchange: exchange.send(Answer(503))
    configured(table(origin, mirror))
    assert fetch(f"{origin.host}/team/app:1") == b'{"from": "origin"}'
    assert len(mirror.asked) == 2


def test_mirror_nobody_listens(origin: Images, configured: Callable[[str], None]) -> None:
    with Images("gone") as gone:
        pass
    configured(table(origin, gone))
    assert fetch(f"{origin.host}/team/app:1") == b'{"from": "origin"}'


def test_REG_13_mirror_lies(origin: Images, mirror: Images, configured: Callable[[str], None]) -> None:
    """By digest it is found out and passed over. Its tag is taken unless the file forbids that."""
    right = b'{"from": "origin"}'
    for kind in ("manifests", "blobs"):
        mirror.things[f"/v2/copies/app/{kind}/{digest_of(right)}"] = b'{"from": "a liar"}'
    name = f"{origin.host}/team/app@{digest_of(right)}"
    configured(table(origin, mirror))
    assert fetch(name) == right
    mirror.image("copies/app", "1", b'{"from": "a liar"}')
    mirror.asked.clear()
    for forbidden in (
        table(origin, mirror, more="mirror-by-digest-only = true"),
        table(origin, mirror, each='pull-from-mirror = "digest-only"'),
    ):
        configured(forbidden)
        assert fetch(f"{origin.host}/team/app:1") == right and not mirror.asked
    configured(table(origin, mirror, each='pull-from-mirror = "tag-only"'))
    assert fetch(name) == right and not mirror.asked


def test_REG_13_credentials_of_a_mirror(
    origin: Images,
    mirror: Images,
    configured: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Each place gets its own and nobody else's."""
    origin.password, mirror.password = "origins-secret", "mirrors-secret"
    mirror.things["/v2/copies/app/manifests/1"] = b'{"from": "origin"}'
    auth = {
        place.host: base64.b64encode(f"me:{place.password}".encode()).decode() for place in (origin, mirror)
    }
    folder = tmp_path / "docker"
    folder.mkdir()
    entries = {host: {"auth": value} for host, value in auth.items()}
    (folder / "config.json").write_text(json.dumps({"auths": entries}))
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    configured(table(origin, mirror))
    assert fetch(f"{origin.host}/team/app:1") == b'{"from": "origin"}'  # the blob is the origin's
    for place, foreign in ((origin, mirror), (mirror, origin)):
        assert (
            place.asked
            and auth[foreign.host] not in str(place.asked)
            and auth[place.host] in str(place.asked)
        )
    del mirror.things["/v2/copies/app/manifests/1"]
    (folder / "config.json").write_text(json.dumps({"auths": {origin.host: entries[origin.host]}}))
    mirror.asked.clear()
    assert fetch(f"{origin.host}/team/app:1") == b'{"from": "origin"}'
    assert mirror.asked and not any("authorization" in asked.headers for asked in mirror.asked)


def test_nobody_has_it(origin: Images, mirror: Images, configured: Callable[[str], None]) -> None:
    """The error is the origin's, and says who else was asked."""
    configured(table(origin, mirror))
    with pytest.raises(NotFound, match=r"team/app:9 does not exist.*mirrors: .*copies/app:9 does not exist"):
        fetch(f"{origin.host}/team/app:9")


def test_moved_and_blocked(origin: Images, configured: Callable[[str], None]) -> None:
    configured(f'[[registry]]\nprefix = "example.test/our"\nlocation = "{origin.host}/team"\n')
    assert fetch("example.test/our/app:1") == b'{"from": "origin"}'
    configured('[[registry]]\nlocation = "example.test"\nblocked = true\n')
    with pytest.raises(Blocked, match=r"may not be used: .*registries\.conf blocks example\.test"):
        fetch("example.test/our/app:1")
    with pytest.raises(Blocked):
        open_for_push(parse_reference("example.test/x"), ClientOptions())


def test_push_goes_to_the_origin(origin: Images, mirror: Images, configured: Callable[[str], None]) -> None:
    configured(table(origin, mirror, more=f'location = "{mirror.host}/elsewhere"'))
    with open_for_push(parse_reference(f"{origin.host}/team/app"), ClientOptions()) as repository:
        assert repository.name == f"{origin.host}/team/app:latest"
        assert repository.fetch("1").data == b'{"from": "origin"}'
    assert not mirror.asked


def test_insecure_means_any_certificate(tmp_path: Path, configured: Callable[[str], None]) -> None:
    """Of that registry alone; without it nothing is trusted, and HTTP is not tried instead."""
    key, cert = certificate(tmp_path / "tls", "somebody.else")
    with Listener(tls=(key, cert)) as server:
        server.answer = good
        name = f"{server.host}/x:1"
        with (
            open_repository(parse_reference(name), ClientOptions()) as repository,
            pytest.raises(Untrusted, match="no certificate"),
        ):
            repository.fetch()
        configured(f'[[registry]]\nlocation = "{server.host}"\ninsecure = true\n')
        with open_repository(parse_reference(name), ClientOptions()) as repository:
            assert repository.fetch().data == b"{}"


def test_progress_of_a_mirror_that_breaks_off(
    origin: Images, mirror: Images, configured: Callable[[str], None]
) -> None:
    """What is thrown away is taken back from the progress."""
    blob = random.Random(3).randbytes(100_000)
    digest = "sha256:" + hashlib.sha256(blob).hexdigest()
    origin.things[f"/v2/team/app/blobs/{digest}"] = blob

    def breaking(exchange: Exchange) -> None:
        exchange.write(exchange.head(Answer(200, {}, blob)) + blob[:50_000])
        exchange.end()

    mirror.answer = breaking
    configured(table(origin, mirror))
    counted: list[int] = []
    with open_repository(parse_reference(f"{origin.host}/team/app:1"), ClientOptions()) as repository:
        repository.blob(Descriptor("", digest_of(blob), len(blob)), io.BytesIO(), counted.append)
    assert sum(counted) == len(blob)
