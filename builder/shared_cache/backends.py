"""Where shared caches lie: an OCI image layout in a folder, or a repository of a registry."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol

from builder.errors import BuildError
from builder.oci.layout import Layout, named, ref_name
from builder.oci.model import MANIFEST_TYPE, parse_descriptor
from builder.registry.client import Registry
from builder.registry.errors import NotFound
from builder.shared_cache.records import ARTIFACT_TYPE
from builder.support.json_strict import loads
from cache.descriptor import Descriptor
from cache.digest import digest_of, hex_of
from grammar.reference import Reference
from grammar.structs import struct

_SMALL = 4 << 20


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


@struct
class Folder:
    """A name in an OCI image layout."""

    layout: Layout
    tag: str
    digest: str = ""

    @property
    def name(self) -> str:
        return self.layout.path

    def manifest(self) -> dict[str, Any]:
        entries = self.layout.entries()
        for entry in entries:
            if (entry.get("digest") == self.digest) if self.digest else (ref_name(entry) == self.tag):
                return self.inner(parse_descriptor(entry, f"the cache in {self.name}"))
        what = f"no cache {self.digest or self.tag!r}" if entries else "no cache"
        raise BuildError(f"there is {what} in {self.name}")

    def inner(self, descriptor: Descriptor) -> dict[str, Any]:
        if descriptor.size > _SMALL:
            raise BuildError(f"the manifest in {self.name} has {descriptor.size} bytes")
        buffer = io.BytesIO()
        self.blob(descriptor, buffer, lambda count: None)
        return _object(buffer.getvalue(), f"the manifest in {self.name}")

    def blob(self, descriptor: Descriptor, sink: BinaryIO, progress: Callable[[int], None]) -> None:
        path = self.layout.blob_path(descriptor.digest)
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
        return self.layout.has(descriptor.digest, descriptor.size)

    def put(self, descriptor: Descriptor, path: str, progress: Callable[[int], None]) -> None:
        self.layout.put(descriptor.digest, path, progress)

    def publish(self, manifest: bytes) -> None:
        self.layout.name([named(self.layout.put_bytes(manifest, MANIFEST_TYPE), self.tag)])

    def close(self) -> None:
        pass


@struct(frozen=False)
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
