"""Images out: pushes to real registries with and without credentials, and every kind of output."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Pybuild, Tree
from oci import read_image
from servers import Misbehaving, registry, send

pytestmark = pytest.mark.e2e

NONE = "--network=none"
# "hunter2", as bcrypt has it.
HTPASSWD = "me:$2y$05$Aexd20fyMGQ4B3Lh/PNB1./AuQuyFVmOVngbs/u0t5T.QaknraY3G"
AUTH = "auth:\n  htpasswd:\n    realm: test\n    path: {}\n"
FILES: Tree = {"f": "1", "d": {"g": "2"}}
TEXT = "FROM busybox\nCOPY f /f\nCOPY d /d\nRUN ln /f /h && ln -s /etc /l && chown 5:6 /d && chmod 4755 /f\n"


@pytest.fixture
def server(tools: dict[str, str], tmp_path: Path) -> Iterator[str]:
    with registry(tools["docker-registry"], tmp_path) as host:
        yield host


@pytest.fixture
def guarded(tools: dict[str, str], tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "guarded"
    folder.mkdir()
    (folder / "htpasswd").write_text(HTPASSWD + "\n")
    with registry(tools["docker-registry"], folder, AUTH.format(folder / "htpasswd")) as host:
        yield host


def manifest(host: str, name: str, tag: str) -> dict[str, object]:
    value: dict[str, object] = json.loads(fetch_manifest(host, name, tag))
    return value


def fetch_manifest(host: str, name: str, tag: str) -> bytes:
    import urllib.request

    kind = "application/vnd.oci.image.manifest.v1+json"
    request = urllib.request.Request(f"http://{host}/v2/{name}/manifests/{tag}", headers={"Accept": kind})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as answer:
        data: bytes = answer.read()
    return data


def asked(folder: Path, start: str) -> int:
    """How often a registry was asked for what begins so, as its log tells."""
    return (folder / "registry.log").read_text().count(f'"{start}')


# -- pushing -------------------------------------------------------------------------------


def test_push_and_pull(pybuild: Pybuild, fresh: Pybuild, server: str, tmp_path: Path) -> None:
    """What one store pushes another pulls, the same; pushed again nothing is sent; from one repository to
    another blobs are mounted.
    """
    context = pybuild.context(TEXT, FILES)
    name = f"{server}/team/app:1"
    done = pybuild(NONE, "-t", name, "--push", context).ok()
    image = pybuild(NONE, "-q", "-t", name, context).ok().out.strip()
    assert f"pushed {name}@sha256:" in done.err
    assert fresh("pull", name).ok().out.strip().endswith(image)
    sent = asked(tmp_path, "PUT /v2/team/app/blobs")
    assert sent >= 4
    said = pybuild("push", name).ok().out.strip()
    assert said.startswith(f"{server}/team/app@sha256:") and said.split("@")[1] in done.err
    assert asked(tmp_path, "PUT /v2/team/app/blobs") == sent
    pybuild("tag", name, f"{server}/other/app:2").ok()
    pybuild("push", f"{server}/other/app:2").ok()
    assert asked(tmp_path, "PUT /v2/other/app/blobs") == 0
    assert manifest(server, "other/app", "2") == manifest(server, "team/app", "1")


def test_push_without_a_name(pybuild: Pybuild) -> None:
    said = pybuild(NONE, "--push", pybuild.context("FROM scratch\nLABEL a=1\n")).failed(2).err
    assert "no name to push the image under" in said


def test_nobody_listens(pybuild: Pybuild) -> None:
    """Nothing is tagged by a build whose push fails."""
    pybuild(NONE, "-t", "127.0.0.1:9/app:1", "--push", pybuild.context("FROM scratch\nLABEL b=1\n")).failed()
    assert "127.0.0.1:9/app" not in pybuild("images").ok().out


def test_login(pybuild: Pybuild, fresh: Pybuild, guarded: str, tmp_path: Path) -> None:
    """Credentials are tried, kept for their owner's eyes, used for all, and forgotten."""
    env = {"DOCKER_CONFIG": str(tmp_path / "config")}
    pybuild("tag", "busybox", f"{guarded}/b:1").ok()
    said = pybuild("push", f"{guarded}/b:1", env=env).failed().err
    assert f"pybuild login {guarded}" in said
    login = ("login", "-u", "me", "--password-stdin", guarded)
    assert "not allowed" in pybuild(*login, env=env, stdin=b"wrong\n").failed().err
    assert not (tmp_path / "config").exists()
    pybuild(*login, env=env, stdin=b"hunter2\n").ok()
    path = tmp_path / "config/config.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and "hunter2" not in path.read_text()
    pybuild("push", f"{guarded}/b:1", env=env).ok()
    assert "needs credentials" in fresh("pull", f"{guarded}/b:1").failed().err
    fresh("pull", f"{guarded}/b:1", env=env).ok()
    context = fresh.context(f"FROM {guarded}/b:1\nLABEL a=1\n")
    fresh(NONE, context, env=env).ok()
    assert "logged out" in pybuild("logout", guarded, env=env).ok().out
    assert "no credentials" in pybuild("logout", guarded, env=env).ok().out
    pybuild("push", f"{guarded}/b:1", env=env).failed()


def test_credential_helper(pybuild: Pybuild, guarded: str, tmp_path: Path) -> None:
    """docker's protocol for them; what one says is asked of it each time, and secrets are in no argument."""
    config = tmp_path / "config"
    config.mkdir()
    helper = tmp_path / "docker-credential-test"
    helper.write_text(
        f"""#!/bin/sh
echo "$@" >> {tmp_path}/log
read -r given
case $1 in
get) [ "$given" = {guarded} ] && echo '{{"ServerURL": "x", "Username": "me", "Secret": "hunter2"}}' && exit
     echo "credentials not found in native keychain"; exit 1 ;;
esac
"""
    )
    helper.chmod(0o755)
    env = {"DOCKER_CONFIG": str(config), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    (config / "config.json").write_text(json.dumps({"credHelpers": {guarded: "test"}}))
    pybuild("tag", "busybox", f"{guarded}/h:1").ok()
    pybuild("push", f"{guarded}/h:1", env=env).ok()
    pybuild("login", "-u", "me", "--password-stdin", guarded, env=env, stdin=b"hunter2").ok()
    log = (tmp_path / "log").read_text()
    assert "get" in log and "store" in log and "hunter2" not in log
    for bad in ("../test", "no such", ""):
        (config / "config.json").write_text(json.dumps({"credsStore": bad}))
        pybuild("push", f"{guarded}/h:1", env=env).failed()


@pytest.mark.parametrize("content", ["{", "[]", '{"auths": 1}', '{"auths": {"HOST": {"auth": "!"}}}'])
def test_damaged_configuration(pybuild: Pybuild, server: str, tmp_path: Path, content: str) -> None:
    """It is no credentials, and no reason to fail where none are needed."""
    (tmp_path / "config.json").write_text(content.replace("HOST", server))
    pybuild("tag", "busybox", f"{server}/d:1").ok()
    pybuild("push", f"{server}/d:1", env={"DOCKER_CONFIG": str(tmp_path)}).ok()


def test_REG_07_upload_elsewhere(pybuild: Pybuild, tmp_path: Path) -> None:
    """A Location on another host gets no credentials; one that is inside gets nothing at all."""
    server, other = Misbehaving(), Misbehaving()
    try:
        server.answers["/v2/x/blobs/uploads/"] = lambda handler: send(handler, b"")
        context = pybuild.context("FROM scratch\nLABEL c=1\n")
        pybuild(NONE, "-t", f"{server.host}/x:1", "--push", context).failed()
        assert not other.asked
    finally:
        server.close()
        other.close()


# -- outputs -------------------------------------------------------------------------------


def test_folder_and_tar(pybuild: Pybuild, tmp_path: Path) -> None:
    """The files alone: owners stay in the tar, in a folder they are ours; what lies there does not lead out."""
    context = pybuild.context(TEXT, FILES)
    outside, folder = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    folder.mkdir()
    (folder / "d").symlink_to(outside)
    (folder / "h").symlink_to(outside / "h")
    pybuild(NONE, "-o", f"type=local,dest={folder}", "-o", f"type=tar,dest={tmp_path}/o.tar", context).ok()
    assert (folder / "d/g").read_text() == "2" and not (folder / "d").is_symlink() and not os.listdir(outside)
    assert (folder / "f").stat().st_ino == (folder / "h").stat().st_ino and os.readlink(
        folder / "l"
    ) == "/etc"
    assert (folder / "d").stat().st_uid == os.getuid() and (folder / "f").stat().st_mode & 0o7777 == 0o755
    with tarfile.open(tmp_path / "o.tar") as packed:
        found = {member.name: member for member in packed.getmembers()}
    assert (found["d"].uid, found["d"].gid) == (5, 6) and found["h"].islnk() and found["h"].linkname == "f"
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" > o2.tar', "sh", *_command(pybuild), NONE, "-o", "type=tar,dest=-", context],
        env=pybuild.environment(), cwd=tmp_path, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and (tmp_path / "o2.tar").read_bytes() == (tmp_path / "o.tar").read_bytes()


def _command(pybuild: Pybuild) -> list[str]:
    from harness import PYBUILD

    return [PYBUILD]


@pytest.mark.parametrize("compression", ["gzip", "zstd", "uncompressed"])
def test_compression(pybuild: Pybuild, tmp_path: Path, compression: str) -> None:
    """New layers are as asked, those of the base as they are stored, but with force-compression."""
    context = pybuild.context(f"FROM busybox\nCOPY f /{compression}\n", FILES)
    media = {"gzip": "tar+gzip", "zstd": "tar+zstd", "uncompressed": "tar"}[compression]
    made = {}
    for force in ("false", "true"):
        archive = tmp_path / f"{force}.tar"
        output = f"type=oci,dest={archive},compression={compression},force-compression={force}"
        pybuild(NONE, "-o", output, context).ok()
        image = read_image(archive)
        made[force] = [str(layer["mediaType"]).rpartition(".v1.")[2] for layer in image.manifest["layers"]]
        assert image.read(compression) == b"1"
    assert made == {"false": [made["false"][0], media], "true": [media, media]}


def test_level_and_types(pybuild: Pybuild, tools: dict[str, str], tmp_path: Path) -> None:
    """A higher level is smaller; docker's media types are what skopeo takes for docker's."""
    words = [f"{number * number * 7919 % 100_003:x}" for number in range(2000)]
    data = " ".join(words[number * number % 1999] for number in range(200_000))
    context = pybuild.context("FROM scratch\nCOPY f /f\n", {"f": data})
    sizes = []
    for level in ("1", "19"):
        archive = tmp_path / f"{level}.tar"
        # One store keeps one form of each compression; each level is tried on its own.
        store = Pybuild(tmp_path / f"store{level}", tmp_path)
        store(NONE, "-o", f"type=oci,dest={archive},compression=zstd,compression-level={level}", context).ok()
        sizes.append(archive.stat().st_size)
    assert sizes[1] < sizes[0]
    archive = tmp_path / "docker.tar"
    pybuild(NONE, "-t", "types:1", "-o", f"type=oci,dest={archive},oci-mediatypes=false", context).ok()
    raw = json.loads(subprocess.check_output([tools["skopeo"], "inspect", "--raw", f"oci-archive:{archive}"]))
    assert raw["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    assert raw["layers"][0]["mediaType"].startswith("application/vnd.docker.image.rootfs.diff.tar")


def test_annotations_and_names(pybuild: Pybuild, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    output = f'type=oci,dest={archive},"name=x:1,y:2",annotation.org.a=b,annotation-manifest-descriptor.c=d'
    pybuild(NONE, "-t", "z", "-o", output, pybuild.context("FROM scratch\nCOPY f /f\n", FILES)).ok()
    image = read_image(archive)
    assert image.manifest["annotations"] == {"org.a": "b"}
    names = [item["annotations"]["io.containerd.image.name"] for item in image.index["manifests"]]
    assert names == ["docker.io/library/x:1", "docker.io/library/y:2"]
    assert {item["annotations"]["c"] for item in image.index["manifests"]} == {"d"}


def test_annotations_of_all_outputs(pybuild: Pybuild, tmp_path: Path) -> None:
    """--annotation, as docker has it; what an output says itself counts more."""
    one, two = tmp_path / "1.tar", tmp_path / "2.tar"
    context = pybuild.context("FROM scratch\nCOPY f /f\n", FILES)
    said = ("--annotation=org.a=b=c", "--annotation=manifest:d=e", "--annotation=manifest-descriptor:f=g")
    pybuild(*said, "-o", f"type=oci,dest={one}", "-o", f"type=oci,dest={two},annotation.d=own", context).ok()
    for archive, d in ((one, "e"), (two, "own")):
        image = read_image(archive)
        assert image.manifest["annotations"] == {"org.a": "b=c", "d": d}
        assert image.index["manifests"][0]["annotations"] == {"f": "g"}
    assert "add --push" in pybuild("--annotation=a=b", context).failed(2).err
    for odd in ("index:a=b", "=b", "manifest:=b", "other:a=b", "manifest[linux/arm64]:a=b", "a"):
        assert (
            "annotation"
            in pybuild(f"--annotation={odd}", "-o", f"type=oci,dest={one}", context).failed(2).err
        )


@pytest.mark.parametrize(
    "output",
    """
    type=oci type=x,dest=a type=oci,dest=a,compression=lzma type=oci,dest=a,compression-level=10
    type=oci,dest=a,compression-level=x type=oci,dest=a,what=ever type=oci,dest=a,force-compression=perhaps
    type=image,mode=copy type=local,dest=- type=oci,dest=a,annotation-index.a=b type=oci,dest=a,annotation.=b
    type=registry,name=X type=tar
    """.split(),
)
def test_output_that_makes_no_sense(pybuild: Pybuild, output: str) -> None:
    done = pybuild("-o", output, pybuild.context("FROM scratch\n"))
    assert done.code in (1, 2) and done.err.startswith("error: ") and "Traceback" not in done.err


# -- commands on images --------------------------------------------------------------------


def test_tag_inspect_history_rmi(fresh: Pybuild) -> None:
    context = fresh.context("FROM busybox\nCOPY f /f\nENV a=1\n", FILES)
    image = fresh(NONE, "-q", "-t", "one", context).ok().out.strip()
    fresh("tag", "one", "two:2").ok()
    fresh("tag", image[7:20], "three").ok()
    (value,) = json.loads(fresh("inspect", "two:2").ok().out)
    assert value["Id"] == image and set(value["RepoTags"]) == {"one:latest", "two:2", "three:latest"}
    assert "a=1" in value["Config"]["Env"]
    rows = json.loads(fresh("history", "--json", "one").ok().out)
    assert (
        rows[0]["CreatedBy"] == "ENV a=1" and rows[1]["CreatedBy"].startswith("COPY f /f") and rows[1]["Size"]
    )
    assert "ENV a=1" in fresh("history", "one").ok().out.split("\n")[0]
    assert fresh("rmi", "two:2").ok().out == "untagged two:2\n"
    assert sorted(fresh("rmi", image[7:20]).ok().out.split()) == sorted(
        ["untagged", "one:latest", "untagged", "three:latest"]
    )
    for missing in ("rmi", "inspect", "history", "push"):
        assert "there is no image" in fresh(missing, "two:2").failed().err
    fresh("tag", "busybox", "x@sha256:" + "0" * 64).failed(2)


def test_empty_tar(pybuild: Pybuild, tmp_path: Path) -> None:
    """An image without layers has no files."""
    archive = tmp_path / "e.tar"
    pybuild("-o", f"type=tar,dest={archive}", pybuild.context("FROM scratch\n")).ok()
    with tarfile.open(fileobj=io.BytesIO(archive.read_bytes())) as packed:
        assert packed.getnames() == []
