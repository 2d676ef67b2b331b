"""A repository of a registry, read from its mirrors first where registries.conf names some."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import BinaryIO, TypeVar

from builder.oci.blobs import read_blob
from builder.oci.errors import ImageError
from builder.oci.manifest import Index, Manifest, parse_manifest
from builder.oci.model import ImageConfig, parse_config
from builder.registry.client import Fetched, Registry
from builder.registry.config import Endpoint, endpoints, read_tables
from builder.registry.errors import RegistryError, Untrusted
from builder.request import ClientOptions
from cache.descriptor import Descriptor
from grammar.reference import Reference
from grammar.structs import struct

T = TypeVar("T")
_MIRROR_TRIES = 2
_SHOWN = 200  # characters of a mirror's error


@struct
class Location:
    """A place that has the repository, perhaps under another name: a mirror, or the registry itself."""

    registry: Registry
    repository: str


class Repository:
    """The repository that a reference names, for any number of threads. A context manager.

    Reads go to the locations in order, until one has what is asked for. Mirrors get few tries. Each location
    has its own credentials and tokens; what is read by digest is verified, wherever it comes from. Writes
    go to the last location, the registry itself.
    """

    def __init__(self, reference: Reference, locations: Sequence[Location]) -> None:
        self.reference = reference
        self._locations = locations
        self._origin = locations[-1]

    @property
    def name(self) -> str:
        """What messages call the repository."""
        return self.reference.familiar

    def close(self) -> None:
        for location in self._locations:
            location.registry.close()

    def __enter__(self) -> Repository:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- reading ---------------------------------------------------------------------------

    def fetch(self, name: str | None = None) -> Fetched:
        """Return the manifest or index of a tag or digest, else of the reference. Raises RegistryError."""
        wanted = name or self.reference.digest or self.reference.tag
        return self._first(lambda location: location.registry.manifest(location.repository, wanted))

    def manifest(self, descriptor: Descriptor) -> Index | Manifest:
        """Return the manifest or index that *descriptor* names, parsed. Raises BuildError."""
        return parsed(self.fetch(descriptor.digest), f"a manifest of {self.name}")

    def config(self, descriptor: Descriptor) -> ImageConfig:
        """Return the config of an image, parsed. Raises BuildError."""
        what = f"the config of {self.name}"
        return parse_config(read_blob(self, descriptor, what), what)

    def blob(self, descriptor: Descriptor, sink: BinaryIO, progress: Callable[[int], None]) -> None:
        """Write a blob to *sink*, verified by size and digest (see ``BlobSource``). Raises RegistryError."""
        self._first(lambda location: location.registry.blob(location.repository, descriptor, sink, progress))

    def _first(self, read: Callable[[Location], T]) -> T:
        """Return what the first location answers that has it.

        Raises the error of the last one, with those of the others in its message.
        """
        errors: list[str] = []
        for location in self._locations[:-1]:
            try:
                return read(location)
            except RegistryError as error:
                errors.append(error.message[:_SHOWN])
        try:
            return read(self._origin)
        except RegistryError as error:
            if not errors:
                raise
            mirrors = f" (its mirrors: {'; '.join(errors)})"
            raise type(error)(error.message + mirrors, error.hint) from None

    # -- writing ---------------------------------------------------------------------------

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Return whether the registry has a blob of that digest and size. Raises RegistryError."""
        return self._origin.registry.has_blob(self._origin.repository, descriptor)

    def push_blob(
        self,
        descriptor: Descriptor,
        path: str,
        progress: Callable[[int], None],
        mount_from: str | None = None,
    ) -> bool:
        """Upload the file *path*, or have it mounted from the repository *mount_from*.

        Return True if bytes were sent. Raises RegistryError.
        """
        origin = self._origin
        return origin.registry.push_blob(origin.repository, descriptor, path, mount_from, progress)

    def push_manifest(self, name: str, media_type: str, data: bytes) -> bool:
        """PUT a manifest under a tag or its digest; return True if the registry lists it for its subject.

        Raises RegistryError.
        """
        return self._origin.registry.push_manifest(self._origin.repository, name, media_type, data)


def parsed(fetched: Fetched, what: str) -> Index | Manifest:
    """Parse what a registry sent. Raises Untrusted where it is malformed or ambiguous."""
    try:
        return parse_manifest(fetched.data, what, fetched.media_type)
    except ImageError as error:
        raise Untrusted(error.message, error.hint) from None


def open_repository(reference: Reference, options: ClientOptions) -> Repository:
    """Open the repository of *reference* for pulls, at the places that registries.conf names.

    Raises Blocked and BuildError.
    """
    places = endpoints(reference, read_tables(os.environ), options.insecure)
    return _opened(reference, places, options)


def open_for_push(reference: Reference, options: ClientOptions) -> Repository:
    """Open the repository of *reference* at the registry in its name; only there it can be pushed.

    registries.conf may block that registry or allow plain HTTP for it. Raises Blocked and BuildError.
    """
    origin = endpoints(reference, read_tables(os.environ), options.insecure)[-1]
    named = Endpoint(reference.registry, reference.repository, False)
    if origin.insecure:
        options = options.trusting(origin.registry)
    return _opened(reference, [named], options)


def _opened(reference: Reference, places: Sequence[Endpoint], options: ClientOptions) -> Repository:
    origin = Location(_registry(places[-1], options), places[-1].repository)
    mirrors = [Location(_registry(place, options, _MIRROR_TRIES), place.repository) for place in places[:-1]]
    return Repository(reference, [*mirrors, origin])


def _registry(place: Endpoint, options: ClientOptions, tries: int | None = None) -> Registry:
    if place.insecure:
        options = options.trusting(place.registry)
    return Registry(place.registry, options, tries=tries)
