"""OCI content descriptors: what a blob is, its digest and its size."""

from __future__ import annotations

from dataclasses import dataclass, field

from cache.digest import Digest


@dataclass(frozen=True, slots=True)
class Descriptor:
    """media type, digest and size in bytes (image-spec descriptor.md)."""

    media_type: str
    digest: Digest
    size: int
    annotations: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """The descriptor as JSON writes it; annotations only when there are any."""
        out: dict[str, object] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        }
        if self.annotations:
            out["annotations"] = dict(self.annotations)
        return out
