"""What is said of images that were really built: by the packages' own managers, and by the plan."""

from __future__ import annotations

import hashlib
import http.server
import importlib.metadata
import json
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from harness import Pybuild, Tree
from oci import Image, read_image
from servers import registry, send

from builder.attest.packages import Found
from builder.attest.sbom import CYCLONEDX, PREDICATE_TYPES, SPDX
from builder.attest.statement import Subject
from builder.attest.statements import packages_of, sbom_of
from builder.images.local import find
from builder.oci.media_types import MANIFEST as MANIFEST_TYPE
from builder.oci.model import ImageConfig
from builder.registry.client import Registry
from cache.descriptor import Descriptor
from cache.store import Store

pytestmark = pytest.mark.e2e

NONE = "--network=none"
STATUS = "/var/lib/dpkg/status"


def found_in(pybuild: Pybuild, name: str) -> tuple[Found, ImageConfig]:
    """The packages of an image, and its config."""
    with Store(str(pybuild.store)) as store:
        _image, config = find(store, name)
        return packages_of(store, config), config


def test_debian_as_dpkg_says(pybuild: Pybuild) -> None:
    """The database of this machine, in an image: every package that dpkg has files of, and no other."""
    context = pybuild.context(
        "FROM busybox\nCOPY status /var/lib/dpkg/status\nCOPY release /etc/os-release\n"
    )
    (context / "status").write_bytes(Path(STATUS).read_bytes())
    (context / "release").write_bytes(Path("/etc/os-release").read_bytes())
    pybuild(NONE, "-t", "dpkg:1", context).ok()
    found, _config = found_in(pybuild, "dpkg:1")
    query = "${db:Status-Status} ${Package} ${Version} ${Architecture} ${source:Package}\n"
    wanted = set()
    for line in subprocess.check_output(["dpkg-query", "-W", "-f", query], text=True).splitlines():
        state, name, version, arch, source = line.split(" ")
        if state not in ("not-installed", "config-files"):
            wanted.add((name, version, arch, source if source != name else ""))
    assert len(wanted) > 50 and found.gaps == ()
    assert {(item.name, item.version, item.arch, item.source) for item in found.packages} == wanted
    assert found.distribution.id == "debian"


def test_python_as_python_says(pybuild: Pybuild) -> None:
    """The distributions of this very environment, in an image."""
    own = list(importlib.metadata.distributions())
    context = pybuild.context("FROM busybox\nCOPY site-packages /opt/venv/lib/python3.11/site-packages/\n")
    wanted = set()
    for item in own:
        path = Path(str(item._path)) if hasattr(item, "_path") else None  # an egg-link has none
        if path is None or path.suffix != ".dist-info":
            continue
        folder = context / "site-packages" / path.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "METADATA").write_bytes((path / "METADATA").read_bytes())
        wanted.add((item.metadata["Name"], item.version))
    pybuild(NONE, "-t", "venv:1", context).ok()
    found, _config = found_in(pybuild, "venv:1")
    assert len(wanted) > 10 and {(item.name, item.version) for item in found.packages} == wanted
    assert found.gaps == ()


def test_only_the_result(pybuild: Pybuild) -> None:
    """Not what other stages have, nor what a later step removed or made anew; the same after a cached build."""
    package = '{{"name": "{}", "version": "{}"}}'
    files = {
        "a.json": package.format("a", "1"),
        "b.json": package.format("b", "1"),
        "b2.json": package.format("b", "2"),
        "c.json": package.format("c", "1"),
    }
    text = """FROM busybox AS build
COPY a.json /node_modules/a/package.json
FROM busybox
COPY b.json /node_modules/b/package.json
COPY c.json /x/node_modules/c/package.json
RUN rm -r /x/node_modules && mkdir -p /x/node_modules/d && mkfifo /x/node_modules/d/package.json
RUN ln -s /node_modules /y && ln -s .. /node_modules/up
COPY b2.json /node_modules/b/package.json
COPY --from=build /node_modules/a/package.json /a.json
"""
    context = pybuild.context(text, files)
    said = []
    for _ in range(2):
        pybuild(NONE, "-t", "only:1", context).ok()
        found, config = found_in(pybuild, "only:1")
        assert [(item.name, item.version) for item in found.packages] == [("b", "2")] and not found.gaps
        subject = Subject(
            ("docker.io/library/only:1",),
            Descriptor(MANIFEST_TYPE, config.diff_ids[0], 1),
            config.platform,
            config.created,
        )
        with Store(str(pybuild.store)) as store:
            said.append([sbom_of(store, subject, found, form) for form in (SPDX, CYCLONEDX)])
    assert said[0] == said[1]
    for made, form in zip(said[0], (SPDX, CYCLONEDX), strict=True):
        value = json.loads(made.statement)
        assert value["predicateType"] == PREDICATE_TYPES[form]
        assert "pkg:npm/b@2" in made.statement.decode()


def test_hostile_image(pybuild: Pybuild) -> None:
    """A step that leaves the worst it can: the image is built, the search ends, and says what it missed."""
    text = """FROM busybox
RUN mkdir -p /var/lib/dpkg /lib/apk/db /node_modules/a /node_modules/b /usr/lib \\
 && dd if=/dev/urandom of=/var/lib/dpkg/status bs=1M count=4 2>/dev/null \\
 && ln -s /proc/self/environ /lib/apk/db/installed && ln -s os-release /etc/os-release \\
 && truncate -s 3M /node_modules/a/package.json && ln -s /etc/shadow /node_modules/b/package.json
"""
    pybuild(NONE, "-t", "hostile:1", pybuild.context(text)).ok()
    found, _config = found_in(pybuild, "hostile:1")
    assert found.packages == {}
    places = [gap.partition(": ")[0] for gap in found.gaps]
    assert places == ["/etc/os-release", "/var/lib/dpkg/status", "/node_modules/a/package.json"]


# -- by the command ------------------------------------------------------------------------

DOCKERFILE = """FROM busybox AS base
ARG TOKEN
COPY a.json /node_modules/a/package.json
"""
FILES: Tree = {"a.json": '{"name": "a", "version": "1"}'}
EPOCH = {"SOURCE_DATE_EPOCH": "1700000000"}
IN_TOTO = "application/vnd.in-toto+json"
SLSA = "https://slsa.dev/provenance/v1"


def described(image: Image) -> list[dict[str, Any]]:
    """What the one descriptor of index.json leads to: the entries of the index of image and statements."""
    (top,) = image.index["manifests"]
    assert top["mediaType"] == "application/vnd.oci.image.index.v1+json"
    entries: list[dict[str, Any]] = blob(image, top)["manifests"]
    return entries


def statements(image: Image) -> dict[str, dict[str, Any]]:
    """What the archive of an image says of it, by predicate types; every digest was checked."""
    out: dict[str, dict[str, Any]] = {}
    images = {item["digest"]: item for item in described(image) if item["platform"]["os"] != "unknown"}
    for item in described(image)[len(images) :]:
        manifest = blob(image, item)
        about = manifest["subject"]["digest"]
        assert item["platform"] == {"architecture": "unknown", "os": "unknown"}
        assert item["annotations"] == {
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": about,
        }
        assert manifest["artifactType"] == "application/vnd.docker.attestation.manifest.v1+json"
        assert blob(image, manifest["config"]) == {}
        assert about in images and manifest["subject"]["size"] == images[about]["size"]
        for layer in manifest["layers"]:
            said: dict[str, Any] = blob(image, layer)
            assert layer["mediaType"] == IN_TOTO
            assert all(f"sha256:{subject['digest']['sha256']}" == about for subject in said["subject"])
            assert said["predicateType"] == layer["annotations"]["in-toto.io/predicate-type"]
            out[said["predicateType"] + out_of(out, said)] = {**said, "about": about}
    return out


def out_of(out: dict[str, Any], said: dict[str, Any]) -> str:
    """What tells statements of one type about several images apart."""
    return f" {len(out)}" if said["predicateType"] in out else ""


def check_spdx(document: dict[str, Any], folder: Path) -> None:
    """Have the document judged by the specification's own tools."""
    (folder / "x.spdx.json").write_text(json.dumps(document))
    judge = Path(sys.executable).with_name("pyspdxtools")
    subprocess.run([judge, "-i", folder / "x.spdx.json"], check=True)


def blob(image: Image, descriptor: dict[str, Any]) -> Any:
    data = image.files["blobs/" + descriptor["digest"].replace(":", "/")]
    assert len(data) == descriptor["size"]
    assert "sha256:" + hashlib.sha256(data).hexdigest() == descriptor["digest"]
    return json.loads(data)


def test_archive(pybuild: Pybuild, fresh: Pybuild, tools: dict[str, str], tmp_path: Path) -> None:
    """Beside the image, which is the same as without; equal builds say equal things; others read the archive."""
    context = pybuild.context(DOCKERFILE, FILES)
    options = ("-t", "said:1", NONE, "--build-arg", "TOKEN=hunter2", "--provenance", "--sbom")
    plain = pybuild.export(context, "-t", "said:1", NONE, "--build-arg", "TOKEN=hunter2")
    image = pybuild.export(context, *options)
    first = (tmp_path / "export.tar").read_bytes()
    ours = described(image)[0]
    assert ours["digest"] == plain.index["manifests"][0]["digest"] and len(plain.index["manifests"]) == 1
    said = statements(image)
    assert set(said) == {SLSA, PREDICATE_TYPES[SPDX]}
    assert {item["about"] for item in said.values()} == {ours["digest"]}
    assert said[SLSA]["subject"][0]["name"].startswith("pkg:docker/said@1?platform=linux/")
    check_spdx(said[PREDICATE_TYPES[SPDX]]["predicate"], tmp_path)
    assert "pkg:npm/a@1" in json.dumps(said[PREDICATE_TYPES[SPDX]])
    definition = said[SLSA]["predicate"]["buildDefinition"]
    digest = hashlib.sha256(DOCKERFILE.encode()).hexdigest()
    assert definition["externalParameters"]["configSource"] == {
        "path": "Dockerfile",
        "digest": {"sha256": digest},
    }
    (base,) = definition["resolvedDependencies"]
    assert base["uri"].startswith("pkg:docker/busybox@latest?platform=linux/")
    assert "hunter2" not in json.dumps(said)
    pybuild.export(context, *options)
    assert (tmp_path / "export.tar").read_bytes() == first
    assert fresh("load", tmp_path / "export.tar").ok().out == "loaded docker.io/library/said:1\n"
    copied = tmp_path / "copied"
    archive = f"oci-archive:{tmp_path}/export.tar"  # the one image of it
    subprocess.run([tools["skopeo"], "--insecure-policy", "copy", "-q", archive, f"dir:{copied}"], check=True)
    assert (copied / "manifest.json").is_file()


def test_max_and_cyclonedx(pybuild: Pybuild) -> None:
    context = pybuild.context(DOCKERFILE, FILES)
    given = ("--build-arg", "TOKEN=hunter2", "--attest", "type=provenance,mode=max", "--sbom=cyclonedx")
    said = statements(pybuild.export(context, NONE, "--target", "base", *given))
    asked_for = said[SLSA]["predicate"]["buildDefinition"]["externalParameters"]["request"]
    assert asked_for["args"] == {"TOKEN": "hunter2"} and asked_for["target"] == "base"
    assert said[PREDICATE_TYPES[CYCLONEDX]]["predicate"]["components"][0]["purl"] == "pkg:npm/a@1"


def test_epoch(pybuild: Pybuild, fresh: Pybuild) -> None:
    """With SOURCE_DATE_EPOCH two stores say the same, byte by byte."""
    said = []
    for command in (pybuild, fresh):
        archive = command.work / "epoch.tar"
        given = (NONE, "--provenance", "--sbom", "-o", f"type=oci,dest={archive},rewrite-timestamp=true")
        command(*given, command.context(DOCKERFILE, FILES), env=EPOCH).ok()
        said.append(read_image(archive).index)
        found = statements(read_image(archive))
        assert found[SLSA]["predicate"]["runDetails"]["metadata"]["finishedOn"] == "2023-11-14T22:13:20Z"
    assert said[0] == said[1]


def test_platforms(pybuild: Pybuild) -> None:
    """Each platform's image has its own."""
    context = pybuild.context("FROM scratch\nLABEL a=1\n")
    given = (
        "--platform",
        "linux/amd64,linux/arm64",
        "--provenance",
        "-o",
        f"type=oci,dest={pybuild.work}/p.tar",
    )
    pybuild(NONE, *given, context).ok()
    image = read_image(pybuild.work / "p.tar")
    images = [item["digest"] for item in described(image) if item["platform"]["os"] == "linux"]
    assert [said["about"] for said in statements(image).values()] == images and len(images) == 2


def test_nowhere_to_go(pybuild: Pybuild, tmp_path: Path) -> None:
    """Nothing is silently left out, and what is wrong is said before anything is built."""
    context = pybuild.context(DOCKERFILE, FILES)
    for output in ((), ("-o", f"type=docker,dest={tmp_path}/d.tar"), ("-o", f"type=local,dest={tmp_path}/d")):
        assert "attestations go to registries" in pybuild(NONE, "--sbom", *output, context).ok().err
    for wrong in ("--sbom=spdx3", "--provenance=mode=all", "--attest=vex"):
        pybuild(NONE, wrong, context).failed(2)


def ask(host: str, path: str) -> Any:
    kinds = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
    request = urllib.request.Request(f"http://{host}/v2/{path}", headers={"Accept": kinds})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as answer:
        data = answer.read()
    return data


def test_registry(pybuild: Pybuild, tools: dict[str, str], tmp_path: Path) -> None:
    """In a registry that knows no referrers they are under the tag that the specification says. A base
    image that was pulled goes by the digest that it has there.
    """
    with registry(tools["docker-registry"], tmp_path) as host:
        pybuild("tag", "busybox", f"{host}/base:1").ok()
        base = pybuild("push", f"{host}/base:1").ok().out.strip().rpartition("@")[2]
        context = pybuild.context(DOCKERFILE.replace("busybox", f"{host}/base:1"), FILES)
        given = ("--pull", "--push", "-t", f"{host}/team/app:1", "--sbom")
        pybuild(NONE, *given, context).ok()
        pybuild(NONE, *given, "--provenance", context).ok()
        body = ask(host, "team/app/manifests/1")
        assert "layers" in json.loads(body)  # the name means the image itself, no index
        digest = hashlib.sha256(body).hexdigest()
        listed = json.loads(ask(host, f"team/app/manifests/sha256-{digest}"))["manifests"]
        found = {}
        for item in listed:
            manifest = json.loads(ask(host, f"team/app/manifests/{item['digest']}"))
            assert manifest["subject"]["digest"] == f"sha256:{digest}" and item["artifactType"] == IN_TOTO
            said = json.loads(ask(host, f"team/app/blobs/{manifest['layers'][0]['digest']}"))
            found[said["predicateType"]] = said["predicate"]
        assert len(listed) == 2 and set(found) == {SLSA, PREDICATE_TYPES[SPDX]}
        (dependency,) = found[SLSA]["buildDefinition"]["resolvedDependencies"]
        assert dependency["digest"] == {"sha256": base.removeprefix("sha256:")}


def test_registry_that_knows_referrers() -> None:
    """It says so when it takes what has a subject."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            known = {"OCI-Subject": "sha256:" + "0" * 64} if b"subject" in body else {}
            send(self, b"", status=201, **known)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with Registry(f"127.0.0.1:{server.server_port}") as target:
            for body, listed in ((b'{"subject": 1}', True), (b"{}", False)):
                assert target.push_manifest("app", "1", MANIFEST_TYPE, body) is listed
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
