"""--platform: images for other machines, and several in one."""

from __future__ import annotations

import json
import platform as machine
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import PROCESS, Pybuild, Tree
from servers import registry

from builder.oci.model import host

pytestmark = pytest.mark.e2e

NONE = "--network=none"
OTHER = "linux/arm64" if str(host()) != "linux/arm64" else "linux/amd64"
ARCH = OTHER.split("/")[1]
BOTH = f"--platform={host()},{OTHER}"
ELF_MACHINE = {"arm64": 183, "amd64": 62}[ARCH]
TEXT = """\
FROM --platform=$BUILDPLATFORM busybox AS build
ARG TARGETARCH TARGETPLATFORM BUILDPLATFORM
RUN echo "$TARGETPLATFORM by $BUILDPLATFORM on $(uname -m)" > /made
FROM scratch
ARG TARGETARCH
COPY --from=build /made /made
COPY bin-$TARGETARCH /bin
ENV ARCH=$TARGETARCH
"""
FILES: Tree = {f"bin-{host().architecture}": "ours", f"bin-{ARCH}": "theirs"}


@pytest.fixture
def server(tools: dict[str, str], tmp_path: Path) -> Iterator[str]:
    with registry(tools["docker-registry"], tmp_path) as host_and_port:
        yield host_and_port


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        files = ((member.name, tar.extractfile(member)) for member in tar if member.isfile())
        return {name: file.read() for name, file in files if file is not None}


def blob(files: dict[str, bytes], digest: str) -> dict[str, object]:
    value: dict[str, object] = json.loads(files["blobs/sha256/" + digest[7:]])
    return value


def layer_text(files: dict[str, bytes], manifest: dict[str, object], number: int) -> str:
    import gzip

    layers = json.loads(json.dumps(manifest["layers"]))
    return gzip.decompress(files["blobs/sha256/" + layers[number]["digest"][7:]]).decode("latin-1")


def test_index(pybuild: Pybuild, tools: dict[str, str], tmp_path: Path) -> None:
    """One index, an image for each, cross-made without running anything foreign; skopeo reads it."""
    archive = tmp_path / "both.tar"
    context = pybuild.context(TEXT, FILES)
    done = pybuild(NONE, BOTH, "-t", "both", "-o", f"type=oci,dest={archive}", context).ok()
    assert f"[{OTHER} build 2/2]" in done.err
    files = members(archive)
    (top,) = json.loads(files["index.json"])["manifests"]
    assert top["mediaType"] == "application/vnd.oci.image.index.v1+json" and "platform" not in top
    found = {}
    for item in json.loads(json.dumps(blob(files, top["digest"])["manifests"])):
        manifest = blob(files, item["digest"])
        config = blob(files, json.loads(json.dumps(manifest["config"]))["digest"])
        assert config["architecture"] == item["platform"]["architecture"]
        found[item["platform"]["architecture"]] = layer_text(files, manifest, 0) + layer_text(
            files, manifest, 1
        )
    assert set(found) == {host().architecture, ARCH}
    assert f"{OTHER} by {host()} on {machine.machine()}" in found[ARCH] and "theirs" in found[ARCH]
    assert f"{host()} by {host()}" in found[host().architecture] and "ours" in found[host().architecture]
    layout = tmp_path / "layout"
    subprocess.run(
        [tools["skopeo"], "copy", "--all", f"oci-archive:{archive}", f"oci:{layout}:x"], check=True, capture_output=True
    )  # fmt: skip
    assert len(json.loads((layout / "index.json").read_text())["manifests"]) == 1
    assert pybuild("inspect", "both").ok().out.count(host().architecture) >= 1


def test_same_again(pybuild: Pybuild, tmp_path: Path) -> None:
    """Cached, and byte for byte the same; the one for this machine is the one a build for it alone gives."""
    context = pybuild.context(TEXT, FILES)
    for number in (1, 2):
        done = pybuild(NONE, BOTH, "-o", f"type=oci,dest={tmp_path}/{number}.tar", context).ok()
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()
    assert f"image {pybuild(NONE, '-q', context).ok().out.strip()} for {host()}\n" in done.err


def test_one_other(pybuild: Pybuild) -> None:
    context = pybuild.context(TEXT, FILES)
    image = pybuild.export(context, NONE, f"--platform={OTHER}")
    assert image.config["architecture"] == ARCH and image.read("bin") == b"theirs"
    assert f"ARCH={ARCH}" in image.config["config"]["Env"]


def test_registry(pybuild: Pybuild, fresh: Pybuild, server: str, tools: dict[str, str]) -> None:
    """Pushed as one name; each platform finds its own, in FROM too, and from one store to another."""
    name = f"{server}/both:1"
    pybuild(NONE, BOTH, "--push", "-t", name, pybuild.context(TEXT, FILES)).ok()
    raw = subprocess.check_output(
        [tools["skopeo"], "inspect", "--raw", "--tls-verify=false", f"docker://{name}"], text=True
    )
    assert len(json.loads(raw)["manifests"]) == 2
    for made in (pybuild, fresh):
        for wanted, content in ((str(host()), b"ours"), (OTHER, b"theirs")):
            context = made.context(f"FROM --platform={wanted} {name}\nLABEL a=b\n")
            image = made.export(context, NONE)
            assert image.read("bin") == content and image.config["architecture"] == wanted.split("/")[1]
    child = fresh.context(f"FROM {name}\nLABEL c=d\n")
    assert fresh.export(child, NONE, f"--platform={OTHER}").read("bin") == b"theirs"


def test_folders(pybuild: Pybuild, tmp_path: Path) -> None:
    context, dest = pybuild.context(TEXT, FILES), tmp_path / "out"
    pybuild(NONE, BOTH, "-o", f"type=local,dest={dest}", context).ok()
    assert (dest / f"linux_{ARCH}/bin").read_text() == "theirs"
    assert (dest / str(host()).replace("/", "_") / "bin").read_text() == "ours"
    pybuild(NONE, BOTH, "-o", f"type=tar,dest={tmp_path}/x.tar", context).ok()
    with tarfile.open(tmp_path / "x.tar") as tar:
        there = {entry.name for entry in tar if entry.isfile()}
    ours = str(host()).replace("/", "_")
    assert there == {f"{name}/{file}" for name in (ours, f"linux_{ARCH}") for file in ("made", "bin")}
    said = pybuild(NONE, BOTH, "-o", f"type=docker,dest={tmp_path}/y.tar", context).failed().err
    assert "holds one platform" in said


def test_shared_cache(pybuild: Pybuild, fresh: Pybuild, tmp_path: Path) -> None:
    """What is made for one platform is cached apart from what is made for another."""
    context, cache = pybuild.context(TEXT, FILES), tmp_path / "cache"
    pybuild(NONE, BOTH, f"--cache-to=type=local,dest={cache},mode=max", context).ok()
    assert fresh(NONE, BOTH, f"--cache-from=type=local,src={cache}", context).ok().executed == 0


def test_loaded(pybuild: Pybuild, fresh: Pybuild, tmp_path: Path) -> None:
    """An archive of several platforms, or of another, is loaded whole; a layout gives what is asked for."""
    archive, layout = tmp_path / "both.tar", tmp_path / "layout"
    pybuild(NONE, BOTH, "-t", "many:1", "-o", f"type=oci,dest={archive}", pybuild.context(TEXT, FILES)).ok()
    assert fresh("load", archive).ok().out == "loaded docker.io/library/many:1\n"
    child = fresh.context("FROM many:1\nLABEL a=b\n")
    for platform, content in ((str(host()), b"ours"), (OTHER, b"theirs")):
        image = fresh.export(child, NONE, f"--platform={platform}", "--pull=never")
        assert image.read("bin") == content and image.config["architecture"] == platform.split("/")[1]
    with tarfile.open(archive) as tar:
        tar.extractall(layout, filter="data")
    child = fresh.context("FROM base\nLABEL a=b\n")
    for platform, content in ((str(host()), b"ours"), (OTHER, b"theirs")):
        named = f"--build-context=base=oci-layout://{layout}:1"
        assert fresh.export(child, NONE, named, f"--platform={platform}").read("bin") == content
    pybuild(
        NONE,
        f"--platform={OTHER}",
        "-t",
        "one:1",
        "-o",
        f"type=oci,dest={archive}",
        pybuild.context(TEXT, FILES),
    ).ok()
    fresh("load", archive).ok()
    assert fresh("inspect", "--format={{.Architecture}}", "one:1").ok().out == f"{ARCH}\n"


def test_lost_caches(pybuild: Pybuild, fresh: Pybuild, tmp_path: Path, server: str) -> None:
    """A cache whose layers are gone: every platform is built anew, on the bases that were left in their registry."""
    base = f"{server}/base:1"
    files = {"arch-" + name: name for name in (host().architecture, ARCH)}
    text = "FROM scratch\nARG TARGETARCH\nCOPY arch-$TARGETARCH /arch\n"
    pybuild(NONE, BOTH, "--push", "-t", base, pybuild.context(text, files)).ok()
    text = f"FROM {base} AS x\nFROM scratch\nARG TARGETARCH\nCOPY --from=x / /all\nCOPY f /f-$TARGETARCH\n"
    context, cache = pybuild.context(text, {"f": "1"}), tmp_path / "cache"
    reverse = f"--platform={OTHER},{host()}"
    pybuild(NONE, reverse, f"--cache-to=type=local,dest={cache},mode=max", context).ok()
    manifest = json.loads((cache / "index.json").read_text())["manifests"][0]["digest"]
    for layer in json.loads((cache / "blobs/sha256" / manifest[7:]).read_text())["layers"]:
        (cache / "blobs/sha256" / layer["digest"][7:]).unlink()
    fresh(NONE, fresh.context("FROM busybox\nRUN echo other > /x\n", name="unrelated")).ok()
    dest = tmp_path / "out"
    done = fresh(
        NONE, reverse, f"--cache-from=type=local,src={cache}", "-o", f"type=local,dest={dest}", context
    ).ok()
    assert "building without the caches" in done.err
    for name in (host().architecture, ARCH):
        found = {
            str(path.relative_to(dest / f"linux_{name}")) for path in (dest / f"linux_{name}").rglob("*")
        }
        assert found == {"all", "all/arch", f"f-{name}"}


def test_inline_cache(pybuild: Pybuild, fresh: Pybuild, server: str) -> None:
    """Of an image for several platforms, each image has its own."""
    context, name = (
        pybuild.context("FROM scratch\nARG TARGETARCH\nCOPY bin-$TARGETARCH /bin\n", FILES),
        f"{server}/inl:1",
    )
    pybuild(NONE, BOTH, "--cache-to=type=inline", "--push", "-t", name, context).ok()
    assert fresh(NONE, BOTH, "--cache-from", name, context).ok().executed == 0


def test_pull_for_another(pybuild: Pybuild, fresh: Pybuild, server: str) -> None:
    """Pulled ahead, it is there for FROM when the registry is not asked."""
    name = f"{server}/both:2"
    pybuild(NONE, BOTH, "--push", "-t", name, pybuild.context(TEXT, FILES)).ok()
    fresh("pull", "--platform", OTHER, name).ok()
    context = fresh.context(f"FROM --platform={OTHER} {name}\nLABEL a=b\n")
    assert fresh.export(context, NONE, "--pull=never").read("bin") == b"theirs"
    assert "--platform" in fresh("pull", "--platform=a b", name).failed(2).err


def test_base_for_another(pybuild: Pybuild, tmp_path: Path) -> None:
    """T93: the image is for what was asked, whatever its base is for; without that for what its base is.

    The one image that a layout has is meant, whatever it is for.
    """
    layout = tmp_path / "layout"
    layout.mkdir()
    pybuild(NONE, f"--platform={OTHER}", "-t", "latest", "-o", f"type=oci,tar=false,dest={layout}",
            pybuild.context("FROM scratch\nCOPY a /\n", {"a": "1"})).ok()  # fmt: skip
    context = pybuild.context("FROM q\nARG TARGETARCH\nENV A=$TARGETARCH\n")
    given = (NONE, f"--build-context=q=oci-layout://{layout}")
    image = pybuild.export(context, *given)
    assert (
        image.config["architecture"] == ARCH and f"A={host().architecture}" in image.config["config"]["Env"]
    )
    image = pybuild.export(context, *given, "--platform=linux/s390x")
    assert image.config["architecture"] == "s390x" and image.read("a") == b"1"
    context = pybuild.context(f"FROM --platform={host()} busybox\nLABEL a=b\n")
    image = pybuild.export(context, NONE, f"--platform={OTHER}")
    assert image.config["architecture"] == ARCH


# -- programs of other machines ------------------------------------------------------------


def foreign_program() -> bytes:
    """The header of a program for the other machine, which is all that the kernel looks at."""
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    return head + (2).to_bytes(2, "little") + ELF_MACHINE.to_bytes(2, "little") + bytes(200)


@pytest.fixture(params=["F"])
def emulator(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """What says of such programs that it ran them, registered with the kernel as qemu is."""
    place = Path("/proc/sys/fs/binfmt_misc")
    mounted = not (place / "register").exists()
    if mounted:
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", place], check=True)
    source, program = tmp_path / "emulator.c", tmp_path / "emulator"
    source.write_text(
        '#include <stdio.h>\nint main(int n, char **a) { printf("emulated %s %s\\n", a[1], n > 2 ? a[2] : ""); }\n'
    )
    subprocess.run(["gcc", "-static", "-o", program, source], check=True)
    name = f"pybuild-test-{PROCESS}"
    magic = "".join(f"\\x{byte:02x}" for byte in foreign_program()[:20])
    mask = "\\xff" * 20
    (place / "register").write_text(f":{name}:M::{magic}:{mask}:{program}:{request.param}")
    program.unlink()  # the kernel holds it, as the F says
    try:
        yield
    finally:
        (place / name).write_text("-1")
        if mounted:
            subprocess.run(["umount", place], check=True)


FOREIGN = 'FROM scratch\nCOPY sh /bin/sh\nRUN one two\nRUN ["/bin/sh", "x"]\n'


def test_emulated(pybuild: Pybuild, emulator: None) -> None:
    """Steps run through what is registered with the kernel."""
    context = pybuild.context(FOREIGN, {"sh": foreign_program()})
    (context / "sh").chmod(0o755)
    done = pybuild(NONE, f"--platform={OTHER}", "--no-cache", context).ok()
    assert "emulated /bin/sh -c" in done.err and "emulated /bin/sh x" in done.err


@pytest.mark.parametrize("emulator", [""], indirect=True)
def test_emulator_that_the_kernel_does_not_hold(pybuild: Pybuild, emulator: None) -> None:
    """Registered without F, it is looked for in the image: that is said."""
    context = pybuild.context(FOREIGN, {"sh": foreign_program()})
    (context / "sh").chmod(0o755)
    said = pybuild(NONE, f"--platform={OTHER}", "--no-cache", context).failed().err
    assert "with the F flag" in said and "looks for qemu in the image" in said and "Dockerfile:3" in said


def test_not_emulated(pybuild: Pybuild) -> None:
    """Where nothing is, it is said what to do."""
    context = pybuild.context(FOREIGN, {"sh": foreign_program()})
    (context / "sh").chmod(0o755)
    said = pybuild(NONE, f"--platform={OTHER}", "--no-cache", context).failed().err
    assert (
        f"register qemu for {ARCH}, whose programs" in said
        and "qemu-user-static" in said
        and "Dockerfile:3" in said
    )


def test_local_is_this_machine(pybuild: Pybuild) -> None:
    image = pybuild.export(pybuild.context("FROM scratch\nLABEL a=b\n"), "--platform=local")
    assert image.config["architecture"] == str(host()).split("/")[1]


@pytest.mark.parametrize("word", ["armv7", "amd65", "ubuntu", "v7"])
def test_unknown_word(pybuild: Pybuild, word: str) -> None:
    """A word alone has to be a system or an architecture; in a pair anything goes, and is doubted."""
    context = pybuild.context("FROM scratch\nLABEL a=b\n")
    said = pybuild(f"--platform={word}", context).failed(2).err
    assert f'--platform: "{word}": unknown operating system or architecture' in said
    said = pybuild.refuse(f"FROM --platform={word} scratch\n")
    assert "unknown operating system or architecture" in said and "Dockerfile:1" in said


def test_index_of_one_is_said_to_be_none(pybuild: Pybuild) -> None:
    context = pybuild.context("FROM scratch\nLABEL a=b\n")
    assert "has no effect" in pybuild("--build-arg=BUILDKIT_MULTI_PLATFORM=1", context).ok().err
    assert "has no effect" not in pybuild("--build-arg=BUILDKIT_MULTI_PLATFORM=0", context).ok().err


def test_doubtful_platform(pybuild: Pybuild) -> None:
    context = pybuild.context("FROM scratch\nLABEL a=b\n")
    said = pybuild("--platform=linux/amd65", context).ok().err
    assert "linux/amd65: no architecture is known by the name amd65 (did you mean amd64?)" in said
    said = pybuild(NONE, pybuild.context("FROM --platform=linus/amd64 busybox\nLABEL a=b\n")).ok().err
    assert "no system is known by the name linus (did you mean linux?)" in said


def test_platform_that_is_none(pybuild: Pybuild) -> None:
    assert "--platform" in pybuild("--platform=linux/a b", pybuild.context("FROM scratch\n")).failed(2).err
    assert "--platform" in pybuild("--platform=a/b/c/d", pybuild.context("FROM scratch\n")).failed(2).err


@pytest.mark.parametrize("way", ["tag", "build", "rmi"])
def test_moved_name_moves_for_every_platform(pybuild: Pybuild, way: str) -> None:
    """What a name meant for another platform is forgotten with what it meant here."""
    name = "127.0.0.1:1/moved"  # no registry
    text = "FROM scratch\nARG TARGETARCH\nCOPY bin-$TARGETARCH /bin\n"
    user = pybuild.context(f"FROM {name}\n", name="user")
    old = pybuild.context(text, FILES, "old")
    new = pybuild.context("FROM scratch\nCOPY f /bin\n", {"f": "new"}, "new")
    pybuild(BOTH, "-t", name, old).ok()
    assert pybuild.export(user, f"--platform={OTHER}").tree()["bin"] == "theirs"
    if way == "rmi":
        pybuild("rmi", name).ok()
        assert "could not be reached" in pybuild(f"--platform={OTHER}", user).failed().err
        return
    if way == "tag":
        pybuild("-t", "new", new).ok()
        pybuild("tag", "new", name).ok()
    else:
        pybuild("-t", name, new).ok()
    for _ in range(2):
        assert pybuild.export(user, f"--platform={OTHER}").tree()["bin"] == "new"
    pybuild("-t", name, pybuild.context("FROM scratch\nCOPY f /bin\n", {"f": "newer"}, "newer")).ok()
    assert pybuild.export(user, f"--platform={OTHER}").tree()["bin"] == "newer"


def test_check_of_a_base_for_another_platform(pybuild: Pybuild) -> None:
    """Where the store has an image for this machine alone, a check finds what a build warns of."""
    name = "127.0.0.1:1/ours"  # no registry
    pybuild("-t", name, pybuild.context("FROM scratch\nCOPY a /\n", {"a": "1"})).ok()
    done = pybuild("--check", pybuild.context(f"ARG P={OTHER}\nFROM --platform=$P {name}\n"))
    assert "WARNING: InvalidBaseImagePlatform" in done.out and done.code == 1, done.err
