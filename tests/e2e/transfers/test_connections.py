"""Connections that are kept, break, or are refused; downloads that go on."""

from __future__ import annotations

import io
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from clients import client
from faults import Answer, Exchange, Listener

from builder.registry.client import Registry
from builder.registry.errors import Unavailable
from builder.registry.transport import Transport
from cache.descriptor import Descriptor
from cache.digest import digest_of

pytestmark = pytest.mark.e2e

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MIB = 1 << 20


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
