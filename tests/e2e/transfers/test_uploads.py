"""How blobs go to a registry: whole, in chunks, redirected, mounted, cut off."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clients import client
from faults import Answer, Exchange, Listener, Uploads

from builder.registry.errors import RegistryError, Unavailable, Untrusted
from cache.descriptor import Descriptor
from cache.digest import digest_of

pytestmark = pytest.mark.e2e

MIB = 1 << 20


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
