"""Read the OCI archives that pybuild writes, with nothing of pybuild."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import posixpath
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard


@dataclass
class Layer:
    """A layer: its media type, its uncompressed tar, its entries by name."""

    media_type: str
    data: bytes
    entries: dict[str, tarfile.TarInfo]
    contents: dict[str, bytes]

    @property
    def names(self) -> list[str]:
        return list(self.entries)


@dataclass
class Image:
    """An image as its archive says it is; every digest and size was checked."""

    index: dict[str, Any]
    manifest: dict[str, Any]
    config: dict[str, Any]
    layers: list[Layer]
    files: dict[str, bytes] = field(repr=False)

    @property
    def settings(self) -> dict[str, Any]:
        found: dict[str, Any] = self.config["config"]
        return found

    @property
    def env(self) -> dict[str, str]:
        return dict(item.split("=", 1) for item in self.settings.get("Env") or [])

    @property
    def history(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.config["history"]
        return found

    def root(self) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
        """The root file system: every path with its entry and its content, whiteouts applied."""
        out: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
        folders: set[str] = set()  # of all paths so far
        for layer in self.layers:
            for name in layer.names:
                folder, _, base = name.rpartition("/")
                if base == ".wh..wh..opq":
                    for path in [p for p in out if p.startswith(folder + "/")]:
                        del out[path]
                elif base.startswith(".wh."):
                    gone = f"{folder}/{base[4:]}".lstrip("/")
                    for path in [p for p in out if p == gone or p.startswith(gone + "/")]:
                        del out[path]
            for name, entry in layer.entries.items():
                if name.rpartition("/")[2].startswith(".wh."):
                    continue
                if name in folders and not entry.isdir():
                    for path in [p for p in out if p.startswith(name + "/")]:
                        del out[path]
                out[name] = (entry, layer.contents.get(name, b""))
                while (name := name.rpartition("/")[0]) and name not in folders:
                    folders.add(name)
        return out

    def read(self, path: str) -> bytes:
        """The content of a file of the root; hard links are followed."""
        entry, data = self.root()[path]
        return self.read(entry.linkname.removeprefix("./")) if entry.islnk() else data

    def tree(self) -> dict[str, str]:
        """Every path of the root with what it is: a text, ``DIR`` or ``-> target``."""
        out = {}
        for path, (entry, data) in self.root().items():
            if entry.isdir():
                out[path] = "DIR"
            elif entry.issym():
                out[path] = "-> " + entry.linkname
            elif entry.islnk():
                out[path] = "= " + entry.linkname
            else:
                out[path] = data.decode("utf-8", "replace")
        return out


def read_image(archive: Path | bytes) -> Image:
    """Read an OCI archive of one image and check it against its own digests."""
    raw = archive if isinstance(archive, bytes) else archive.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar if m.isreg()}  # type: ignore[union-attr]
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads(files["index.json"])
    manifest = json.loads(_blob(files, index["manifests"][0]))
    if "manifests" in manifest:  # of several platforms, or with attestations: the first image
        manifest = json.loads(_blob(files, manifest["manifests"][0]))
    config = json.loads(_blob(files, manifest["config"]))
    layers = []
    for descriptor, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        layers.append(_layer(descriptor["mediaType"], diff_id, _blob(files, descriptor)))
    made = [line for line in config["history"] if not line.get("empty_layer")]
    assert len(made) == len(layers), "a history line for each layer"
    return Image(index, manifest, config, layers, files)


def _unpacked(data: bytes, media_type: str) -> bytes:
    if media_type.endswith("zstd"):
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return gzip.decompress(data) if media_type.endswith("gzip") else data


def _blob(files: dict[str, bytes], descriptor: dict[str, Any]) -> bytes:
    data = files["blobs/" + descriptor["digest"].replace(":", "/")]
    assert len(data) == descriptor["size"]
    assert "sha256:" + hashlib.sha256(data).hexdigest() == descriptor["digest"]
    return data


@functools.lru_cache(8)
def _layer(media_type: str, diff_id: str, blob: bytes) -> Layer:
    """Read a layer and check it; those of a base are read once."""
    data = _unpacked(blob, media_type)
    assert diff_id in ("", "sha256:" + hashlib.sha256(data).hexdigest())
    entries, contents = {}, {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            name = member.name.rstrip("/")
            assert name not in entries, f"{name} is there twice"
            entries[name] = member
            if member.isreg():
                contents[name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return Layer(media_type, data, entries, contents)


def read_docker(archive: Path) -> Image:
    """Read what ``docker save`` writes of one image."""
    with tarfile.open(archive) as tar:
        members = {m.name: m for m in tar}
        item = json.loads(tar.extractfile("manifest.json").read())[0]  # type: ignore[union-attr]
        config = json.loads(tar.extractfile(item["Config"]).read())  # type: ignore[union-attr]
        layers = []
        for layer in item["Layers"]:
            name = layer
            while members[name].issym():
                name = posixpath.normpath(posixpath.join(posixpath.dirname(name), members[name].linkname))
            layers.append(_layer("", "", tar.extractfile(name).read()))  # type: ignore[union-attr]
    return Image({}, {}, config, layers, {})
