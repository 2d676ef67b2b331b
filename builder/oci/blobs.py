"""Where blobs come from, and how a small one is read whole."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import BinaryIO, Protocol

from builder.oci.errors import ImageError
from cache.descriptor import Descriptor

CONFIG_LIMIT = 8 << 20  # bytes


class BlobSource(Protocol):
    """A place that has blobs: a repository of a registry, an image layout."""

    @property
    def name(self) -> str:
        """What messages call the place."""

    def blob(self, descriptor: Descriptor, sink: BinaryIO, progress: Callable[[int], None]) -> None:
        """Write a blob, verified by size and digest, to *sink* from its start.

        *progress* receives the number of bytes of each piece. Raises BuildError.
        """


def read_blob(source: BlobSource, descriptor: Descriptor, what: str, limit: int = CONFIG_LIMIT) -> bytes:
    """Return a blob of at most *limit* bytes, verified. Raises BuildError."""
    if descriptor.size > limit:
        raise ImageError(f"{what} has {descriptor.size} bytes, more than {limit}")
    buffer = io.BytesIO()
    source.blob(descriptor, buffer, lambda count: None)
    return buffer.getvalue()
