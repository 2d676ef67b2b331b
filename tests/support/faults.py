"""HTTP servers that do anything at all: one that is told each answer, one that takes uploads, a proxy.

They remember what they were asked, with every header.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import http.server
import socket
import socketserver
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs

_LINGER_NOT = struct.pack("ii", 1, 0)
_STALL_LIMIT = 20.0
_KEPT = ("host", "connection", "content-length", "transfer-encoding", "keep-alive")


@dataclass
class Asked:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]

    @property
    def route(self) -> str:
        return self.path.partition("?")[0]


@dataclass
class Answer:
    """An answer as it is to be sent; its length is stated unless ``headers`` do."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Exchange:
    """One request and the connection that waits for its answer."""

    def __init__(self, asked: Asked, handler: http.server.BaseHTTPRequestHandler) -> None:
        self.asked = asked
        self._handler = handler
        self._left = int(asked.headers.get("content-length", "0"))
        self._body = b""

    def read(self, count: int = -1) -> bytes:
        """The request's body, or what there is of it after *count* more bytes."""
        wanted = self._left if count < 0 else min(count, self._left)
        data = self._handler.rfile.read(wanted)
        self._left -= len(data)
        self._body += data
        return self._body

    def send(self, answer: Answer) -> None:
        """Answer, after reading all that was sent."""
        self.read()
        self._handler.wfile.write(self.head(answer) + self.shown(answer))

    def shown(self, answer: Answer) -> bytes:
        return b"" if self.asked.method == "HEAD" else answer.body

    def head(self, answer: Answer) -> bytes:
        headers = {"Content-Length": str(len(answer.body)), **answer.headers}
        if answer.status == 204:
            headers.pop("Content-Length")
        lines = [f"HTTP/1.1 {answer.status} X", *(f"{name}: {value}" for name, value in headers.items())]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def write(self, data: bytes) -> None:
        self._handler.wfile.write(data)

    def end(self) -> None:
        """Close the connection in good order."""
        self._handler.close_connection = True

    def reset(self) -> None:
        """End the connection by RST."""
        self._handler.close_connection = True
        connection = self._handler.connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        self._handler.rfile.close()
        self._handler.wfile.close()
        connection.close()

    def stall(self) -> None:
        """Say nothing until the client hangs up."""
        self._handler.close_connection = True
        connection = self._handler.connection
        connection.settimeout(_STALL_LIMIT)
        with contextlib.suppress(OSError):
            while connection.recv(1 << 16):
                pass

    def take(self, text: str) -> socket.socket:
        """Say a last thing, and have the connection as it is."""
        self._handler.close_connection = True
        self._handler.wfile.write(text.encode())
        self._handler.wfile.flush()
        connection: socket.socket = self._handler.connection
        return connection

    def forward(self, host: str) -> Answer:
        """What another server answers."""
        connection = http.client.HTTPConnection(host, timeout=30)
        try:
            kept = {name: value for name, value in self.asked.headers.items() if name not in _KEPT}
            headers = {**kept, "Host": self.asked.headers["host"]}
            connection.request(self.asked.method, self.asked.path, self.read(), headers)
            answer = connection.getresponse()
            body = answer.read()
            found = {name: value for name, value in answer.getheaders() if name.lower() != "connection"}
            return Answer(answer.status, found, body)
        finally:
            connection.close()


class Listener:
    """A server on loopback whose every answer is made by ``answer``; ``asked`` is all it heard.

    With *tls* (key, certificate) it speaks HTTPS, as its ``context`` is set up.
    """

    def __init__(self, host: str = "127.0.0.1", tls: tuple[Path, Path] | None = None) -> None:
        self.asked: list[Asked] = []
        self.connections = 0
        self.peak = 0
        self.answer: Callable[[Exchange], None] = lambda exchange: exchange.send(Answer(404))
        self._now = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def any(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = Asked(self.command, self.path, headers)
                exchange = Exchange(asked, self)
                if self.request_version == "HTTP/1.0" and self.path == "/v2/":
                    exchange.send(Answer(200))  # only a look at what is spoken here
                    return
                outer.enter(asked)
                try:
                    outer.answer(exchange)
                finally:
                    outer.leave()

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_CONNECT = any

            def log_message(self, *args: object) -> None:
                pass

        class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def process_request(self, request: Any, address: Any) -> None:
                outer.connections += 1
                super().process_request(request, address)

            def handle_error(self, request: Any, address: Any) -> None:
                pass  # clients that hang up are what many tests are about

        self._server = Server((host, 0), Handler)
        self.port = int(self._server.server_address[1])
        self.host = f"{host}:{self.port}"
        if tls is not None:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(tls[1], tls[0])
            self._server.socket = self.context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def enter(self, asked: Asked) -> None:
        with self._lock:
            self.asked.append(asked)
            self._now += 1
            self.peak = max(self.peak, self._now)

    def leave(self) -> None:
        with self._lock:
            self._now -= 1

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Uploads(Listener):
    """What a registry does with uploads, by the letter of the specification, in memory.

    Bytes that came before a connection broke are kept (``cuts`` says after how many of each request
    with a body it breaks). No body may be longer than ``largest``; ``chunks`` is whether PATCH is known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answer = self._answer
        self.cuts: list[int] = []
        self.largest = 1 << 40
        self.refuse_by_reset = False
        self.smallest = 0
        self.chunks = True
        self.taken = 0  # bytes of bodies, in all
        self.blobs: dict[str, bytes] = {}
        self._parts: dict[str, bytes] = {}

    def _answer(self, exchange: Exchange) -> None:
        asked = exchange.asked
        name, query = asked.route, parse_qs(asked.path.partition("?")[2])
        size = int(asked.headers.get("content-length", "0"))
        if asked.method == "HEAD":
            data = self.blobs.get(name.rpartition("/")[2])
            head = {"Content-Length": str(len(data))} if data is not None else {}
            return exchange.send(Answer(404 if data is None else 200, head))
        if asked.method == "POST":
            self._parts[upload := f"{name}{len(self._parts)}"] = b""
            place = {
                "Location": f"{upload}?state=0",
                "Range": "0-0",
                "OCI-Chunk-Min-Length": str(self.smallest),
            }
            return exchange.send(Answer(202, place))
        if name not in self._parts:
            return exchange.send(Answer(404))
        if size > self.largest and self.refuse_by_reset:
            exchange.read(self.largest)
            return exchange.reset()
        if size > self.largest:
            return exchange.send(Answer(413))
        if asked.method == "PATCH" and not self.chunks:
            return exchange.send(Answer(405))
        here = len(self._parts[name])
        if asked.method == "PATCH" and int(asked.headers["content-range"].partition("-")[0]) != here:
            return exchange.send(Answer(416))
        cut = self.cuts.pop(0) if size and self.cuts else size
        data = exchange.read(cut)
        self.taken += len(data)
        self._parts[name] += data
        if cut < size:
            return exchange.reset()
        whole = self._parts[name]
        if asked.method == "PUT":
            digest = "sha256:" + hashlib.sha256(whole).hexdigest()
            if query["digest"] != [digest]:
                return exchange.send(
                    Answer(400, {}, b'{"errors": [{"code": "DIGEST_INVALID", "message": "no"}]}')
                )
            self.blobs[digest] = whole
            return exchange.send(Answer(201))
        place = {"Location": f"{name}?state={len(whole)}", "Range": f"0-{max(0, len(whole) - 1)}"}
        return exchange.send(Answer(204 if asked.method == "GET" else 202, place))


class Proxy(Listener):
    """An HTTP proxy that leads to one server, whatever it is asked for; ``asked`` are the requests to it."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target
        self.answer = self._answer

    def _answer(self, exchange: Exchange) -> None:
        if exchange.asked.method != "CONNECT":
            exchange.asked.path = exchange.asked.path.partition("://")[2].partition("/")[2]
            exchange.asked.path = f"/{exchange.asked.path}"
            return exchange.send(exchange.forward(self.target))
        host, _, port = self.target.rpartition(":")
        with socket.create_connection((host, int(port))) as there:
            here = exchange.take("HTTP/1.1 200 Connected\r\n\r\n")
            back = threading.Thread(target=_pump, args=(there, here), daemon=True)
            back.start()
            _pump(here, there)
            back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


def certificate(folder: Path, *names: str, expired: bool = False) -> tuple[Path, Path]:
    """A key and a certificate that is its own authority, for host names and addresses."""
    folder.mkdir(exist_ok=True)
    key, cert, config = folder / "key.pem", folder / "cert.pem", folder / "ca.cnf"
    (folder / "index.txt").write_text("")
    kinds = ",".join(f"{'IP' if name.replace('.', '').isdigit() else 'DNS'}:{name}" for name in names)
    config.write_text(
        f"[ca]\ndefault_ca=x\n[x]\ndatabase={folder}/index.txt\nnew_certs_dir={folder}\nrand_serial=yes\n"
        f"default_md=sha256\npolicy=p\nx509_extensions=e\n[p]\ncommonName=supplied\n"
        f"[e]\nsubjectAltName={kinds}\nbasicConstraints=critical,CA:true\n[req]\ndistinguished_name=d\n[d]\n"
    )
    commands = [
        f"req -new -newkey rsa:2048 -nodes -keyout {key} -out {folder}/csr.pem -subj /CN=test -config {config}",
        f"ca -selfsign -batch -config {config} -keyfile {key} -in {folder}/csr.pem -out {cert} -notext"
        f" -startdate 20200101000000Z -enddate {'20210101000000Z' if expired else '20490101000000Z'}",
    ]
    for command in commands:
        subprocess.run(["openssl", *command.split()], check=True, capture_output=True)
    return key, cert
