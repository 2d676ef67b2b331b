"""Statements, bills of materials, provenance, what options ask for, and how registries get them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from images import Images

from builder import VERSION
from builder.attest.databases import Package
from builder.attest.options import Attestations, parse_attestations
from builder.attest.packages import Distribution, Found
from builder.attest.provenance import MAX, MIN, BuildRecord, provenance
from builder.attest.publish import publish
from builder.attest.sbom import CYCLONEDX, PREDICATE_TYPES, SPDX, sbom
from builder.attest.statement import Artifact, Subject, artifact, image_url, listing, referrers_tag, statement
from builder.errors import BuildError, UsageError
from builder.oci.media_types import MANIFEST as MANIFEST_TYPE
from builder.oci.model import Platform
from builder.plan.graph import Plan
from builder.plan.ops import FetchGit, FetchUrl, Files
from builder.plan.planner import plan
from builder.registry.client import Fetched
from builder.registry.errors import NotFound
from builder.request import BuildRequest, NamedContext, Secret, Ssh
from cache.descriptor import Descriptor
from cache.digest import Digest, SnapshotId, digest_of
from cache.entry import FILE, Entry
from cache.layer.snapshots import commit, draft
from cache.store import Store
from grammar.lint.linter import Linter, parse_checks
from grammar.parse import parse
from grammar.structs import replace

SPDX_TOOLS = Path(sys.executable).with_name("pyspdxtools")
IMAGE = Descriptor(MANIFEST_TYPE, digest_of(b"image"), 5)
SUBJECT = Subject(
    ("registry.example.com/team/app:1",), IMAGE, Platform("linux", "amd64"), "2024-05-06T07:08:09.123456Z"
)
PACKAGES = {
    Package("apk", "", "musl", "1.2.4-r2", "x86_64"): ("lib/apk/db/installed",),
    Package("deb", "", "libstdc++6", "1:12~rc1+b2", "amd64", "gcc-12"): ("var/lib/dpkg/status",),
    Package("npm", "@babel", "core", "7.0.0"): tuple(f"node_modules/{n}/package.json" for n in range(5)),
    Package("pypi", "", "Flask_Thing", "2"): ("site-packages/a/METADATA",),
    Package("pypi", "", "flask-thing", "2"): ("site-packages/b/METADATA",),
    Package("pypi", "", "caf\ufffd\"'<x>&\u202f".replace("\u202f", ""), "1%2F/..#?@"): ("x\ufffd",),
}
FOUND = Found(Distribution("debian", "12", "Debian GNU/Linux 12 (bookworm)"), PACKAGES, ())


@pytest.fixture
def made_store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


# -- bills of materials --------------------------------------------------------------------


def check_spdx(document: dict[str, Any], folder: Path) -> None:
    """Have the document judged by the specification's own tools."""
    path = folder / "x.spdx.json"
    path.write_text(json.dumps(document))
    done = subprocess.run([SPDX_TOOLS, "-i", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "found",
    [
        FOUND,
        replace(FOUND, gaps=("/a: it is bad", "/b: so is it")),
        Found(Distribution(), {}, ()),
        Found(Distribution("x"), PACKAGES, ()),
    ],
    ids=["full", "gaps", "empty", "unknown"],
)
def test_spdx(found: Found, tmp_path: Path) -> None:
    document = sbom(found, SUBJECT, SPDX)
    check_spdx(document, tmp_path)
    assert document["creationInfo"]["created"] == "2024-05-06T07:08:09Z"
    assert all(gap in document.get("comment", "") for gap in found.gaps)
    ids = [item["SPDXID"] for item in document["packages"]]
    assert len(set(ids)) == len(ids)
    if found is FOUND:
        named = {item["name"]: item for item in document["packages"]}
        assert list(named)[:2] == ["registry.example.com/team/app:1", "debian"]
        assert named["libstdc++6"]["versionInfo"] == "1:12~rc1+b2"
        assert named["libstdc++6"]["externalRefs"][0]["referenceLocator"] == (
            "pkg:deb/debian/libstdc%2B%2B6@1:12~rc1%2Bb2?arch=amd64&distro=debian-12&upstream=gcc-12"
        )
        assert named["@babel/core"]["sourceInfo"].endswith("and 2 more files")
        assert sum("lask" in name for name in named) == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("found", [FOUND, replace(FOUND, gaps=("/a: bad",)), Found(Distribution(), {}, ())])
def test_cyclonedx(found: Found) -> None:
    document = sbom(found, SUBJECT, CYCLONEDX)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.5")
    assert document["metadata"]["component"]["name"] == "registry.example.com/team/app:1"
    assert document["metadata"]["component"]["version"] == IMAGE.digest
    assert document["metadata"]["timestamp"].startswith("2024-05-06T07:08:09")
    notes = [item["value"] for item in document["metadata"].get("properties", [])]
    assert notes == list(found.gaps)
    items = document.get("components", [])
    assert len({item["bom-ref"] for item in items}) == len(items)
    if found.packages:
        (babel,) = [item for item in items if item["name"] == "core"]
        assert babel["group"] == "@babel" and babel["purl"] == "pkg:npm/%40babel/core@7.0.0"
        assert len(babel["properties"]) == 5
        assert [item["name"] for item in items if item["type"] == "operating-system"] == ["debian"]


@pytest.mark.parametrize("form", [SPDX, CYCLONEDX])
def test_equal_bytes(form: str) -> None:
    """The same in every process, and in whatever order packages were found."""
    script = (
        "import sys; sys.path[:0] = sys.argv[1:3]; from test_attest import *;"
        "backwards = replace(FOUND, packages=dict(reversed(PACKAGES.items())));"
        "sys.stdout.buffer.write(statement(SUBJECT, 'x', sbom(backwards, SUBJECT, sys.argv[3])))"
    )
    here = Path(__file__).parent
    again = [
        subprocess.check_output(
            [sys.executable, "-c", script, here, here.parents[2] / "support", form],
            env={"PYTHONHASHSEED": seed},
        )
        for seed in ("1", "2")
    ]
    assert again[0] == again[1] == statement(SUBJECT, "x", sbom(FOUND, SUBJECT, form))
    other = replace(SUBJECT, manifest=Descriptor(MANIFEST_TYPE, digest_of(b"other"), 5))
    key = {SPDX: "documentNamespace", CYCLONEDX: "serialNumber"}[form]
    assert sbom(FOUND, SUBJECT, form)[key] != sbom(FOUND, other, form)[key]


@pytest.mark.parametrize(
    ("created", "time"),
    [
        ("2024-05-06T07:08:09.123456789Z", "2024-05-06T07:08:09Z"),
        ("2024-05-06T07:08:09+02:00", "2024-05-06T05:08:09Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ("0001-01-01T00:00:00+10:00", "1970-01-01T00:00:00Z"),
        ("", "1970-01-01T00:00:00Z"),
        ("yesterday\0", "1970-01-01T00:00:00Z"),
    ],
)
def test_times(created: str, time: str) -> None:
    assert replace(SUBJECT, created=created).time == time


# -- statements ----------------------------------------------------------------------------


def test_statement() -> None:
    names = ("docker.io/library/app:1", "registry.example.com:5000/team/app:latest")
    subject = replace(SUBJECT, names=names, platform=Platform("linux", "arm", "v7"))
    value = json.loads(statement(subject, "urn:x", {"b": 1, "a": "\ud800"}))
    digest = {"sha256": hashlib.sha256(b"image").hexdigest()}
    assert value["_type"] == "https://in-toto.io/Statement/v1" and value["predicateType"] == "urn:x"
    assert value["predicate"] == {"a": "\ufffd", "b": 1}
    assert value["subject"] == [
        {"name": "pkg:docker/app@1?platform=linux/arm/v7", "digest": digest},
        {
            "name": "pkg:docker/registry.example.com:5000/team/app@latest?platform=linux/arm/v7",
            "digest": digest,
        },
    ]
    nameless = json.loads(statement(replace(SUBJECT, names=()), "urn:x", {}))
    assert [item["name"] for item in nameless["subject"]] == ["_"]
    assert replace(SUBJECT, names=()).shown == IMAGE.digest


def test_artifact(made_store: Store) -> None:
    said = statement(SUBJECT, "urn:x", {})
    item = artifact(SUBJECT, "urn:x", said)
    value = json.loads(item.body)
    assert value["artifactType"] == "application/vnd.in-toto+json"
    assert value["config"] == {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "size": 2,
    }
    (layer,) = value["layers"]
    assert (layer["digest"], layer["size"]) == (digest_of(said), len(said))
    assert layer["annotations"] == value["annotations"] == {"in-toto.io/predicate-type": "urn:x"}
    assert value["subject"] == {"mediaType": MANIFEST_TYPE, "digest": IMAGE.digest, "size": 5}
    item.keep(made_store)
    assert made_store.read_blob(item.top.digest) == item.body
    assert [made_store.read_blob(one.digest) for one, _ in item.blobs] == [b"{}", said]
    (entry,) = listing([item])
    assert entry["digest"] == item.top.digest and entry["artifactType"] == value["artifactType"]


# -- provenance ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Solved:
    key: str
    stack: tuple[str, ...]


def planned(text: str, request: BuildRequest) -> Plan:
    file = parse(text)
    return plan(file, request, Images("base", "tool"), Linter(file, parse_checks(""), parse_ignore_none()))


def parse_ignore_none() -> Any:
    from grammar.ignore import parse_ignore

    return parse_ignore(b"")


REQUEST = BuildRequest(
    "/home/me/project",
    "/home/me/project/docker/Dockerfile",
    target="final",
    build_args={"TOKEN": "hunter2", "HTTP_PROXY": "http://me:hunter3@proxy", "URL": "https://u:hunter4@x/y"},
    labels={"a": "b"},
    secrets={"key": Secret("/home/me/.secret", "")},
    ssh={"default": Ssh("/run/agent")},
    contexts={
        "src": NamedContext("url", "https://u:hunter5@example.com/x.git#main"),
        "here": NamedContext("local", "/home/me/other"),
    },
)
COMMIT = "4b220de5058abfd01ff619c9d2ff6b09a049bea0"
TEXT = f"""FROM tool AS t
FROM base AS final
ARG TOKEN
ADD https://u:hunter6@example.com/f?token=hunter7#x /f
ADD --checksum=sha256:{"1" * 64} https://example.com/g /g
ADD https://github.com/o/r.git#{COMMIT} /r
ADD git@example.com:o/s.git#main /s
ADD https://example.com/t.git /t
COPY --from=t /x /x
RUN make
"""


def predicate(store: Store, mode: str, **changes: Any) -> dict[str, Any]:
    request = replace(REQUEST, **changes)
    made = planned(TEXT, request)
    results = {}
    for step in made.steps:
        stack: tuple[str, ...] = ()
        if isinstance(step.op, FetchUrl):
            with draft(store, ()) as written:
                stack = (commit(written, [Entry("f", FILE, 0o600, size=1, mtime=0, digest="2" * 64)]),)
        key = "k" * 64
        if isinstance(step.op, FetchGit) and "t.git" in step.op.remote:
            key = "t" * 64
            store.memos.set_commit(key, "5" * 40)
        results[id(step)] = Solved(key, stack)
    path = request.dockerfile or "Dockerfile"
    files = Files("c" * 64, SnapshotId("snapshot")) if request.remote else None
    request = replace(request, provenance=mode)
    return provenance(store, SUBJECT, BuildRecord(request, (path, b"FROM x\n"), files, made, results))


def test_provenance(made_store: Store) -> None:
    value = predicate(made_store, MIN)
    definition = value["buildDefinition"]
    assert definition["externalParameters"] == {
        "configSource": {
            "path": "docker/Dockerfile",
            "digest": {"sha256": hashlib.sha256(b"FROM x\n").hexdigest()},
        },
        "request": {"platform": "linux/amd64", "target": "final"},
    }
    base = {name: digest_of(f"docker.io/library/{name}:latest".encode())[7:] for name in ("base", "tool")}
    config = "application/vnd.oci.image.config.v1+json"
    found = {
        item["uri"]: {key: one for key, one in item.items() if key != "uri"}
        for item in definition["resolvedDependencies"]
    }
    platform = str(Images("base").resolve(*_reference())[1].platform)
    assert found == {
        f"pkg:docker/base@latest?platform={platform}": {
            "mediaType": config,
            "digest": {"sha256": base["base"]},
        },
        f"pkg:docker/tool@latest?platform={platform}": {
            "mediaType": config,
            "digest": {"sha256": base["tool"]},
        },
        "https://example.com/f": {"digest": {"sha256": "2" * 64}},
        "https://example.com/g": {"digest": {"sha256": "1" * 64}},
        f"git+https://github.com/o/r.git@{COMMIT}": {"digest": {"gitCommit": COMMIT}},
        "git+ssh://example.com/o/s.git@main": {},
        "git+https://example.com/t.git": {"digest": {"gitCommit": "5" * 40}},
        "git+https://example.com/x.git@main": {},
    }
    details = value["runDetails"]
    assert details["builder"]["version"] == {"pybuild": VERSION}
    assert details["metadata"]["finishedOn"] == "2024-05-06T07:08:09Z"
    assert value == predicate(made_store, MIN)


def _reference() -> Any:
    from builder.oci.model import host
    from grammar.reference import parse_reference

    return parse_reference("base"), host()


@pytest.mark.parametrize("mode", [MIN, MAX])
def test_no_secrets(mode: str, made_store: Store) -> None:
    """Nothing secret in either mode: credentials, queries, proxies, contents, places of this machine."""
    remote = "https://me:hunter8@example.com/context.tar?sig=hunter9"
    for changes in ({}, {"context": "", "remote": remote, "dockerfile": "d/Dockerfile"}):
        text = json.dumps(predicate(made_store, mode, **changes))
        kept = text.replace("hunter2", "") if mode == MAX else text
        assert "hunter" not in kept and "/home/" not in text and "/run/agent" not in text
        assert "PROXY" not in text
        assert ("hunter2" in text) == (mode == MAX)


def test_max(made_store: Store) -> None:
    asked_for = predicate(made_store, MAX)["buildDefinition"]["externalParameters"]["request"]
    assert asked_for == {
        "platform": "linux/amd64",
        "target": "final",
        "args": {"TOKEN": "hunter2", "URL": "https://xxxxx@x/y"},
        "labels": {"a": "b"},
        "secrets": ["key"],
        "ssh": ["default"],
        "contexts": {"here": {"kind": "local"}, "src": {"kind": "url", "value": "https://example.com/x.git"}},
    }


def test_remote_context(made_store: Store) -> None:
    made_store.memos.set_commit("c" * 64, COMMIT)
    changes = {"context": "", "remote": "https://u:p@github.com/o/r.git#main:sub", "dockerfile": ""}
    definition = predicate(made_store, MIN, **changes)["buildDefinition"]
    source = definition["externalParameters"]["configSource"]
    where = {"uri": "git+https://github.com/o/r.git@main", "digest": {"gitCommit": COMMIT}}
    assert source["path"] == "Dockerfile" and source["context"] == where
    assert where in definition["resolvedDependencies"]


def test_base_by_manifest(made_store: Store) -> None:
    """A base whose manifest is known goes by that, and its ID is told too."""
    name = "docker.io/library/base:latest"
    image = digest_of(name.encode())
    made_store.memos.set_pulled_digest(name, image, Digest(f"sha256:{'3' * 64}"))
    found = predicate(made_store, MIN)["buildDefinition"]["resolvedDependencies"]
    (base,) = [item for item in found if "base" in item["uri"]]
    assert base["digest"] == {"sha256": "3" * 64} and base["annotations"] == {"imageId": image}
    assert f"digest=sha256:{'3' * 64}" in base["uri"]
    pinned = image_url(f"example.com/a/b@sha256:{'4' * 64}", "", "linux/amd64")
    assert pinned == f"pkg:docker/example.com/a/b?digest=sha256:{'4' * 64}&platform=linux/amd64"


# -- options -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, Attestations()),
        ({"sbom": [""]}, Attestations("spdx")),
        ({"sbom": ["true"]}, Attestations("spdx")),
        ({"sbom": ["cyclonedx"]}, Attestations("cyclonedx")),
        ({"sbom": ["cyclonedx", "false"]}, Attestations()),
        ({"provenance": [""]}, Attestations("", "min")),
        ({"provenance": ["mode=max"]}, Attestations("", "max")),
        ({"provenance": ["max"]}, Attestations("", "max")),
        (
            {"provenance": ["mode=max,builder-id=https://ci.example.com/1"]},
            Attestations("", "max", "https://ci.example.com/1"),
        ),
        ({"provenance": ["false"]}, Attestations()),
        ({"attest": ["type=sbom", "type=provenance,mode=max"]}, Attestations("spdx", "max")),
        ({"attest": ["type=sbom,format=cyclonedx"]}, Attestations("cyclonedx")),
        ({"attest": ["type=provenance,disabled=true"]}, Attestations()),
        ({"attest": ["type=provenance,mode=max"], "provenance": ["false"]}, Attestations()),
        ({"attest": ['type=provenance,"builder-id=a,b"']}, Attestations("", "min", "a,b")),
    ],
)
def test_asked(options: dict[str, list[str]], wanted: Attestations) -> None:
    assert parse_attestations(**({"sbom": [], "provenance": [], "attest": []} | options)) == wanted


@pytest.mark.parametrize(
    "options",
    [
        {"sbom": ["spdx3"]},
        {"sbom": ["generator=docker/scout"]},
        {"provenance": ["mode=mid"]},
        {"provenance": ["version=v0.2"]},
        {"provenance": ["x=1"]},
        {"attest": ["sbom"]},
        {"attest": ["type=vex"]},
        {"attest": [""]},
    ],
)
def test_refused(options: dict[str, list[str]]) -> None:
    with pytest.raises(UsageError):
        parse_attestations(**({"sbom": [], "provenance": [], "attest": []} | options))


# -- registries ----------------------------------------------------------------------------


@dataclass
class Shelf:
    """A registry in memory; ``modern`` ones know referrers."""

    modern: bool
    name: str = "registry.test/app"
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)

    def has_blob(self, descriptor: Descriptor) -> bool:
        return descriptor.digest in self.blobs

    def push_blob(self, descriptor: Descriptor, path: str, progress: Callable[[int], None]) -> bool:
        data = Path(path).read_bytes()
        assert digest_of(data) == descriptor.digest
        self.blobs[descriptor.digest] = data
        return True

    def fetch(self, name: str) -> Fetched:
        if name not in self.manifests:
            raise NotFound("no")
        data = self.manifests[name]
        return Fetched("", digest_of(data), data)

    def push_manifest(self, name: str, media_type: str, data: bytes) -> bool:
        value = json.loads(data)
        for item in [value["config"], *value["layers"]] if "layers" in value else []:
            assert item["digest"] in self.blobs
        self.manifests[name] = data
        self.puts.append(name)
        return self.modern and "subject" in value


def two(store: Store) -> tuple[Artifact, Artifact]:
    made = [artifact(SUBJECT, kind, statement(SUBJECT, kind, {})) for kind in ("urn:b", "urn:a")]
    for item in made:
        item.keep(store)
    return made[0], made[1]


def test_publish(made_store: Store) -> None:
    shelf = Shelf(modern=True)
    items = two(made_store)
    publish(made_store, items, shelf)
    assert shelf.puts == [item.top.digest for item in items] and len(shelf.blobs) == 3


def test_publish_to_old(made_store: Store) -> None:
    """The referrers tag lists what was there and what is new, each once; an unchanged one is left alone."""
    shelf, items = Shelf(modern=False), two(made_store)
    tag = referrers_tag(IMAGE.digest)
    assert tag == IMAGE.digest.replace("sha256:", "sha256-")
    theirs = {"mediaType": MANIFEST_TYPE, "digest": digest_of(b"sig"), "size": 3, "artifactType": "sig"}
    shelf.manifests[tag] = json.dumps({"schemaVersion": 2, "manifests": [theirs]}).encode()
    publish(made_store, items, shelf)
    listed = json.loads(shelf.manifests[tag])
    assert listed["mediaType"] == "application/vnd.oci.image.index.v1+json"
    kinds = [item.get("annotations", {}).get("in-toto.io/predicate-type") for item in listed["manifests"]]
    assert kinds == [None, "urn:a", "urn:b"] and listed["manifests"][0] == theirs
    shelf.puts.clear()
    publish(made_store, items, shelf)
    assert tag not in shelf.puts
    fresh = Shelf(modern=False)
    publish(made_store, items, fresh)
    assert len(json.loads(fresh.manifests[tag])["manifests"]) == 2


@pytest.mark.parametrize("data", [b"{}", b"[]", b'{"manifests": [1]}', b"\xff", b"[" * 100_000])
def test_publish_over_nonsense(data: bytes, made_store: Store) -> None:
    """What somebody else keeps under the tag is not overwritten."""
    shelf = Shelf(modern=False)
    shelf.manifests[referrers_tag(IMAGE.digest)] = data
    with pytest.raises(BuildError):
        publish(made_store, two(made_store), shelf)
    assert shelf.manifests[referrers_tag(IMAGE.digest)] == data


def test_predicate_types() -> None:
    assert set(PREDICATE_TYPES) == {SPDX, CYCLONEDX}
    assert Digest(IMAGE.digest).startswith("sha256:")
