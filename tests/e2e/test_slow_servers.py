"""Servers that never come to an end: each door gives them up in the time of ``--timeout``."""

from __future__ import annotations

import io
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faults import Answer, Exchange, Listener
from harness import Pybuild, Result

from builder.registry import limits
from builder.registry.client import Registry
from builder.registry.credentials import Credentials
from builder.registry.errors import RegistryError, Unauthorized, Unavailable
from builder.registry.transport import Transport
from builder.request import ClientOptions
from cache.descriptor import Descriptor
from cache.digest import digest_of

pytestmark = pytest.mark.e2e

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
# First this, then that again and again, with so many seconds between
ENDLESS: dict[str, tuple[bytes, bytes, float]] = {
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.0),
    "continue-slowly": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.1),
    "processing-with-headers": (b"HTTP/1.1 102 X\r\n", b"a: b\r\n", 0.05),
    "status": (b"HTTP/1.1 200 ", b"O", 0.05),
    "header": (HEAD + b"X-A: ", b"a", 0.05),
    "headers": (HEAD, b"x: y\r\n" * 200, 0.0),
    "body": (HEAD + b"Content-Length: 100000\r\n\r\n", b" ", 0.05),
    "chunk-size": (CHUNKED, b"0", 0.05),
    "chunk-sizes": (CHUNKED, b"1\r\n \r\n", 0.05),
    "chunk-extensions": (CHUNKED, b"1;" + b"a" * 3000 + b"\r\n \r\n", 0.0),
    "chunk-extension": (CHUNKED + b"1;", b"a" * 3000, 0.0),
    "trailers": (CHUNKED + b"2\r\n{}\r\n0\r\n", b"x: y\r\n" * 200, 0.0),
    "trailers-slowly": (CHUNKED + b"2\r\n{}\r\n0\r\n", b"x", 0.05),
    "trailer": (CHUNKED + b"2\r\n{}\r\n0\r\nx: ", b"y" * 3000, 0.0),
    "nothing-in-the-head": (b"HTTP/1.1 200", b"", 0.05),
    "nothing-in-the-body": (CHUNKED, b"", 0.05),
}


def endless(kind: str) -> Callable[[Exchange], None]:
    first, again, pause = ENDLESS[kind]

    def answer(exchange: Exchange) -> None:
        connection = exchange.take("")
        connection.sendall(first)
        while True:
            connection.sendall(again)
            time.sleep(pause)

    return answer


@pytest.fixture
def server() -> Iterator[Listener]:
    with Listener() as made:
        yield made


def client(server: Listener, tries: int = 6, timeout: float = 0.6) -> Registry:
    transport = Transport(
        server.host, "http", False, True, tries, lambda _: None, lambda: 0.0, timeout / 2, timeout
    )
    return Registry(server.host, transport=transport, credentials=Credentials("me", "pw"))


@pytest.mark.parametrize("what", ["manifest", "blob", "push"])
def test_endless(what: str) -> None:
    """Each way of never coming to an end, all at once: none waits longer than it may, nor works meanwhile."""
    data = b"x" * 100_000

    def ask(kind: str) -> float:
        begun, cpu = time.monotonic(), time.thread_time()
        with Listener() as server, client(server) as registry:
            server.answer = endless(kind)
            with pytest.raises(RegistryError):
                if what == "manifest":
                    registry.manifest("x", "latest")
                elif what == "blob":
                    registry.blob(
                        "x", Descriptor("", digest_of(data), len(data)), io.BytesIO(), lambda n: None
                    )
                else:
                    registry.push_manifest("x", "latest", MANIFEST, b"{}")
        assert time.thread_time() - cpu < 0.5, kind
        return time.monotonic() - begun

    with ThreadPoolExecutor(len(ENDLESS)) as pool:
        took = dict(zip(ENDLESS, pool.map(ask, ENDLESS), strict=True))
    assert max(took.values()) < 4.0, took


@pytest.mark.parametrize("count, fine", [(1, True), (10, True), (11, False)])
@pytest.mark.parametrize("status", [100, 102, 103, 199])
def test_answers_before_the_answer(server: Listener, status: int, count: int, fine: bool) -> None:
    def answer(exchange: Exchange) -> None:
        exchange.write(b"HTTP/1.1 %d X\r\nLink: </a>; rel=preload\r\n\r\n" % status * count)
        exchange.send(Answer(200, {"Content-Type": MANIFEST}, b"{}"))

    server.answer = answer
    with client(server, tries=1) as registry:
        if fine:
            assert registry.manifest("x", "latest").data == b"{}"
            assert registry.manifest("x", "latest").data == b"{}" and server.connections == 2
        else:
            with pytest.raises(Unavailable, match="more than 10 times"):
                registry.manifest("x", "latest")


@pytest.mark.parametrize("piece", [1, 2, 7, 1000, 19_000])
def test_chunks(server: Listener, piece: int) -> None:
    """However a body is cut up, it comes whole, in memory of its own size, and the connection is kept."""
    data = b'{"a": "' + bytes(97 + i % 26 for i in range(20_000)) + b'"}'
    parts = [data[i : i + piece] for i in range(0, len(data), piece)]
    body = b"".join(b"%x ;x=y\r\n%b\r\n" % (len(part), part) for part in parts[:9])
    body += b"".join(b"%X\r\n%b\r\n" % (len(part), part) for part in parts[9:]) + b"0\r\nX-Sum: 1\r\n\r\n"
    server.answer = lambda exchange: exchange.write(CHUNKED + body)
    with client(server, timeout=20) as registry:
        assert registry.manifest("x", "latest").data == data
        tracemalloc.start()
        assert registry.manifest("x", "latest").data == data
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 20 and server.connections == 2


@pytest.mark.parametrize(
    "body", [b"x\r\n{}\r\n0\r\n\r\n", b"-2\r\n{}\r\n0\r\n\r\n", b"2\r\n{}}\r\n0\r\n\r\n", b"0x2\r\n{}\r\n0\r\n\r\n",
             b"\r\n{}", b"2\r\n{}\r\n", b"2\r\n{}\r\n0", b"f" * 20 + b"\r\n{}"],
)  # fmt: skip
def test_chunks_that_are_none(server: Listener, body: bytes) -> None:
    def answer(exchange: Exchange) -> None:
        exchange.write(CHUNKED + body)
        exchange.end()

    server.answer = answer
    with client(server) as registry, pytest.raises(Unavailable):
        registry.manifest("x", "latest")


def test_doors(pybuild: Pybuild, server: Listener, tmp_path: Path) -> None:
    """All that asks a server says which, and ends; a cache is only missed."""
    server.answer = endless("header")
    pybuild("tag", "busybox", f"{server.host}/x").ok()
    add = pybuild.context(f"FROM scratch\nADD http://{server.host}/file /\n", name="add")
    plain = pybuild.context("FROM scratch\nCOPY <<A /a\nA\n", name="plain")
    based = pybuild.context(f"FROM {server.host}/y\n", name="based")
    doors: dict[str, tuple[str | Path, ...]] = {
        "pull": ("pull", f"{server.host}/x"),
        "push": ("push", f"{server.host}/x"),
        "login": ("login", server.host, "-u", "me", "--password-stdin"),
        "FROM": (based,),
        "ADD": (add,),
        "context": (f"http://{server.host}/context.tar",),
        "git": (f"http://{server.host}/context.git",),
        "cache-from": (plain, "--cache-from", f"type=registry,ref={server.host}/cache"),
        "cache-to": (plain, "--cache-to", f"type=registry,ref={server.host}/cache"),
    }

    def go(door: str) -> tuple[Result, float]:
        begun = time.monotonic()
        env = {"DOCKER_CONFIG": str(tmp_path / "docker")}
        done = pybuild(*doors[door], "--timeout", "500ms", env=env, stdin=b"pw\n", timeout=60)
        return done, time.monotonic() - begun

    with ThreadPoolExecutor(len(doors)) as pool:
        ended = dict(zip(doors, pool.map(go, doors), strict=True))
    for door, (done, seconds) in ended.items():
        assert seconds < 20, (door, seconds, done.err)
        if door == "cache-from":
            assert "is not used" in done.ok().err
        elif door != "cache-to" or done.code:
            assert server.host in done.failed().err, done.err


@pytest.mark.parametrize("ref, again", [("", b"0"), ("#" + "a" * 40, b"00800" + b"x" * 123)])
def test_git_server(pybuild: Pybuild, server: Listener, ref: str, again: bytes) -> None:
    """One that lists refs for ever, slowly or fast, whether they are asked for first or not."""

    def answer(exchange: Exchange) -> None:
        kind = b"Content-Type: application/x-git-upload-pack-advertisement\r\n\r\n"
        connection = exchange.take("")
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + kind + b"001e# service=git-upload-pack\n0000")
        while True:
            connection.sendall(again)
            time.sleep(0.02)

    server.answer = answer
    begun = time.monotonic()
    said = pybuild(f"http://{server.host}/x.git{ref}", "--timeout", "500ms").failed().err
    assert "nothing of use" in said or "too slow" in said
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    "text, seconds", [("90", 90), ("90s", 90), ("1.5m", 90), ("24h", 86400), ("250ms", 0.25)]
)
def test_times(text: str, seconds: float) -> None:
    assert limits.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "1d", "25h", "1e9", "nan", "1_0", "\u0661"])
def test_times_that_are_none(pybuild: Pybuild, text: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        limits.seconds(text)
    if text == "0":
        assert "--timeout" in pybuild("pull", "x", "--timeout=0").failed(2).err


def test_default() -> None:
    assert ClientOptions().timeout == 120 and ClientOptions().silence == 60
    assert Transport("x").timeout == 120


def test_login_refused_slowly(server: Listener) -> None:
    """An error whose words never end is that error."""

    def answer(exchange: Exchange) -> None:
        connection = exchange.take("")
        connection.sendall(b"HTTP/1.1 403 X\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nno-no\r\n")
        while True:
            connection.sendall(b"1\r\nx\r\n")
            time.sleep(0.05)

    server.answer = answer
    begun = time.monotonic()
    with client(server) as registry, pytest.raises(Unauthorized):
        registry.check_login()
    assert time.monotonic() - begun < 2
