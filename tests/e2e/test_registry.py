"""Pulling: from the real registry over HTTP and HTTPS, and from servers that mean harm (REG)."""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Pybuild
from oci import Image, read_image
from servers import Misbehaving, certificate, registry, send

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def archive(busybox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI archive of an image of three layers."""
    work = tmp_path_factory.mktemp("archive")
    made = Pybuild(work / "store", work)
    made("load", busybox).ok()
    context = made.context("FROM busybox\nENV from=registry\nCOPY f /f\nRUN rm /f; echo 1 > /g\n", {"f": "1"})
    made("-t", "x", "--network=none", "-o", f"type=oci,dest={work}/x.tar", context).ok()
    return work / "x.tar"


@pytest.fixture(scope="module")
def served(tools: dict[str, str], archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The image in a real registry; its name."""
    with registry(tools["docker-registry"], tmp_path_factory.mktemp("registry")) as host:
        push(tools["skopeo"], archive, f"{host}/some/image:1")
        yield f"{host}/some/image"


def push(skopeo: str, archive: Path, name: str) -> None:
    command = [skopeo, "copy", "-q", "--dest-tls-verify=false", f"oci-archive:{archive}", f"docker://{name}"]
    subprocess.run(command, check=True, capture_output=True)


def test_pull_by_tag(fresh: Pybuild, served: str) -> None:
    """Layers, config, history as pushed; the second build asks nobody."""
    context = fresh.context(f"FROM {served}:1\nRUN cat /g > /h\n")
    image = fresh.export(context, "--network=none")
    assert image.read("h") == b"1\n" and image.env["from"] == "registry"
    assert "f" not in image.tree()
    assert f"{served}:1" in fresh("images").out
    (context / "Dockerfile").write_text(f"FROM {served}:1\nRUN cat /g > /i\n")
    assert "pulling" not in fresh("--network=none", context).ok().err


def test_pull_by_digest(fresh: Pybuild, served: str, tools: dict[str, str]) -> None:
    command = [tools["skopeo"], "inspect", "--tls-verify=false", "-f", "{{.Digest}}", f"docker://{served}:1"]
    digest = subprocess.check_output(command, text=True).strip()
    assert fresh.build(f"FROM {served}@{digest}\n").env["from"] == "registry"
    wrong = "sha256:" + "0" * 64
    assert "does not exist" in fresh.refuse(f"FROM {served}@{wrong}\n")


def test_copy_from_an_image(fresh: Pybuild, served: str) -> None:
    """T64: --from may name an image."""
    assert fresh.build(f"FROM scratch\nCOPY --from={served}:1 /g /g\n").tree() == {"g": "1\n"}


def test_missing(fresh: Pybuild, served: str) -> None:
    said = fresh.refuse(f"FROM {served}:nope\n")
    assert "nope does not exist" in said and "check the name" in said and "^" in said


def test_nobody_listens(fresh: Pybuild) -> None:
    said = fresh.refuse("FROM 127.0.0.1:1/x\n")
    assert "could not be reached" in said


def test_https(fresh: Pybuild, archive: Path, tools: dict[str, str], tmp_path: Path) -> None:
    """A registry with a certificate we trust works; one we do not trust is refused."""
    key, cert = certificate(tmp_path)
    tls = f"  tls:\n    certificate: {cert}\n    key: {key}\n"
    with registry(tools["docker-registry"], tmp_path, tls) as host:
        name = f"localhost:{host.rpartition(':')[2]}/x"
        push(tools["skopeo"], archive, f"{name}:1")
        context = fresh.context(f"FROM {name}:1\n")
        refused = fresh(context).failed().err
        assert "certificate" in refused.lower()
        fresh(context, env={"SSL_CERT_FILE": str(cert)}).ok()


# -- servers that lie ----------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[Misbehaving]:
    made = Misbehaving()
    yield made
    made.close()


@pytest.fixture(scope="module")
def good(archive: Path) -> Image:
    return read_image(archive)


def blobs(image: Image) -> dict[str, bytes]:
    return {
        n.removeprefix("blobs/").replace("/", ":"): d
        for n, d in image.files.items()
        if n.startswith("blobs/")
    }


def test_benign_twin(fresh: Pybuild, server: Misbehaving, good: Image) -> None:
    """The server of the tests below, behaving: what they refuse is the lie, not the server."""
    server.image("x", blobs(good), good.manifest)
    assert fresh.build(f"FROM {server.host}/x\n").env["from"] == "registry"


def test_platforms(fresh: Pybuild, server: Misbehaving, good: Image) -> None:
    """FROM --platform takes its image of an index; one that is for one machine only is taken with a warning."""
    config = {**good.config, "architecture": "s390x"}
    data = json.dumps(config).encode()
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    foreign = {**good.manifest, "config": {**good.manifest["config"], "digest": digest, "size": len(data)}}
    items = []
    for manifest, machine in ((foreign, "s390x"), (good.manifest, good.config["architecture"])):
        server.image("x", {**blobs(good), digest: data}, manifest)
        body = json.dumps(manifest).encode()
        items.append({
            "mediaType": manifest["mediaType"], "size": len(body),
            "digest": "sha256:" + hashlib.sha256(body).hexdigest(),
            "platform": {"os": "linux", "architecture": machine},
        })  # fmt: skip
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": items}
    server.serve("/v2/x/manifests/latest", json.dumps(index).encode(), str(index["mediaType"]))
    server.image("one", {**blobs(good), digest: data}, foreign)

    machine = good.config["architecture"]
    for _ in range(2):
        image = fresh.build(f"FROM --platform=linux/s390x {server.host}/x AS s390x\n")
        assert image.config["architecture"] == "s390x"
        assert fresh.build(f"FROM {server.host}/x\n").config["architecture"] == machine
        named = ("--build-context", f"base=docker-image://{server.host}/x")
        image = fresh.build("FROM --platform=linux/s390x base AS s390x\n", None, *named)
        assert image.config["architecture"] == "s390x"
    assert "has no image for linux/arm/v6" in fresh.refuse(f"FROM --platform=linux/arm/v6 {server.host}/x\n")
    done = fresh(fresh.context(f"FROM {server.host}/one\n")).ok()
    assert f'pulled with platform "linux/s390x", expected "linux/{machine}"' in done.err


def test_pull_asks_again(fresh: Pybuild, server: Misbehaving, good: Image) -> None:
    """T103: what the store has is used, unless --pull says that the registry is to be asked."""
    server.image("x", blobs(good), good.manifest)
    context = fresh.context(f"FROM {server.host}/x\nLABEL a=b\n")
    fresh(context).ok()
    asked = len(server.asked)
    fresh(context).ok()
    assert len(server.asked) == asked
    fresh("--pull", context).ok()
    assert len(server.asked) > asked
    server.answers.clear()
    fresh("--pull", context).failed()


def lies(image: Image) -> dict[str, tuple[dict[str, bytes], dict[str, Any]]]:
    """Images with one thing wrong each."""
    files, manifest = blobs(image), image.manifest
    layer, config = manifest["layers"][-1]["digest"], manifest["config"]["digest"]

    def changed(**fields: Any) -> dict[str, Any]:
        return {**copy.deepcopy(manifest), **fields}

    other = gzip.compress(b"\0" * 1024)
    swapped = copy.deepcopy(manifest)
    swapped["layers"][-1] |= {"digest": "sha256:" + hashlib.sha256(other).hexdigest(), "size": len(other)}
    wrong_size = copy.deepcopy(manifest)
    wrong_size["layers"][-1]["size"] += 1
    escaping = copy.deepcopy(manifest)
    escaping["layers"][-1]["digest"] = "sha256:../../../../etc/passwd"
    return {
        "layer-bytes": ({**files, layer: b"x" * len(files[layer])}, manifest),
        "layer-short": ({**files, layer: files[layer][:-1]}, manifest),
        "layer-longer": ({**files, layer: files[layer] + b"x"}, manifest),
        "layer-size": (files, wrong_size),
        "config-bytes": ({**files, config: b"{}".ljust(len(files[config]))}, manifest),
        "diff-id": ({**files, swapped["layers"][-1]["digest"]: other}, swapped),
        "fewer-layers": (files, changed(layers=manifest["layers"][:-1])),
        "path-in-digest": (files, escaping),
        "no-config": (files, {k: v for k, v in manifest.items() if k != "config"}),
        "index-and-image": (files, changed(manifests=[])),
        "schema-1": (files, changed(schemaVersion=1)),
    }


KINDS = ["layer-bytes", "layer-short", "layer-longer", "layer-size", "config-bytes", "diff-id", "fewer-layers",
         "path-in-digest", "no-config", "index-and-image", "schema-1"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_lie(fresh: Pybuild, server: Misbehaving, good: Image, kind: str) -> None:
    files, manifest = lies(good)[kind]
    server.image("x", files, manifest)
    fresh.refuse(f"FROM {server.host}/x\n")
    assert "127.0.0.1" not in fresh("images").out
    assert not list((fresh.store / "tmp").iterdir())


REDIRECTS = {
    "file": "file:///etc/passwd",
    "private": "http://169.254.169.254/latest/meta-data",
    "credentials": "http://user:pw@127.0.0.1/",
    "gopher": "gopher://127.0.0.1:6379/_x",
    "split": "http://127.0.0.1/\r\nX: y",
    "no-port": "http://127.0.0.1:x/",
    "no-host": "http://[::1",
    "decimal": "http://2852039166/latest/meta-data",
    "hexadecimal": "http://0xa9fea9fe/latest/meta-data",
    "all-zero": "http://0/",
}


@pytest.mark.parametrize("target", REDIRECTS.values(), ids=REDIRECTS.keys())
def test_unsafe_redirect(fresh: Pybuild, server: Misbehaving, target: str) -> None:
    server.answers["/v2/x/manifests/latest"] = lambda h: send(
        h, b"", status=307, Location=target.replace("\r\n", "%0d%0a")
    )
    fresh.refuse(f"FROM {server.host}/x\n")


def test_redirect_loop(fresh: Pybuild, server: Misbehaving) -> None:
    server.answers["/v2/x/manifests/latest"] = lambda h: send(h, b"", status=307, Location=h.path)
    assert "redirects" in fresh.refuse(f"FROM {server.host}/x\n")
    assert len(server.asked) < 20


def test_redirected_blob(fresh: Pybuild, server: Misbehaving, good: Image) -> None:
    """The usual case: blobs live elsewhere on the same host."""
    files = blobs(good)
    server.image("x", files, good.manifest)
    for digest, data in files.items():
        server.serve(f"/cdn/{digest}", data)
        server.answers[f"/v2/x/blobs/{digest}"] = lambda h, d=digest: send(
            h, b"", status=307, Location=f"/cdn/{d}"
        )  # type: ignore[misc]
    assert fresh.build(f"FROM {server.host}/x\n").env["from"] == "registry"


@pytest.mark.parametrize(
    "realm",
    [
        "http://169.254.169.254/token",
        "https://0xa9fea9fe/t",
        "https://[::1",
        "https://h:x/",
        "file:///etc/passwd",
        "http://example.com/t",
        "",
    ],
)
def test_hostile_realm(fresh: Pybuild, server: Misbehaving, realm: str) -> None:
    challenge = f'Bearer realm="{realm}",service="x"'
    server.answers["/v2/x/manifests/latest"] = lambda h: send(
        h, b"{}", status=401, WWW_Authenticate=challenge
    )
    fresh.refuse(f"FROM {server.host}/x\n")


def test_anonymous_token(fresh: Pybuild, server: Misbehaving, good: Image) -> None:
    """A token where one is wanted, for this repository only, and to nobody else."""
    server.image("x", blobs(good), good.manifest)
    manifest = server.answers["/v2/x/manifests/latest"]
    challenge = f'Bearer realm="http://{server.host}/token",service="srv"'

    def guarded(handler: Any) -> None:
        if handler.headers.get("Authorization") == "Bearer tok":
            manifest(handler)
        else:
            send(handler, b"{}", status=401, WWW_Authenticate=challenge)

    server.answers["/v2/x/manifests/latest"] = guarded
    server.serve("/token", b'{"token": "tok"}', "application/json")
    assert fresh.build(f"FROM {server.host}/x\n").env["from"] == "registry"
    asked = next(path for path, _ in server.asked if path.startswith("/token"))
    assert asked == "/token?scope=repository%3Ax%3Apull&service=srv"


def test_endless_401(fresh: Pybuild, server: Misbehaving) -> None:
    challenge = f'Bearer realm="http://{server.host}/token",service="srv"'
    server.answers["/v2/x/manifests/latest"] = lambda h: send(
        h, b"{}", status=401, WWW_Authenticate=challenge
    )
    server.serve("/token", b'{"token": "tok"}', "application/json")
    assert "credentials" in fresh.refuse(f"FROM {server.host}/x\n")
    assert len(server.asked) < 10


def test_flaky_server(tmp_path: Path, server: Misbehaving, good: Image) -> None:
    """Errors that pass are waited for; a broken download goes on where it broke."""
    empty = Pybuild(tmp_path / "store", tmp_path)
    files = blobs(good)
    server.image("x", files, good.manifest)
    manifest = server.answers["/v2/x/manifests/latest"]
    tries: list[int] = []

    def sometimes(handler: Any) -> None:
        tries.append(1)
        if len(tries) < 3:
            send(handler, b"busy", status=503)
        else:
            manifest(handler)

    layer = good.manifest["layers"][0]["digest"]

    def breaking(handler: Any) -> None:
        data = files[layer]
        start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(data) - start))
        handler.end_headers()
        handler.wfile.write(data[start : start + 300000])

    server.answers["/v2/x/manifests/latest"] = sometimes
    server.answers[f"/v2/x/blobs/{layer}"] = breaking
    assert empty.build(f"FROM {server.host}/x\n").env["from"] == "registry"
    ranges = [headers.get("range") for path, headers in server.asked if layer in path]
    assert ranges[:2] == [None, "bytes=300000-"]


@pytest.mark.parametrize(
    "body", [b"<html>login</html>", b"", b"[" * 200000, b'{"a": 1e999999}', b"\xff\xfe", b"x" * (5 << 20)]
)
def test_manifest_that_is_none(fresh: Pybuild, server: Misbehaving, body: bytes) -> None:
    server.serve("/v2/x/manifests/latest", body, "application/vnd.oci.image.manifest.v1+json")
    fresh.refuse(f"FROM {server.host}/x\n")
