"""Shared caches in a directory: a name in an OCI image layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from builder.errors import SharedCacheError
from builder.oci import media_types
from builder.oci.blobs import read_blob
from builder.oci.layout import Layout
from builder.oci.manifest import Index, Manifest, parse_manifest, tagged
from builder.oci.model import ImageConfig, parse_config
from builder.request import CachePlace
from cache.descriptor import Descriptor
from grammar.structs import struct

_MANIFEST_LIMIT = 4 << 20


@struct
class LocalBackend:
    """The cache of the name *tag* in a layout, or the one with the given *digest*."""

    layout: Layout
    tag: str
    digest: str | None = None

    @staticmethod
    def of(place: CachePlace) -> LocalBackend:
        """Return the backend that an option names."""
        return LocalBackend(Layout(place.place), place.tag, place.digest or None)

    @property
    def name(self) -> str:
        return self.layout.path

    def top(self) -> Index | Manifest:
        entries = self.layout.entries()
        for entry in entries:
            if entry.tag == self.tag if self.digest is None else entry.stated_digest == self.digest:
                return self.manifest(entry.descriptor)
        what = f"no cache {self.digest or self.tag!r}" if entries else "no cache"
        raise SharedCacheError(f"there is {what} in {self.name}")

    def manifest(self, descriptor: Descriptor) -> Index | Manifest:
        what = f"the manifest in {self.name}"
        return parse_manifest(read_blob(self, descriptor, what, _MANIFEST_LIMIT), what)

    def config(self, descriptor: Descriptor) -> ImageConfig:
        what = f"the config in {self.name}"
        return parse_config(read_blob(self, descriptor, what), what)

    def blob(self, descriptor: Descriptor, sink: BinaryIO, progress: Callable[[int], None]) -> None:
        self.layout.blob(descriptor, sink, progress)

    def has(self, descriptor: Descriptor) -> bool:
        return self.layout.has(descriptor.digest, descriptor.size)

    def put(self, descriptor: Descriptor, path: str, progress: Callable[[int], None]) -> None:
        self.layout.put(descriptor.digest, path, progress)

    def publish(self, manifest: bytes) -> None:
        self.layout.add_entries([tagged(self.layout.put_bytes(manifest, media_types.MANIFEST), self.tag)])

    def close(self) -> None:
        pass
