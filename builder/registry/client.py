"""One registry (distribution-spec 1.1): manifests and blobs, verified as they arrive, and pushed."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, cast
from urllib.parse import quote

from builder.image.model import INDEX_TYPE, MANIFEST_TYPE
from builder.registry.auth import TOKEN_LIMIT, authorization
from builder.registry.credentials import Credentials, CredentialStore
from builder.registry.errors import NotFound, RegistryError, Unauthorized, Unavailable, Untrusted
from builder.registry.transport import Body, Response, Transport, is_loopback
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
        self,
        registry: str,
        insecure: frozenset[str] = frozenset(),
        transport: Transport | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        """*credentials* are those of docker's configuration, if None."""
        self.name = registry
        host = _HUB.get(registry, registry)
        self._transport = transport or Transport(host)
        self._credentials = credentials
        self._tokens: dict[tuple[str, ...], str] = {}  # by scopes
        self._authorizing = threading.Lock()
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

    # -- pushing ---------------------------------------------------------------------------

    def has_blob(self, repository: str, descriptor: Descriptor) -> bool:
        """Whether the repository has a blob already."""
        url = f"{self._base}/{quote(repository)}/blobs/{descriptor.digest}"
        response = self._ask("HEAD", url, _push(repository), {})
        response.discard()
        return response.status == 200

    def push_blob(
        self,
        repository: str,
        descriptor: Descriptor,
        path: str,
        mount_from: str,
        progress: Callable[[int], None],
    ) -> bool:
        """Upload the file *path*, or have it mounted from the repository *mount_from* ("": none).

        Returns whether bytes were sent. An upload that breaks off is begun anew. Raises RegistryError.
        """
        what = f"{self.name}/{repository}@{descriptor.digest}"
        start = f"{self._base}/{quote(repository)}/blobs/uploads/"
        for _ in range(_RESUMES):
            scopes = _push(repository)
            url = start
            if mount_from:
                url += f"?mount={descriptor.digest}&from={quote(mount_from, safe='')}"
                scopes += (f"repository:{mount_from}:pull",)
            response = self._ask("POST", url, scopes, {"Content-Length": "0"}, b"")
            if response.status == 201:
                response.discard()
                progress(descriptor.size)
                return False
            if mount_from and response.status in (401, 403, 404, 405):
                response.discard()
                mount_from = ""  # the registry does not do that, or not for us
                continue
            self._expect(response, (202,), f"starting the upload of {what}")
            location, own = self._location(url, response, what)
            if self._upload(location, own, repository, descriptor, path, progress):
                return True
            progress(-descriptor.size)
        raise Unavailable(f"the upload of {what} broke off, again and again")

    def _upload(
        self,
        location: str,
        own: bool,
        repository: str,
        descriptor: Descriptor,
        path: str,
        progress: Callable[[int], None],
    ) -> bool:
        """PUT the whole; whether it arrived, False where trying again may help."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(descriptor.size)}
        url = f"{location}{'&' if '?' in location else '?'}digest={quote(descriptor.digest, safe='')}"
        counted = 0

        def opened() -> BinaryIO:
            nonlocal counted
            progress(-counted)
            counted = 0
            return cast(BinaryIO, _Counted(open(path, "rb", buffering=0), count))

        def count(size: int) -> None:
            nonlocal counted
            counted += size
            progress(size)

        what = f"uploading {self.name}/{repository}@{descriptor.digest}"
        try:
            if own:
                response = self._ask("PUT", url, _push(repository), headers, opened, tries=1)
            else:
                response = self._transport.request("PUT", url, headers, opened, tries=1)
        except Unavailable:
            progress(descriptor.size - counted)
            return False
        if response.status in (404, 416) or response.status >= 500:
            response.discard()  # the upload is gone, or the server in trouble
            progress(descriptor.size - counted)
            return False
        self._expect(response, (201, 204), what)
        return True

    def push_manifest(self, repository: str, reference: str, media_type: str, data: bytes) -> None:
        """PUT a manifest or index under a tag or its digest. Raises RegistryError."""
        url = f"{self._base}/{quote(repository)}/manifests/{quote(reference, safe=':')}"
        headers = {"Content-Type": media_type, "Content-Length": str(len(data))}
        response = self._ask("PUT", url, _push(repository), headers, data)
        self._expect(response, (200, 201, 202), f"pushing the manifest {self.name}/{repository}:{reference}")

    def check_login(self) -> None:
        """Whether the credentials are good, as /v2/ says. Raises Unauthorized."""
        response = self._ask("GET", f"{self._base}/", (), {})
        self._expect(response, (200,), f"logging in to {self.name}")

    # -- requests --------------------------------------------------------------------------

    def _get(self, url: str, repository: str, headers: dict[str, str], what: str) -> Response:
        """GET with credentials where they are wanted. Raises for anything but success."""
        response = self._ask("GET", url, (f"repository:{repository}:pull",), headers)
        if response.status in (200, 206):
            return response
        raise self._failure(response, what)

    def _ask(
        self,
        method: str,
        url: str,
        scopes: tuple[str, ...],
        headers: dict[str, str],
        body: Body | None = None,
        tries: int = 6,
    ) -> Response:
        """A request that is made again with a (new) token when the registry wants one."""
        token = self._tokens.get(scopes)
        with_token = headers | ({"Authorization": token} if token else {})
        response = self._transport.request(method, url, with_token, body, tries)
        if response.status != 401 or "www-authenticate" not in response.headers:
            return response
        challenge = response.headers["www-authenticate"]
        response.discard()
        with self._authorizing:
            if self._tokens.get(scopes) == token:  # nobody has got a new one meanwhile
                self._tokens[scopes] = self._authorization(challenge, scopes)
        with_token = headers | {"Authorization": self._tokens[scopes]}
        return self._transport.request(method, url, with_token, body, tries)

    def _authorization(self, challenge: str, scopes: tuple[str, ...]) -> str:
        if self._credentials is None:
            self._credentials = CredentialStore().find(self.name)
        flow = authorization(challenge, self.name, scopes, self._credentials)
        try:
            asked = next(flow)
            method = "GET" if asked.body is None else "POST"
            response = self._transport.request(method, asked.url, asked.headers, asked.body)
            if response.status != 200:
                response.discard()
                whose = "for nobody" if self._credentials.anonymous else "for these credentials"
                raise Unauthorized(
                    f"{self.name} gave no token {whose} ({response.status})", f"pybuild login {self.name}"
                )
            flow.send(response.read(TOKEN_LIMIT, "a token"))
        except StopIteration as done:
            return str(done.value)
        raise AssertionError("a token takes one request")

    def _location(self, url: str, response: Response, what: str) -> tuple[str, bool]:
        """Where an upload goes on, and whether that is the registry itself (REG-07)."""
        location = response.headers.get("location", "")
        response.discard()
        if not location:
            raise Untrusted(f"{self.name} does not say where to upload {what} to")
        return self._transport.resolve(url, location)

    def _expect(self, response: Response, wanted: tuple[int, ...], what: str) -> None:
        if response.status not in wanted:
            raise self._failure(response, what)
        response.discard()

    def _failure(self, response: Response, what: str) -> RegistryError:
        detail = _printable(response.read(TOKEN_LIMIT, "an error message")[:300])
        if response.status == 404:
            return NotFound(f"{what} does not exist ({detail})", "check the name and the tag")
        if response.status in (401, 403):
            login = f"pybuild login {self.name}, as a user who may"
            return Unauthorized(f"{what}: not allowed with these credentials ({detail})", login)
        return RegistryError(f"{self.name} answered {response.status} for {what}: {detail}")


def _push(repository: str) -> tuple[str, ...]:
    return (f"repository:{repository}:pull,push",)


class _Counted(io.RawIOBase):
    """A file that tells how much of it was read."""

    def __init__(self, file: Any, count: Callable[[int], None]) -> None:
        self._file = file
        self._count = count

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._file.read(size)
        self._count(len(data))
        return data

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


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
