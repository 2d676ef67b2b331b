"""A registry that attacks its clients, and what a client asks of it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults import Answer, Exchange, Listener

from builder.images.pull import pull_config
from builder.oci.model import host as machine
from builder.registry.client import Registry
from builder.registry.credentials import Credentials
from builder.registry.transport import Transport
from builder.request import ClientOptions
from cache.descriptor import Descriptor
from cache.digest import digest_of
from grammar.reference import parse_reference

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYER = "application/vnd.docker.image.rootfs"
ME = Credentials("me", "hunter2")
SECRETS = ("hunter2", base64.b64encode(b"me:hunter2").decode(), "tok")


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


DATA = bytes(range(256)) * 200
