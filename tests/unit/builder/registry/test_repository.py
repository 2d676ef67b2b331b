"""Repositories with mirrors, and the client beneath them, against servers on loopback."""

from __future__ import annotations

import http.server
import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from builder.oci import media_types
from builder.oci.manifest import Manifest
from builder.registry.client import Registry
from builder.registry.credentials import Credentials
from builder.registry.errors import NotFound, Unavailable, Untrusted
from builder.registry.repository import Location, Repository, open_for_push, open_repository
from builder.registry.transport import Transport
from builder.request import ClientOptions
from cache.descriptor import Descriptor
from cache.digest import digest_of
from grammar.reference import parse_reference

MANIFEST = json.dumps(
    {"schemaVersion": 2, "mediaType": media_types.MANIFEST, "config": {}, "layers": []}
).encode()


class Server(http.server.ThreadingHTTPServer):
    """Answers with what ``answers`` holds for a path, and keeps the requests and what was pushed."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, tuple[int, str, bytes]] = {}
        self.asked: list[str] = []
        self.pushed: dict[str, bytes] = {}

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def image(self, repository: str, data: bytes = MANIFEST) -> None:
        for name in ("latest", digest_of(data)):
            self.answers[f"/v2/{repository}/manifests/{name}"] = (200, media_types.MANIFEST, data)
        self.answers[f"/v2/{repository}/blobs/{digest_of(data)}"] = (200, media_types.OCTETS, data)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path != "/v2/":  # by which a client finds out that this is HTTP
            self.server.asked.append(f"{self.command} {self.path}")
        self.answer(*self.server.answers.get(self.path, (404, "text/plain", b"no")))

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        self.server.asked.append(f"PUT {self.path}")
        self.server.pushed[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(201, "text/plain", b"")

    def answer(self, status: int, media: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[], Server]]:
    servers: list[Server] = []

    def start() -> Server:
        server = Server()
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def location(server: Server, repository: str = "app") -> Location:
    transport = Transport(server.host, "http", sleep=lambda _: None, tries=2)
    return Location(Registry(server.host, transport=transport, credentials=Credentials()), repository)


def repository(*servers: Server) -> Repository:
    return Repository(parse_reference("registry.test/app"), [location(server) for server in servers])


def test_the_first_location_that_has_it_answers(serve: Callable[[], Server]) -> None:
    empty, mirror, origin = serve(), serve(), serve()
    mirror.image("app")
    at = Descriptor(media_types.MANIFEST, digest_of(MANIFEST), len(MANIFEST))
    with repository(empty, mirror, origin) as opened:
        assert opened.fetch().digest == at.digest
        assert isinstance(opened.manifest(at), Manifest)
        sink = io.BytesIO()
        opened.blob(at, sink, lambda count: None)
        assert sink.getvalue() == MANIFEST
    assert len(empty.asked) == len(mirror.asked) == 3 and not origin.asked


def test_the_error_of_the_last_location_names_the_others(serve: Callable[[], Server]) -> None:
    mirror, origin = serve(), serve()
    with repository(mirror, origin) as opened, pytest.raises(NotFound) as raised:
        opened.fetch()
    assert origin.host in raised.value.message and f"(its mirrors: {mirror.host}/app" in raised.value.message


def test_a_mirror_that_fails_is_not_asked_again(serve: Callable[[], Server]) -> None:
    mirror, origin = serve(), serve()
    origin.image("app")
    mirror.answers = {"/v2/app/manifests/latest": (503, "text/plain", b"")}
    with repository(mirror, origin) as opened:
        for _ in range(2):
            assert opened.fetch().data == MANIFEST
    assert len(mirror.asked) == 2


def test_REG_02_other_bytes_are_refused(serve: Callable[[], Server]) -> None:
    server = serve()
    name = digest_of(MANIFEST)
    server.answers = {
        f"/v2/app/manifests/{name}": (200, media_types.MANIFEST, b"{}"),
        f"/v2/app/blobs/{name}": (200, media_types.OCTETS, bytes(len(MANIFEST))),
    }
    at = Descriptor(media_types.MANIFEST, name, len(MANIFEST))
    with repository(server) as opened:
        with pytest.raises(Untrusted, match="has the digest"):
            opened.manifest(at)
        with pytest.raises(Untrusted, match="sent something else"):
            opened.blob(at, io.BytesIO(), lambda count: None)


def test_writes_go_to_the_registry_itself(serve: Callable[[], Server]) -> None:
    mirror, origin = serve(), serve()
    mirror.image("app")
    with repository(mirror, origin) as opened:
        assert not opened.has_blob(Descriptor("", digest_of(MANIFEST), len(MANIFEST)))
        assert opened.push_manifest("latest", media_types.MANIFEST, MANIFEST) is False
    assert origin.pushed == {"/v2/app/manifests/latest": MANIFEST} and not mirror.asked


def test_nobody_listens() -> None:
    with Server() as server:
        pass
    with repository(server) as opened, pytest.raises(Unavailable, match="could not be reached"):
        opened.fetch()


def test_registries_conf_decides_where_to_read(
    serve: Callable[[], Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror, origin = serve(), serve()
    mirror.image("copies/app")
    config = tmp_path / "registries.conf"
    config.write_text(
        f'[[registry]]\nprefix = "{origin.host}/team"\n'
        f'[[registry.mirror]]\nlocation = "{mirror.host}/copies"\n'
    )
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(config))
    reference = parse_reference(f"{origin.host}/team/app")
    with open_repository(reference, ClientOptions()) as opened:
        assert opened.fetch().data == MANIFEST
    with open_for_push(reference, ClientOptions()) as opened, pytest.raises(NotFound):
        opened.fetch()


def test_options() -> None:
    options = ClientOptions(timeout=10)
    assert options.silence == 5 and ClientOptions().silence == 60
    assert options.trusting("a").trusting("b") == ClientOptions(frozenset("ab"), 10)
