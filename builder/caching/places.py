"""Where shared caches lie: an OCI image layout in a folder, or a repository of a registry."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from builder.caching.records import ARTIFACT_TYPE
from builder.errors import BuildError
from builder.image.model import INDEX_TYPE, MANIFEST_TYPE, parse_descriptor, to_json
from builder.registry.client import Registry
from builder.registry.errors import NotFound
from builder.strict_json import loads
from cache.descriptor import Descriptor
from cache.digest import Digest, digest_of, hex_of
from cache.kernel import read_regular
from grammar.reference import Reference

_SMALL = 4 << 20
_REF_NAME = "org.opencontainers.image.ref.name"


class Place(Protocol):
    """What a cache is read from and written to. Methods raise BuildError."""

    @property
    def name(self) -> str: ...

    def manifest(self) -> dict[str, Any]:
        """The manifest of the cache, or of an image with one in its config."""

    def inner(self, descriptor: Descriptor) -> dict[str, Any]:
        """The manifest that an index names."""

    def blob(self, descriptor: Descriptor, sink: BinaryIO, progress: Callable[[int], None]) -> None:
        """Write a blob, verified by size and digest, to *sink* from its start."""

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a blob need not be put."""

    def put(self, descriptor: Descriptor, path: str, progress: Callable[[int], None]) -> None:
        """Put the file *path* there as a blob."""

    def publish(self, manifest: bytes) -> None:
        """Make *manifest*, all of whose blobs are there, the one that is read from now on."""

    def close(self) -> None: ...


@dataclass(slots=True)
class Folder:
    """An OCI image layout. Several builds may write to one: blobs appear whole, index.json under a lock."""

    path: str
    tag: str
    digest: str = ""

    @property
    def name(self) -> str:
        return self.path

    def manifest(self) -> dict[str, Any]:
        index = self._index()
        for item in index["manifests"]:
            marks = item.get("annotations")
            tag = marks.get(_REF_NAME) if isinstance(marks, dict) else None
            if (item.get("digest") == self.digest) if self.digest else (tag == self.tag):
                return self.inner(parse_descriptor(item, f"the cache in {self.path}"))
        raise BuildError(f"{self.path} holds no cache {self.digest or self.tag!r}")

    def inner(self, descriptor: Descriptor) -> dict[str, Any]:
        return _object(self._small(descriptor), f"the manifest in {self.path}")

    def _small(self, descriptor: Descriptor) -> bytes:
        path = self._blob_path(descriptor.digest)
        try:
            data = read_regular(path, _SMALL)
        except OSError as error:
            raise BuildError(f"reading {path}: {error.strerror}") from None
        if len(data) != descriptor.size or digest_of(data) != descriptor.digest:
            raise BuildError(f"{path} is damaged")
        return data

    def blob(self, descriptor: Descriptor, sink: BinaryIO, progress: Callable[[int], None]) -> None:
        path = self._blob_path(descriptor.digest)
        sha, left = hashlib.sha256(), descriptor.size
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(fd, "rb") as file:
                while left >= 0 and (data := file.read(1 << 20)):
                    left -= len(data)
                    sha.update(data)
                    sink.write(data)
                    progress(len(data))
        except OSError as error:
            raise BuildError(f"reading {path}: {error.strerror}") from None
        if left or sha.hexdigest() != hex_of(descriptor.digest):
            raise BuildError(f"{path} is damaged: it is not the blob that it is named for")

    def has(self, descriptor: Descriptor) -> bool:
        with contextlib.suppress(OSError):
            return os.stat(self._blob_path(descriptor.digest)).st_size == descriptor.size
        return False

    def put(self, descriptor: Descriptor, path: str, progress: Callable[[int], None]) -> None:
        final = self._blob_path(descriptor.digest)
        with (
            self._writing(final) as temporary,
            open(path, "rb") as source,
            open(temporary, "xb") as target,
        ):
            while data := source.read(1 << 20):
                target.write(data)
                progress(len(data))
            target.flush()
            os.fsync(target.fileno())

    def publish(self, manifest: bytes) -> None:
        value = digest_of(manifest)
        with self._writing(self._blob_path(value)) as temporary, open(temporary, "xb") as file:
            file.write(manifest)
        lock = os.open(os.path.join(self.path, "ingest.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            item: dict[str, Any] = Descriptor(MANIFEST_TYPE, value, len(manifest)).to_json()
            item["annotations"] = {_REF_NAME: self.tag}
            kept = [other for other in self._entries() if not _is_named(other, self.tag)]
            index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [*kept, item]}
            for name, data in (
                ("oci-layout", to_json({"imageLayoutVersion": "1.0.0"})),
                ("index.json", to_json(index)),
            ):
                with self._writing(os.path.join(self.path, name)) as temporary, open(temporary, "xb") as file:
                    file.write(data)
        finally:
            os.close(lock)

    def _entries(self) -> list[dict[str, Any]]:
        if not os.path.exists(os.path.join(self.path, "index.json")):
            return []
        entries: list[dict[str, Any]] = self._index()["manifests"]
        return entries

    def _index(self) -> dict[str, Any]:
        path = os.path.join(self.path, "index.json")
        try:
            data = read_regular(path, _SMALL)
        except OSError as error:
            raise BuildError(f"there is no cache in {self.path}: {error.strerror}") from None
        index = _object(data, path)
        entries = index.get("manifests")
        if not isinstance(entries, list) or not all(isinstance(item, dict) for item in entries):
            raise BuildError(f"{path} is no index of an image layout")
        return index

    @contextlib.contextmanager
    def _writing(self, final: str) -> Iterator[str]:
        """A path beside *final* to write to, which then gets that name."""
        temporary = f"{final}.pybuild-{os.urandom(4).hex()}"
        try:
            os.makedirs(os.path.dirname(final), exist_ok=True)
            yield temporary
            os.replace(temporary, final)
        except OSError as error:
            raise BuildError(f"writing {final}: {error.strerror}") from None
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)

    def _blob_path(self, value: Digest) -> str:
        return os.path.join(self.path, "blobs", "sha256", hex_of(value))

    def close(self) -> None:
        pass


@dataclass(slots=True)
class Repository:
    """A tag of a registry's repository."""

    registry: Registry
    reference: Reference

    @property
    def name(self) -> str:
        return self.reference.familiar

    def manifest(self) -> dict[str, Any]:
        fetched = self.registry.manifest(
            self.reference.repository, self.reference.digest or self.reference.tag
        )
        return _object(fetched.data, f"the manifest of {self.name}")

    def inner(self, descriptor: Descriptor) -> dict[str, Any]:
        fetched = self.registry.manifest(self.reference.repository, descriptor.digest)
        return _object(fetched.data, f"a manifest of {self.name}")

    def blob(self, descriptor: Descriptor, sink: BinaryIO, progress: Callable[[int], None]) -> None:
        self.registry.blob(self.reference.repository, descriptor, sink, progress)

    def has(self, descriptor: Descriptor) -> bool:
        return self.registry.has_blob(self.reference.repository, descriptor)

    def put(self, descriptor: Descriptor, path: str, progress: Callable[[int], None]) -> None:
        self.registry.push_blob(self.reference.repository, descriptor, path, "", progress)

    def publish(self, manifest: bytes) -> None:
        with contextlib.suppress(NotFound):
            if self.manifest().get("artifactType") != ARTIFACT_TYPE:
                raise BuildError(
                    f"{self.name} is an image, which a cache would take the place of",
                    "give the cache a tag of its own, such as NAME:cache",
                )
        tag = self.reference.tag or str(digest_of(manifest))
        self.registry.push_manifest(self.reference.repository, tag, MANIFEST_TYPE, manifest)

    def close(self) -> None:
        self.registry.close()


def _object(data: bytes, what: str) -> dict[str, Any]:
    value = loads(data, what, _SMALL)
    if not isinstance(value, dict):
        raise BuildError(f"{what} is not a JSON object")
    return value


def _is_named(item: dict[str, Any], tag: str) -> bool:
    marks = item.get("annotations")
    return isinstance(marks, dict) and marks.get(_REF_NAME) == tag
