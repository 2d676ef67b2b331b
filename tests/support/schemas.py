"""The JSON schemas of the OCI's image-spec, as Debian's package of it has them, applied to whole outputs."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard
from jsonschema import Draft4Validator
from referencing import Registry
from referencing.jsonschema import DRAFT4

FOLDER = Path("/usr/share/gocode/src/github.com/opencontainers/image-spec/schema")

OCI = "application/vnd.oci.image."
DOCKER = "application/vnd.docker."
INDEXES = {OCI: OCI + "index.v1+json", DOCKER: DOCKER + "distribution.manifest.list.v2+json"}
MANIFESTS = {OCI: OCI + "manifest.v1+json", DOCKER: DOCKER + "distribution.manifest.v2+json"}
CONFIGS = {OCI: OCI + "config.v1+json", DOCKER: DOCKER + "container.image.v1+json"}
LAYERS = {OCI: OCI + "layer.v1.tar", DOCKER: DOCKER + "image.rootfs.diff.tar"}
SUFFIXES = {OCI: ("", "+gzip", "+zstd"), DOCKER: ("", ".gzip", ".zstd")}

# The spec's names; in a config docker's too, which every builder writes.
FIELDS = {
    "content-descriptor.json": "mediaType digest size urls annotations data artifactType platform",
    "image-manifest-schema.json": "schemaVersion mediaType artifactType config layers subject annotations",
    "image-index-schema.json": "schemaVersion mediaType artifactType manifests subject annotations",
    "config-schema.json": "created author architecture os os.version os.features variant config rootfs history",
    "image-layout-schema.json": "imageLayoutVersion",
}
SETTINGS = (
    "User ExposedPorts Env Entrypoint Cmd Volumes WorkingDir Labels StopSignal ArgsEscaped "
    "Healthcheck OnBuild Shell"
)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")
_REF_NAME = re.compile(r"[A-Za-z0-9]+([-._:@/+][A-Za-z0-9]+)*")

Fetch = Callable[[str], bytes]


def _schemas() -> dict[str, Any]:
    """By file name. Their ids are addresses that references would be followed to; the files are enough."""

    def without_ids(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_ids(item) for key, item in value.items() if key != "id"}
        return [without_ids(item) for item in value] if isinstance(value, list) else value

    files = sorted(FOLDER.glob("*.json"))
    assert files, "golang-github-opencontainers-image-spec-dev is not installed (see tests/run)"
    return {file.name: without_ids(json.loads(file.read_text())) for file in files}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    assert len(value) == len(pairs), f"a name is there twice: {[key for key, _ in pairs]}"
    return value


class Checker:
    """Checks one output; *fetch* gives the blob or manifest of a digest. ``seen`` are the media types."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._all = _schemas()
        self._registry = Registry().with_resources(
            (name, DRAFT4.create_resource(schema)) for name, schema in self._all.items()
        )
        self.seen: set[str] = set()

    def valid(self, data: bytes | dict[str, Any], schema: str) -> dict[str, Any]:
        """The object, if it is what *schema* says and nothing else."""
        value = json.loads(data, object_pairs_hook=_once) if isinstance(data, bytes) else data
        errors = Draft4Validator(self._all[schema], registry=self._registry).iter_errors(value)
        assert not [error.message for error in errors]
        assert not value.keys() - set(FIELDS[schema].split()), f"{schema}: {sorted(value)}"
        for key, item in (value.get("annotations") or {}).items():
            assert key and isinstance(item, str)
            if key == "org.opencontainers.image.ref.name":
                assert _REF_NAME.fullmatch(item), item
            if key == "org.opencontainers.image.created":
                assert _TIME.fullmatch(item), item
        return dict(value)

    def layout(self, oci_layout: bytes, index: bytes) -> None:
        """A whole image layout, from its two files."""
        assert self.valid(oci_layout, "image-layout-schema.json") == {"imageLayoutVersion": "1.0.0"}
        value = self.valid(index, "image-index-schema.json")
        assert value["mediaType"] == INDEXES[OCI] and value["manifests"]
        for item in value["manifests"]:
            self.descriptor(item)

    def descriptor(self, item: dict[str, Any]) -> None:
        """An image or an index, and all below it."""
        data = self._blob(item)
        media = item["mediaType"]
        family = OCI if media.startswith(OCI) else DOCKER
        if media == INDEXES[family]:
            value = self.valid(data, "image-index-schema.json")
            assert value["mediaType"] == media
            for below in value["manifests"]:
                assert below["mediaType"] == MANIFESTS[family] and "platform" in below
                self.descriptor(below)
            return
        assert media == MANIFESTS[family], media
        value = self.valid(data, "image-manifest-schema.json")
        assert value["mediaType"] == media and value["config"]["mediaType"] == CONFIGS[family]
        config = self.valid(self._blob(value["config"]), "config-schema.json")
        self._config(config)
        where = item.get("platform")
        assert where is None or where == {key: config[key] for key in where}
        for layer, diff_id in zip(value["layers"], config["rootfs"]["diff_ids"], strict=True):
            suffix = layer["mediaType"].removeprefix(LAYERS[family])
            plain = _unpacked(self._blob(layer), SUFFIXES[family].index(suffix))
            assert _digest(plain) == diff_id

    def _blob(self, item: dict[str, Any]) -> bytes:
        self.valid(item, "content-descriptor.json")
        self.seen.add(item["mediaType"])
        data = self._fetch(item["digest"])
        assert (len(data), _digest(data)) == (item["size"], item["digest"])
        return data

    def _config(self, config: dict[str, Any]) -> None:
        assert not config.get("config", {}).keys() - set(SETTINGS.split()), config["config"]
        history = config["history"]
        assert sum(not line.get("empty_layer") for line in history) == len(config["rootfs"]["diff_ids"])
        for line in history:
            assert not line.keys() - {"created", "author", "created_by", "comment", "empty_layer"}
        for time in [config.get("created"), *(line.get("created") for line in history)]:
            assert time is None or _TIME.fullmatch(time), time


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _unpacked(data: bytes, kind: int) -> bytes:
    """The tar of a layer that is plain, of gzip or of zstd; it has to be what its type says."""
    if kind == 1:
        return gzip.decompress(data)
    if kind == 2:
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    assert data[257:262] == b"ustar" or not data.strip(b"\0")
    return data
