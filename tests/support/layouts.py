"""Images in memory, sound or with one fault, for tests of the walk and of the validation."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from typing import Any

from builder.oci import media_types
from builder.oci.errors import MissingBlob
from builder.oci.manifest import Index, Manifest, parse_manifest
from builder.oci.model import ImageConfig, parse_config
from cache.descriptor import Descriptor
from cache.digest import Digest, digest_of
from cache.layer.compression import GZIP, media_type

AMD64 = {"architecture": "amd64", "os": "linux"}


class Blobs:
    """Blobs by digest; what the walk and the validation read from."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.reads: list[str] = []

    def add(self, data: bytes, media: str) -> Descriptor:
        self.data[digest_of(data)] = data
        return Descriptor(media, digest_of(data), len(data))

    def add_json(self, value: Any, media: str) -> Descriptor:
        return self.add(json.dumps(value).encode(), media)

    def open(self, digest: Digest) -> io.BytesIO:
        self.reads.append(digest)
        if digest not in self.data:
            raise MissingBlob(f"there is no {digest}")
        return io.BytesIO(self.data[digest])

    def manifest(self, descriptor: Descriptor) -> Index | Manifest:
        return parse_manifest(self.open(descriptor.digest).read(), "a manifest")

    def config(self, descriptor: Descriptor) -> ImageConfig:
        return parse_config(self.open(descriptor.digest).read(), "the config")

    def image(
        self,
        platform: Mapping[str, str] = AMD64,
        layer: bytes | None = None,
        config: Mapping[str, Any] | None = None,
        manifest: Mapping[str, Any] | None = None,
    ) -> Descriptor:
        """Add an image of one layer; *config* and *manifest* replace fields of its documents."""
        tar = some_tar() if layer is None else layer
        stored = self.add(gzip.compress(tar, mtime=0), media_type(GZIP))
        document = {
            **platform,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}"]},
            "history": [{"created_by": "a"}, {"created_by": "b", "empty_layer": True}],
            **(config or {}),
        }
        value = {
            "schemaVersion": 2,
            "mediaType": media_types.MANIFEST,
            "config": self.add_json(document, media_types.CONFIG).to_json(),
            "layers": [stored.to_json()],
            **(manifest or {}),
        }
        return self.add_json(value, media_types.MANIFEST)

    def index(self, *entries: Mapping[str, Any]) -> Descriptor:
        value = {"schemaVersion": 2, "mediaType": media_types.INDEX, "manifests": list(entries)}
        return self.add_json(value, media_types.INDEX)


def some_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("etc"))
    return buffer.getvalue()


def entry(descriptor: Descriptor, platform: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """Return an entry of an index."""
    return {**descriptor.to_json(), **({"platform": dict(platform)} if platform else {}), **more}
