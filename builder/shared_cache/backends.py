"""Where shared caches are stored. A new kind of place is a module like ``local`` and a line in the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO, Protocol

from builder.oci.manifest import Index, Manifest
from builder.oci.model import ImageConfig
from builder.request import CachePlace, ClientOptions
from cache.descriptor import Descriptor
from grammar.structs import struct


class CacheBackend(Protocol):
    """What a shared cache is read from and written to. Methods raise BuildError."""

    @property
    def name(self) -> str:
        """What messages call the place."""

    def top(self) -> Index | Manifest:
        """Return the manifest of the cache, or that of an image, or an index, with caches in configs."""

    def manifest(self, descriptor: Descriptor) -> Index | Manifest:
        """Return the manifest that an index names, verified."""

    def config(self, descriptor: Descriptor) -> ImageConfig:
        """Return the config of an image, verified."""

    def blob(self, descriptor: Descriptor, sink: BinaryIO, progress: Callable[[int], None]) -> None:
        """Write a blob, verified by size and digest, to *sink* from its start."""

    def has(self, descriptor: Descriptor) -> bool:
        """Return whether the place has a blob."""

    def put(self, descriptor: Descriptor, path: str, progress: Callable[[int], None]) -> None:
        """Store the file *path* as a blob."""

    def publish(self, manifest: bytes) -> None:
        """Store *manifest*, all of whose blobs are stored, as the one that the next build reads."""

    def close(self) -> None:
        """Close connections."""


@struct
class CacheType:
    """A ``type=`` of ``--cache-from`` and ``--cache-to``.

    ``source`` and ``destination`` are the fields of the two options that say where the cache is; ``is_path``
    is whether that is a path of this machine, else it is an image reference.
    """

    source: str
    destination: str
    is_path: bool
    open: Callable[[CachePlace, ClientOptions], CacheBackend]


def _open_local(place: CachePlace, options: ClientOptions) -> CacheBackend:
    from builder.shared_cache.local import LocalBackend

    return LocalBackend.of(place)


def _open_registry(place: CachePlace, options: ClientOptions) -> CacheBackend:
    from builder.shared_cache.registry import RegistryBackend  # imports the HTTP client

    return RegistryBackend.of(place, options)


CACHE_BACKENDS = {
    "local": CacheType("src", "dest", True, _open_local),
    "registry": CacheType("ref", "ref", False, _open_registry),
}


def open_backend(place: CachePlace, options: ClientOptions) -> CacheBackend:
    """Open the backend that an option names. Raises BuildError."""
    return CACHE_BACKENDS[place.kind].open(place, options)
