"""One registry (distribution-spec 1.1): manifests and blobs, verified as they arrive, and pushed."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from typing import BinaryIO
from urllib.parse import quote

from builder.oci.media_types import MANIFESTS
from builder.registry import limits
from builder.registry.credentials import Credentials
from builder.registry.errors import RegistryError, Untrusted
from builder.registry.session import Session
from builder.registry.transport import TRIES, BrokenOff, Transport
from builder.registry.upload import Upload, has_blob, push_scopes
from builder.request import ClientOptions
from cache.descriptor import Descriptor
from cache.digest import Digest, digest_of, hex_of
from grammar.structs import struct

MANIFEST_LIMIT = 4 << 20
_ACCEPT = ", ".join(MANIFESTS)
_PROGRESS = 1 << 20  # bytes that a download has to bring before it breaks off, to be no failure


@struct
class Fetched:
    """A manifest or index as it came, its digest computed from the bytes."""

    media_type: str
    digest: Digest
    data: bytes


class Registry:
    """One registry, for any number of threads. A context manager. It connects when it is first used."""

    def __init__(
        self,
        registry: str,
        options: ClientOptions | None = None,
        transport: Transport | None = None,
        credentials: Credentials | None = None,
        tries: int | None = None,
    ) -> None:
        """*tries* is how often a request is tried, the usual number if None.

        *credentials* are those of Docker's configuration, if None.
        """
        self.name = registry
        self._options = options or ClientOptions()
        self._transport = transport
        self._credentials = credentials
        self._tries = tries or TRIES
        self._session: Session | None = None
        self._opening = threading.Lock()

    def close(self) -> None:
        if self._session is not None:
            self._session.transport.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- pulling ---------------------------------------------------------------------------

    def manifest(self, repository: str, reference: str) -> Fetched:
        """Return a manifest or index by tag or digest. Raises RegistryError."""
        what = f"{self.name}/{repository}{'@' if ':' in reference else ':'}{reference}"
        for last in (False, True):
            fetched = self._manifest(repository, reference, what)
            if ":" not in reference or fetched.digest == reference:
                return fetched
            if last:
                break
        raise Untrusted(f"the manifest of {what} has the digest {fetched.digest}")

    def _manifest(self, repository: str, reference: str, what: str) -> Fetched:
        session = self._open()
        url = f"{session.base}/{quote(repository)}/manifests/{quote(reference, safe=':')}"
        headers = {"Accept": _ACCEPT}
        response = session.ask("GET", url, _pull(repository), headers, limit=MANIFEST_LIMIT)
        if response.status != 200:
            raise session.failure(response, what)
        media = response.headers.get("content-type", "").partition(";")[0].strip()
        if media == "text/html":
            raise Untrusted(f"{self.name} answered a web page for {what}", "check the name of the registry")
        return Fetched(media, digest_of(response.data), response.data)

    def blob(
        self, repository: str, descriptor: Descriptor, sink: BinaryIO, progress: Callable[[int], None]
    ) -> None:
        """Write a blob to *sink* (at its start, seekable), verified by size and digest.

        A broken download is resumed; wrong bytes are fetched once more from the start. Raises RegistryError,
        and then the content of *sink* is useless.
        """
        for last in (False, True):
            sink.seek(0)
            sink.truncate()
            sha = hashlib.sha256()
            counted = 0

            def write(data: bytes, sha: hashlib._Hash = sha) -> None:
                nonlocal counted
                sha.update(data)
                sink.write(data)
                counted += len(data)
                progress(len(data))

            right = False
            try:
                whole = self._download(repository, descriptor, write)
                right = whole and sha.hexdigest() == hex_of(descriptor.digest)
            finally:
                if not right:
                    progress(-counted)
            if right or last:
                break
        if right:
            return
        what = f"the {descriptor.size} bytes of {descriptor.digest}"
        raise Untrusted(f"{self.name}/{repository} sent something else than {what}")

    def _download(self, repository: str, descriptor: Descriptor, write: Callable[[bytes], object]) -> bool:
        """Write the bytes of a blob; return False where the registry sends more or fewer than its size.

        Raises RegistryError.
        """
        session = self._open()
        what = f"{self.name}/{repository}@{descriptor.digest}"
        url = f"{session.base}/{quote(repository)}/blobs/{descriptor.digest}"
        done, failures, wasted = 0, 0, 0.0
        while failures < session.transport.tries and wasted < session.transport.timeout:
            begun = done
            headers = {"Range": f"bytes={done}-"} if done else {}
            response = session.ask("GET", url, _pull(repository), headers, limit=0)
            if done and response.status == 416:
                return False  # there is no more
            if response.status not in (200, 206):
                raise session.failure(response, what)
            since = time.monotonic()
            # A server that ignores Range sends again what we have.
            skip = done if response.status != 206 else 0
            try:
                for piece in response.chunks(descriptor.size - done + skip + 1):
                    data, skip = piece[skip:], max(0, skip - len(piece))
                    done += len(data)
                    if done > descriptor.size:
                        return False
                    write(data)
                if done == begun < descriptor.size:
                    return False
            except BrokenOff:
                pass
            if done == descriptor.size:
                return True
            failures = 0 if done - begun >= _PROGRESS else failures + 1
            elapsed = time.monotonic() - since
            wasted += elapsed if done - begun < limits.SLOWEST * elapsed else 0.0
            session.transport.pause(max(failures, 1), None)
        why = f"{what} broke off after {done} of {descriptor.size} bytes, again and again"
        raise session.transport.give_up(why)

    # -- pushing ---------------------------------------------------------------------------

    def has_blob(self, repository: str, descriptor: Descriptor) -> bool:
        """Return whether the repository has a blob."""
        return has_blob(self._open(), repository, descriptor)

    def push_blob(
        self,
        repository: str,
        descriptor: Descriptor,
        path: str,
        mount_from: str | None,
        progress: Callable[[int], None],
    ) -> bool:
        """Upload the file *path*, or have it mounted from the repository *mount_from*.

        Returns whether bytes were sent. A broken upload is resumed, or
        started anew. Raises RegistryError.
        """
        return Upload(self._open(), repository, descriptor, path, progress).run(mount_from)

    def push_manifest(self, repository: str, reference: str, media_type: str, data: bytes) -> bool:
        """PUT a manifest or index under a tag or its digest. Raises RegistryError.

        Return True if the registry lists the manifest as a referrer of its subject (OCI-Subject).
        """
        session = self._open()
        what = f"pushing the manifest {self.name}/{repository}:{reference}"
        url = f"{session.base}/{quote(repository)}/manifests/{quote(reference, safe=':')}"
        headers = {"Content-Type": media_type, "Content-Length": str(len(data))}
        response = session.ask("PUT", url, push_scopes(repository), headers, data)
        if response.status not in (200, 201, 202):
            raise session.failure(response, what)
        # 201 it has to be; whoever says something else may be no registry.
        if response.status != 201 and self.manifest(repository, reference).data != data:
            raise RegistryError(f"{self.name} answered {response.status} for {what}, but has not got it")
        return "oci-subject" in response.headers

    def check_login(self) -> None:
        """Check the credentials by a request for /v2/. Raises Unauthorized."""
        session = self._open()
        response = session.ask("GET", f"{session.base}/", (), {})
        if response.status != 200:
            raise session.failure(response, f"logging in to {self.name}")

    def _open(self) -> Session:
        with self._opening:
            if self._session is None:
                self._session = Session(
                    self.name, self._options, self._transport, self._credentials, self._tries
                )
            return self._session


def _pull(repository: str) -> tuple[str, ...]:
    return (f"repository:{repository}:pull",)
