"""OCI archives with another config, whose digests are right again."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from typing import Any


def forged(archive: bytes, change: Callable[[dict[str, Any]], None], name: str) -> bytes:
    """An OCI archive with another config; its digests are right again. *name* is the image's new one."""
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            if member.isreg():
                file = tar.extractfile(member)
                assert file is not None
                files[member.name] = file.read()
    index = json.loads(files["index.json"])
    manifest = json.loads(files.pop(_blob(index["manifests"][0])))
    config = json.loads(files.pop(_blob(manifest["config"])))
    change(config)
    _describe(files, manifest["config"], config)
    manifest.pop("annotations", None)
    _describe(files, index["manifests"][0], manifest)
    index["manifests"][0]["annotations"] = {
        "org.opencontainers.image.ref.name": name,
        "io.containerd.image.name": f"docker.io/library/{name}",
    }
    files["index.json"] = json.dumps(index).encode()
    files.pop("manifest.json", None)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path, data in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def _blob(descriptor: dict[str, Any]) -> str:
    return "blobs/" + str(descriptor["digest"]).replace(":", "/")


def _describe(files: dict[str, bytes], descriptor: dict[str, Any], document: dict[str, Any]) -> None:
    data = json.dumps(document).encode()
    descriptor["digest"] = "sha256:" + hashlib.sha256(data).hexdigest()
    descriptor["size"] = len(data)
    files[_blob(descriptor)] = data
