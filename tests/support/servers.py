"""Registries for tests: the distribution's own, and one that misbehaves as told."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import socket
import socketserver
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def registry(program: str, folder: Path, extra: str = "") -> Iterator[str]:
    """The real docker-registry on loopback; its ``host:port``."""
    port = free_port()
    config = folder / "registry.yml"
    config.write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {folder}/registry\n"
        f"http:\n  addr: 127.0.0.1:{port}\n{extra}"
    )
    with (folder / "registry.log").open("wb") as log:
        served = subprocess.Popen([program, "serve", config], stdout=log, stderr=log)
    try:
        end = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < end and served.poll() is None, (folder / "registry.log").read_text()
                time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        served.terminate()
        served.wait()


Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class Misbehaving:
    """An HTTP server whose every path answers what a test put there; it keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
                try:
                    answer = outer.answers[self.path.partition("?")[0]]
                except KeyError:
                    send(self, b"{}", status=404 if self.path != "/v2/" else 200)
                else:
                    answer(self)

            def log_message(self, *args: object) -> None:
                pass

        class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, address: Any) -> None:
                pass  # clients that hang up are what some tests are about

        self.server = Server(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def serve(self, path: str, data: bytes, media: str = "application/octet-stream", **headers: str) -> None:
        self.answers[path] = lambda handler: send(handler, data, media, 200, **headers)

    def image(self, name: str, files: dict[str, bytes], manifest: dict[str, Any]) -> None:
        """Serve a whole image; *files* are blobs by digest."""
        body = json.dumps(manifest).encode()
        for reference in ("latest", "sha256:" + hashlib.sha256(body).hexdigest()):
            self.serve(f"/v2/{name}/manifests/{reference}", body, manifest["mediaType"])
        for digest, data in files.items():
            self.serve(f"/v2/{name}/blobs/{digest}", data)


def send(
    handler: http.server.BaseHTTPRequestHandler,
    data: bytes,
    media: str = "application/octet-stream",
    status: int = 200,
    **headers: str,
) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", media)
    for name, value in ({"Content-Length": str(len(data))} | headers).items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(data)


def fetch(url: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        data: bytes = answer.read()
        return data


def certificate(folder: Path) -> tuple[Path, Path]:
    """A key and a self-signed certificate for localhost."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True, env={**os.environ, "HOME": str(folder)},
    )  # fmt: skip
    return key, cert
