"""Base images as other tools could have made them: layers of any members, in an OCI archive."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from typing import Any

from archives import DIR, FILE

OCI = "application/vnd.oci.image"
Fields = dict[str, Any]


def member(name: str, kind: bytes = FILE, text: str = "", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """A member of a layer; *text* is a file's content or where a link leads."""
    info = tarfile.TarInfo(name)
    info.type, info.mtime, info.mode = kind, 1_000_000_000, 0o755 if kind == DIR else 0o644
    data = b""
    if kind == FILE:
        data = text.encode()
        info.size = len(data)
    else:
        info.linkname = text
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def layer(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """The tar of a layer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as made:
        for info, data in members:
            made.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


class Base:
    """The blobs of one image; layers are tars, or media type, blob and tar."""

    def __init__(self, *layers: bytes | tuple[str, bytes, bytes], platform: Fields | None = None) -> None:
        self.blobs: dict[str, bytes] = {}
        triples = [(f"{OCI}.layer.v1.tar", one, one) if isinstance(one, bytes) else one for one in layers]
        config = {
            **(platform or {"os": "linux", "architecture": "amd64"}),
            "config": {"Env": ["PATH=/bin"]},
            "history": [{"created_by": "made by a test"}] * len(triples),
            "rootfs": {"type": "layers", "diff_ids": [_name(tar) for _media, _blob, tar in triples]},
        }
        self.manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": self.put(f"{OCI}.config.v1+json", json.dumps(config).encode()),
            "layers": [self.put(media, blob) for media, blob, _tar in triples],
        }
        self.descriptor = self.put(f"{OCI}.manifest.v1+json", json.dumps(self.manifest).encode())

    def put(self, media: str, data: bytes) -> Fields:
        """Add a blob; its descriptor."""
        self.blobs[_name(data)] = data
        return {"mediaType": media, "digest": _name(data), "size": len(data)}

    def index(self, *entries: Fields) -> Fields:
        """Add an index of *entries*; its descriptor."""
        media = f"{OCI}.index.v1+json"
        body = {"schemaVersion": 2, "mediaType": media, "manifests": list(entries)}
        return self.put(media, json.dumps(body).encode())

    def archive(self, name: str, *entries: Fields) -> bytes:
        """An OCI archive whose index has *entries*, by default the image alone, under a name."""
        named = {"annotations": {"org.opencontainers.image.ref.name": name}}
        index = {
            "schemaVersion": 2,
            "manifests": [{**entry, **named} for entry in entries or (self.descriptor,)],
        }
        files = {
            "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
            "index.json": json.dumps(index).encode(),
            **{"blobs/sha256/" + digest[7:]: data for digest, data in self.blobs.items()},
        }
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as made:
            for path, data in files.items():
                info = tarfile.TarInfo(path)
                info.size = len(data)
                made.addfile(info, io.BytesIO(data))
        return buffer.getvalue()


def _name(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
