"""OCI content descriptors: what a blob is, its digest and its size."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from cache.digest import Digest


class Descriptor(NamedTuple):
    """A blob: media type, digest and size in bytes (image-spec descriptor.md)."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = MappingProxyType({})

    def to_json(self) -> dict[str, object]:
        """Return the descriptor as JSON; annotations only if there are any."""
        out: dict[str, object] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        }
        if self.annotations:
            out["annotations"] = dict(self.annotations)
        return out
