"""Shared caches in a registry: a tag of a repository."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import BinaryIO

from builder.errors import SharedCacheError
from builder.oci import media_types
from builder.oci.manifest import Index, Manifest
from builder.oci.model import ImageConfig
from builder.registry.errors import NotFound
from builder.registry.repository import Repository, open_for_push, parsed
from builder.request import CachePlace, ClientOptions
from cache.descriptor import Descriptor
from cache.digest import digest_of
from grammar.reference import parse_reference
from grammar.structs import struct


@struct
class RegistryBackend:
    """The cache that a repository's reference names."""

    repository: Repository

    @staticmethod
    def of(place: CachePlace, options: ClientOptions) -> RegistryBackend:
        """Open the backend that an option names. Raises BuildError."""
        return RegistryBackend(open_for_push(parse_reference(place.place), options))

    @property
    def name(self) -> str:
        return self.repository.name

    def top(self) -> Index | Manifest:
        return parsed(self.repository.fetch(), f"the manifest of {self.name}")

    def manifest(self, descriptor: Descriptor) -> Index | Manifest:
        return self.repository.manifest(descriptor)

    def config(self, descriptor: Descriptor) -> ImageConfig:
        return self.repository.config(descriptor)

    def blob(self, descriptor: Descriptor, sink: BinaryIO, progress: Callable[[int], None]) -> None:
        self.repository.blob(descriptor, sink, progress)

    def has(self, descriptor: Descriptor) -> bool:
        return self.repository.has_blob(descriptor)

    def put(self, descriptor: Descriptor, path: str, progress: Callable[[int], None]) -> None:
        self.repository.push_blob(descriptor, path, progress)

    def publish(self, manifest: bytes) -> None:
        """Push *manifest* under the tag, unless an image has that tag."""
        with contextlib.suppress(NotFound):
            top = self.top()
            if not isinstance(top, Manifest) or top.artifact_type != media_types.CACHE:
                raise SharedCacheError(
                    f"{self.name} is an image, which a cache would take the place of",
                    "give the cache a tag of its own, such as NAME:cache",
                )
        tag = self.repository.reference.tag or digest_of(manifest)
        self.repository.push_manifest(tag, media_types.MANIFEST, manifest)

    def close(self) -> None:
        self.repository.close()
