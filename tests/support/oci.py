"""Read the OCI archives that pybuild writes, and validate all that is in them.

The contents of layers are read by Python's own tarfile, not by pybuild.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import posixpath
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from builder.oci.layout import INDEX_FILE, VERSION, VERSION_FILE
from builder.oci.manifest import Index, Manifest, blob_path, parse_index, parse_manifest
from builder.oci.model import ImageConfig, parse_config
from builder.oci.validate import validate
from builder.oci.walk import image_manifests
from cache.descriptor import Descriptor
from cache.digest import Digest


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
    """A validated image: its documents as JSON, its layers."""

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
    """Read the first image of an OCI archive, after everything in the archive was validated."""
    raw = archive if isinstance(archive, bytes) else archive.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar if m.isreg()}  # type: ignore[union-attr]
    assert files[VERSION_FILE] == VERSION
    source = _Files(files)
    index = parse_index(files[INDEX_FILE], INDEX_FILE)
    for entry in index.entries:
        validate(entry.descriptor, source.open)
    (first, *_others) = [entry for entry in index.entries if entry.is_image]
    manifest = next(image_manifests(source.manifest(first.descriptor), source))
    config = json.loads(source.open(manifest.config().digest).read())
    made = [line for line in config["history"] if not line.get("empty_layer")]
    assert len(made) == len(manifest.layers()), "a history line for each layer"
    layers = [_layer(layer.media_type, source.open(layer.digest).read()) for layer in manifest.layers()]
    return Image(index.value, manifest.value, config, layers, files)


class _Files:
    """The files of an image layout, as a walk and a validation read them."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    def open(self, digest: Digest) -> io.BytesIO:
        return io.BytesIO(self._files[blob_path(digest)])

    def manifest(self, descriptor: Descriptor) -> Index | Manifest:
        return parse_manifest(self.open(descriptor.digest).read(), descriptor.digest)

    def config(self, descriptor: Descriptor) -> ImageConfig:
        return parse_config(self.open(descriptor.digest).read(), descriptor.digest)


def _unpacked(data: bytes, media_type: str) -> bytes:
    if media_type.endswith("zstd"):
        return zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
    return gzip.decompress(data) if media_type.endswith("gzip") else data


@functools.lru_cache(8)
def _layer(media_type: str, blob: bytes) -> Layer:
    """Read a layer; those of a base are read once."""
    data = _unpacked(blob, media_type)
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
            layers.append(_layer("", tar.extractfile(name).read()))  # type: ignore[union-attr]
    return Image({}, {}, config, layers, {})
