"""The parsers that read untrusted input: what each is fed with, and the errors that it may answer with."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from builder.errors import BuildError
from builder.oci.manifest import parse_index, parse_manifest
from builder.oci.model import parse_config
from builder.registry.config import read_tables
from builder.shared_cache.records import parse as parse_records
from builder.support.json_strict import loads
from cache.errors import ArchiveError
from cache.layer.tar_reader import TarReader
from grammar.errors import DockerfileError, ExpansionError, IgnoreError, ReferenceError_
from grammar.expansion import expand_word, expand_words
from grammar.ignore import parse_ignore
from grammar.parse import parse
from grammar.reference import parse_reference

TESTS = Path(__file__).resolve().parents[1]
DIGEST = "sha256:" + "0" * 64


class Target(NamedTuple):
    """A parser: *run* takes any bytes and raises nothing but *errors*."""

    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    errors: tuple[type[Exception], ...]


def _read_tar(data: bytes) -> None:
    reader = TarReader(io.BytesIO(data).read)
    for member in reader:
        if member.size <= 1 << 20:  # a sparse file may state any size, and is as many zeros
            for _ in reader.chunks():
                pass
    reader.drain()


def _tars() -> list[bytes]:
    found = [path.read_bytes() for path in sorted((TESTS / "golden").glob("*/context/*.tar"))]
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as made:
            for name, kind in (
                ("d" * 90 + "/f", tarfile.REGTYPE),
                ("l", tarfile.SYMTYPE),
                ("h", tarfile.LNKTYPE),
            ):
                info = tarfile.TarInfo(name)
                info.type, info.linkname, info.size = kind, "f", 3 if kind == tarfile.REGTYPE else 0
                if form == tarfile.PAX_FORMAT:
                    info.pax_headers = {"SCHILY.xattr.user.a": "b", "mtime": "1.5"}
                made.addfile(info, io.BytesIO(b"abc"))
        found.append(buffer.getvalue())
    return [tar for tar in found if len(tar) <= 1 << 16]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _dockerfiles() -> list[bytes]:
    return [path.read_bytes() for path in sorted((TESTS / "golden").glob("*/Dockerfile"))]


def _expand(data: bytes) -> None:
    text = _text(data)
    env = {"a": "b c", "x": "", "PATH": "/bin:/usr/bin", "long": "ab" * 500}
    for escape in "\\`":
        try:
            expand_word(text, env, escape)
        except ExpansionError:
            pass
    expand_words(text, env)


def _words() -> list[bytes]:
    texts = """$a ${a} ${a:-b} ${a:+b} ${a:?b} ${a-b} ${PATH#*:} ${PATH##*:} ${PATH%:*} ${PATH%%:*} ${PATH/bin/x}
        ${PATH//[bi]/x} ${x:-${a:-"b c"}} "a$b" 'a$b' a\\$b ${long//a*b/c} ${long%%?*} $$ ${} ${a"""
    return [word.encode() for word in texts.split()] + [texts.encode()]


def _match_ignored(data: bytes) -> None:
    rules = parse_ignore(data)
    for name in ("a", "a/b", "a/b/c.txt", "ä", ".git", "x" * 100):
        rules.why(name)
        rules.may_reinclude(name)


def _ignore_files() -> list[bytes]:
    texts = [
        "*\n!a\n",
        "a/**/b\n**/c\n",
        "# no\n\n[a-z]*\n[^b]?\n",
        "\\!a\n./a/../b/\n",
        "\ufeff/a\n!**/*.txt\n",
    ]
    found = sorted((TESTS / "golden").glob("*/context/*.dockerignore"))
    return [text.encode() for text in texts] + [path.read_bytes() for path in found if path.is_file()]


def _references() -> list[bytes]:
    names = [
        "a",
        "a:b",
        "a/b/c:1.2",
        "localhost:5000/a",
        "registry.test/a@" + DIGEST,
        "[::1]:80/a/b",
        "A.B/c_d__e-f",
    ]
    return [name.encode() for name in names]


def _read_json(data: bytes) -> None:
    loads(data, "a document", 1 << 16)
    for read in (parse_config, parse_manifest, parse_index):
        try:
            read(data, "a document")
        except BuildError:
            pass


def _documents() -> list[bytes]:
    config = {
        "os": "linux", "architecture": "arm64", "variant": "v8", "created": "2024-01-01T00:00:00Z",
        "config": {"Env": ["a=b"], "Cmd": ["x"], "Labels": {"a": "b"}, "ExposedPorts": {"80/tcp": {}},
                   "Healthcheck": {"Test": ["CMD", "x"], "Interval": 1000000000}, "OnBuild": ["RUN true"]},
        "history": [{"created_by": "RUN x", "empty_layer": True}],
        "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
    }  # fmt: skip
    blob = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": DIGEST, "size": 5}
    media = "application/vnd.oci.image."
    manifest = {"schemaVersion": 2, "mediaType": media + "manifest.v1+json", "config": blob, "layers": [blob],
                "annotations": {"a": "b"}}  # fmt: skip
    entry = {
        **blob,
        "mediaType": media + "manifest.v1+json",
        "platform": {"os": "linux", "architecture": "arm"},
    }
    index = {"schemaVersion": 2, "mediaType": media + "index.v1+json", "manifests": [entry]}
    documents = [json.dumps(item).encode() for item in (config, manifest, index)]
    return [*documents, b'[1, -2.5e3, true, null, "\\ud800\\u00e4", {"a": {}}]']


def _read_registries(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as file:
        file.write(data)
        file.flush()
        read_tables({"CONTAINERS_REGISTRIES_CONF": file.name})


def _registries() -> list[bytes]:
    table = '[[registry]]\nprefix = "a.test/b"\nlocation = "c.test"\ninsecure = true\nblocked = false\n'
    mirror = '[[registry.mirror]]\nlocation = "d.test/e"\npull-from-mirror = "digest-only"\n'
    return [table.encode(), (table + mirror).encode(), b'[registries.search]\nregistries = ["a"]\n']


def _records() -> list[bytes]:
    key, blob = (
        "1" * 64,
        {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": DIGEST, "size": 5},
    )
    step = {"key": key, "parent": DIGEST, "layer": DIGEST, "content": DIGEST, "below": [DIGEST]}
    records = {
        "version": 1,
        "steps": [step],
        "contents": {key: DIGEST},
        "mounts": {key: blob},
        "layers": {DIGEST: blob},
    }
    return [json.dumps(records).encode(), json.dumps({**records, "steps": []}).encode()]


TARGETS = {
    "tar": Target(_read_tar, _tars, (ArchiveError,)),
    "dockerfile": Target(lambda data: parse(_text(data)), _dockerfiles, (DockerfileError,)),
    "words": Target(_expand, _words, (ExpansionError,)),
    "ignore": Target(_match_ignored, _ignore_files, (IgnoreError,)),
    "reference": Target(lambda data: parse_reference(_text(data)), _references, (ReferenceError_,)),
    "json": Target(_read_json, _documents, (BuildError,)),
    "registries": Target(_read_registries, _registries, (BuildError,)),
    "records": Target(lambda data: parse_records(data, "a cache"), _records, (BuildError,)),
}
