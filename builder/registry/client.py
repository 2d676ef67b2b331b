"""Pull from one registry: manifests and blobs, verified as they arrive."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import quote

from builder.image.model import INDEX_TYPE, MANIFEST_TYPE
from builder.registry.auth import TOKEN_LIMIT, anonymous_token
from builder.registry.errors import NotFound, RegistryError, Unauthorized, Unavailable, Untrusted
from builder.registry.transport import Response, Transport, is_loopback
from cache.descriptor import Descriptor
from cache.digest import Digest, digest_of, hex_of

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_LIMIT = 4 << 20
_HUB = {"docker.io": "registry-1.docker.io"}
_ACCEPT = ", ".join((MANIFEST_TYPE, INDEX_TYPE, DOCKER_MANIFEST, DOCKER_LIST))
_RESUMES = 5


@dataclass(frozen=True, slots=True)
class Fetched:
    """A manifest or index as it came, its digest computed from the bytes."""

    media_type: str
    digest: Digest
    data: bytes


class Registry:
    """One registry. HTTPS; plain HTTP for hosts in *insecure*, and for a loopback host that
    answers no HTTPS. Never a silent fall-back for any other (REG-15). A context manager.
    """

    def __init__(
        self, registry: str, insecure: frozenset[str] = frozenset(), transport: Transport | None = None
    ) -> None:
        self.name = registry
        host = _HUB.get(registry, registry)
        self._transport = transport or Transport(host)
        self._tokens: dict[str, str] = {}
        plain = registry in insecure or (is_loopback(registry) and _speaks_http(host))
        self._base = f"{'http' if plain else 'https'}://{host}/v2"

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def manifest(self, repository: str, reference: str) -> Fetched:
        """A manifest or index by tag or digest. Raises RegistryError."""
        what = f"{self.name}/{repository}{'@' if ':' in reference else ':'}{reference}"
        url = f"{self._base}/{quote(repository)}/manifests/{quote(reference, safe=':')}"
        response = self._get(url, repository, {"Accept": _ACCEPT}, what)
        try:
            data = response.read(MANIFEST_LIMIT, f"the manifest of {what}")
        except OSError as error:
            raise Unavailable(f"reading the manifest of {what}: {error}") from None
        found = digest_of(data)
        if ":" in reference and found != reference:
            raise Untrusted(f"the manifest of {what} has the digest {found}")
        media = response.headers.get("content-type", "").partition(";")[0].strip()
        return Fetched(media, found, data)

    def blob(
        self, repository: str, descriptor: Descriptor, sink: BinaryIO, progress: Callable[[int], None]
    ) -> None:
        """Write a blob to *sink* (at its start, seekable), verified by size and digest.

        A broken connection is resumed where it broke; a wrong digest is tried once more from
        the start. Raises RegistryError; what *sink* holds then is to be thrown away.
        """
        for attempt in (1, 2):
            sink.seek(0)
            sink.truncate()
            sha = hashlib.sha256()
            self._download(repository, descriptor, sink, sha.update, progress)
            if sha.hexdigest() == hex_of(descriptor.digest):
                return
            progress(-descriptor.size)
            if attempt == 2:
                raise Untrusted(f"{self.name}/{repository} sent other bytes than {descriptor.digest}")

    def _download(
        self,
        repository: str,
        descriptor: Descriptor,
        sink: BinaryIO,
        update: Callable[[bytes], object],
        progress: Callable[[int], None],
    ) -> None:
        what = f"{self.name}/{repository}@{descriptor.digest}"
        url = f"{self._base}/{quote(repository)}/blobs/{descriptor.digest}"
        done = 0
        for _ in range(_RESUMES):
            headers = {"Range": f"bytes={done}-"} if done else {}
            response = self._get(url, repository, headers, what)
            skip = done if done and response.status != 206 else 0
            try:
                for piece in response.chunks(descriptor.size - (done - skip) + 1):
                    # A server that ignores Range sends again what we have.
                    data, skip = piece[skip:], max(0, skip - len(piece))
                    done += len(data)
                    if done > descriptor.size:
                        raise Untrusted(f"{what} is longer than the {descriptor.size} bytes it should have")
                    update(data)
                    sink.write(data)
                    progress(len(data))
            except OSError:
                continue
            if done == descriptor.size:
                return
        raise Unavailable(f"{what} broke off after {done} of {descriptor.size} bytes, again and again")

    def _get(self, url: str, repository: str, headers: dict[str, str], what: str) -> Response:
        """GET with a token where one is wanted. Raises for anything but success."""
        token = self._tokens.get(repository)
        response = self._transport.get(url, headers | ({"Authorization": token} if token else {}))
        if response.status == 401 and "www-authenticate" in response.headers:
            response.read(TOKEN_LIMIT, "an error message")
            self._tokens[repository] = self._token(response.headers["www-authenticate"], repository)
            response = self._transport.get(url, headers | {"Authorization": self._tokens[repository]})
        if response.status in (200, 206):
            return response
        detail = _printable(response.read(TOKEN_LIMIT, "an error message")[:300])
        if response.status == 404:
            raise NotFound(f"{what} does not exist ({detail})", "check the name and the tag")
        if response.status in (401, 403):
            raise Unauthorized(
                f"{what} may not be pulled without credentials ({detail})",
                "private images are not supported in this version",
            )
        raise RegistryError(f"{self.name} answered {response.status} for {what}: {detail}")

    def _token(self, challenge: str, repository: str) -> str:
        flow = anonymous_token(challenge, self.name, repository)
        response = self._transport.get(next(flow), {})
        if response.status != 200:
            raise Unauthorized(f"{self.name} gave no anonymous token for {repository} ({response.status})")
        try:
            flow.send(response.read(TOKEN_LIMIT, "a token"))
        except StopIteration as done:
            return str(done.value)
        raise AssertionError("a token takes one request")


def _printable(data: bytes) -> str:
    text = data.decode("utf-8", "replace")
    return "".join(char if char.isprintable() else " " for char in text).strip()


def _speaks_http(host: str) -> bool:
    """Whether a registry on this machine answers plain HTTP (one that wants TLS does not)."""
    import socket
    from urllib.parse import urlsplit

    parts = urlsplit(f"//{host}")
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=5) as connection:
            connection.settimeout(5)
            connection.sendall(f"GET /v2/ HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            answer = connection.recv(64)
    except OSError:
        return False
    # A TLS server answers either with an alert or, in words, with 400.
    return answer.startswith(b"HTTP/") and b" 400 " not in answer
