"""Images that others make, handed on in every way they know: loaded, pulled, and built upon.

Each way is a row of docs/interop.md: what made the image, and the commands that handed it on. The tree that
our build on top of it has is compared with the one that its maker shows, its config and history with what
skopeo reads of what was handed on.
"""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from daemons import LIMITS, Peers, peers
from harness import Pybuild, make_tree
from oci import read_image
from servers import registry
from trees import Node, difference, of_folder

from builder.oci.model import host

pytestmark = [pytest.mark.e2e, pytest.mark.interop]

PAGE = Path(__file__).resolve().parents[2] / "docs/interop.md"
NAME = "made:1"
OTHER = "linux/arm64" if str(host()) != "linux/arm64" else "linux/amd64"
CAPABILITY = bytes.fromhex("0100000280200000000000000000000000000000")

DOCKERFILE = """\
FROM docker.io/library/busybox:latest
ENV greeting=hello
ENV two="a b"
LABEL of="others" empty=""
ADD caps.tar /
COPY d /d
RUN mkdir /o && echo old > /o/x && ln /o/x /o/y && chmod 4755 /o/x && chown 5:6 /d/f
RUN rm -r /o && mkdir /o && echo new > /o/z && ln /o/z /o/y && rm /d/gone && chmod 1777 /o
EXPOSE 80
STOPSIGNAL SIGINT
USER 7:8
WORKDIR /d
CMD ["echo", "a b"]
"""
ON_TOP = """\
FROM {name}
RUN echo "$(id -u):$(id -g) $greeting $(cat /o/z f) $PWD" > /tmp/said
COPY more /more
"""
SETTINGS = {
    "Cmd": ["echo", "a b"],
    "User": "7:8",
    "WorkingDir": "/d",
    "Labels": {"of": "others", "empty": ""},
    "ExposedPorts": {"80/tcp": {}},
    "StopSignal": "SIGINT",
}


# What makes images: the peer, its words, and its environment.
MAKERS: dict[str, tuple[str, str, dict[str, str]]] = {
    "docker build": ("docker", "build -q --network=none", {"DOCKER_BUILDKIT": "0"}),
    "docker build, by BuildKit": ("docker", "build -q --network=none", {"DOCKER_BUILDKIT": "1"}),
    "podman build": ("podman", "build -q --network=host --isolation=chroot", {}),
    "podman build --format docker": (
        "podman",
        "build -q --network=host --isolation=chroot --format docker --layers",
        {},
    ),
    "buildah build": ("buildah", "build -q --network=host --isolation=chroot --layers", {}),
    "buildah build --format docker": (
        "buildah",
        "build -q --network=host --isolation=chroot --format docker",
        {},
    ),
}


@dataclass(frozen=True)
class Way:
    """How an image is handed on. ``place`` is where it then is, in skopeo's words.

    In both FILE, FOLDER and REF are where it goes, IMAGE is what its maker calls it, and FROM is an archive
    by docker save.
    """

    maker: str
    commands: str
    place: str

    @property
    def taken(self) -> str:
        """What of ours takes it from there, as the page has it."""
        kind = self.place.partition(":")[0]
        return {"docker": "`pybuild pull`", "oci": "`--build-context x=oci-layout://`"}.get(
            kind, "`pybuild load`"
        )


WAYS = [
    Way("docker build", "docker save -o FILE IMAGE", "docker-archive:FILE"),
    Way("docker build", "docker tag IMAGE REF && docker push -q REF", "docker://REF"),
    Way("docker build, by BuildKit", "docker save -o FILE IMAGE", "docker-archive:FILE"),
    Way("docker build, by BuildKit", "docker tag IMAGE REF && docker push -q REF", "docker://REF"),
    Way("podman build", "podman save -q --format docker-archive -o FILE IMAGE", "docker-archive:FILE"),
    Way("podman build", "podman save -q --format oci-archive -o FILE IMAGE", "oci-archive:FILE"),
    Way("podman build", "podman save -q --format oci-dir -o FOLDER IMAGE", "oci:FOLDER"),
    Way("podman build", "podman push -q IMAGE REF", "docker://REF"),
    Way("podman build", "podman push -q --compression-format zstd IMAGE REF", "docker://REF"),
    Way("podman build", "podman push -q --compression-format zstd:chunked IMAGE REF", "docker://REF"),
    Way("podman build --format docker", "podman save -q -o FILE IMAGE", "docker-archive:FILE"),
    Way("podman build --format docker", "podman push -q IMAGE REF", "docker://REF"),
    Way("buildah build", "buildah push -q IMAGE docker-archive:FILE:made:1", "docker-archive:FILE"),
    Way("buildah build", "buildah push -q IMAGE oci-archive:FILE:made:1", "oci-archive:FILE"),
    Way("buildah build", "buildah push -q IMAGE oci:FOLDER:1", "oci:FOLDER:1"),
    Way("buildah build", "buildah push -q IMAGE docker://REF", "docker://REF"),
    Way("buildah build --format docker", "buildah push -q IMAGE docker://REF", "docker://REF"),
    Way("docker build", "skopeo copy -q docker-archive:FROM docker-archive:FILE:made:1", "docker-archive:FILE"),
    Way("docker build", "skopeo copy -q docker-archive:FROM oci-archive:FILE:made:1", "oci-archive:FILE"),
    Way("docker build", "skopeo copy -q docker-archive:FROM oci:FOLDER:1", "oci:FOLDER:1"),
    Way("docker build", "skopeo copy -q --dest-compress-format zstd docker-archive:FROM oci:FOLDER", "oci:FOLDER"),
    Way(
        "docker build",
        "skopeo copy -q docker-archive:FROM dir:FOLDER && skopeo copy -q dir:FOLDER oci-archive:FILE:made:1",
        "oci-archive:FILE",
    ),
    Way("docker build", "skopeo copy -q docker-archive:FROM docker://REF", "docker://REF"),
    Way("docker build", "skopeo copy -q --format oci --dest-compress-format zstd docker-archive:FROM docker://REF", "docker://REF"),
    Way("docker build", "ctr images import FROM && ctr images export FILE docker.io/library/made:1", "oci-archive:FILE"),
]  # fmt: skip


class Makers:
    """The images of all makers, each made once; their trees, and docker's as an archive."""

    def __init__(self, found: Peers, busybox: Path, context: Path) -> None:
        self.peers = found
        self._busybox = busybox
        self._context = context
        self._made: dict[str, tuple[str, dict[str, Node]]] = {}

    def image(self, maker: str) -> tuple[str, dict[str, Node]]:
        """What the image is called, and its tree."""
        if maker not in self._made:
            name, words, env = MAKERS[maker]
            peer = self.peers[name]
            if name == "buildah":
                peer("pull", "-q", f"oci-archive:{self._busybox}")
            else:
                peer.take(str(self._busybox))
            image = f"made{len(self._made)}:1"
            peer(*words.split(), "-t", image, self._context, **env)
            if name == "buildah":
                image = "localhost/" + image
                container = peer("from", "-q", image).strip()
                with peer.root(container) as root:
                    self._made[maker] = image, of_folder(root)
            else:
                with peer.root(image) as root:
                    self._made[maker] = image, of_folder(root)
        return self._made[maker]

    def archive(self) -> Path:
        """What docker save writes."""
        file = self._context.parent / "from.tar"
        if not file.exists():
            image, _ = self.image("docker build")
            self.peers["docker"]("tag", image, NAME)
            self.peers["docker"]("save", "-o", file, NAME)
        return file


@pytest.fixture(scope="module")
def makers(
    tools: dict[str, str], busybox: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Makers]:
    context = make_tree(
        tmp_path_factory.mktemp("makers") / "context", {"d": {"f": "five", "gone": "x", "l": "-> f", "ä": ""}}
    )
    (context / "Dockerfile").write_text(DOCKERFILE)
    with tarfile.open(context / "caps.tar", "w") as tar:
        item = tarfile.TarInfo("caps/ping")
        item.mode = 0o755
        item.pax_headers = {"SCHILY.xattr.security.capability": CAPABILITY.decode("utf-8", "surrogateescape")}
        tar.addfile(item)
        item = tarfile.TarInfo("caps/null")
        item.type, item.mode, item.devmajor, item.devminor = tarfile.CHRTYPE, 0o666, 1, 3
        tar.addfile(item)
    with peers(tools) as found:
        yield Makers(found, busybox, context)


@pytest.fixture(scope="module")
def server(tools: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registry(tools["docker-registry"], tmp_path_factory.mktemp("registry")) as host_and_port:
        yield host_and_port


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.maker}: {way.commands}")
def test_way(makers: Makers, server: str, tmp_path: Path, way: Way) -> None:
    image, tree = makers.image(way.maker)
    number = WAYS.index(way)
    places = {
        "FILE": str(tmp_path / "handed.tar"),
        "FOLDER": str(tmp_path / "handed"),
        "REF": f"{server}/team/image{number}:1",
        "FROM": str(makers.archive()) if "FROM" in way.commands else "",
        "IMAGE": image,
    }
    for command in way.commands.split(" && "):
        run_command(makers.peers, filled(command, places))
    place = filled(way.place, places)
    source = config_at(makers, place)
    check_on_top(Pybuild(tmp_path / "store", tmp_path), place, source, tree)


def filled(text: str, places: dict[str, str]) -> str:
    for word, value in places.items():
        text = text.replace(word, value)
    return text


def run_command(found: Peers, command: str) -> None:
    """Run a command by the peer that it names; over HTTP, which the page leaves out."""
    program, *words = command.split()
    if "team/image" in command and program != "docker":
        words.insert(1, "--dest-tls-verify=false" if program == "skopeo" else "--tls-verify=false")
    found["containerd" if program == "ctr" else program](*words)


def config_at(makers: Makers, place: str) -> dict[str, Any]:
    """The config that was handed on, as it is there."""
    tls = ["--tls-verify=false"] if place.startswith("docker://") else []
    config: dict[str, Any] = json.loads(makers.peers["skopeo"]("inspect", "--config", "--raw", *tls, place))
    return config


def check_on_top(ours: Pybuild, place: str, source: dict[str, Any], tree: dict[str, Node]) -> None:
    """Take the image in, build on it, and compare all of it."""
    kind, _, where = place.partition(":")
    options = ["--network=none"]
    if kind == "docker":
        name = where[2:]
        ours("pull", name).ok()
    elif kind == "oci":
        name = "base"
        options.append(f"--build-context=base=oci-layout://{where}")
    else:
        name = ours("load", where).ok().out.split()[-1]
    context = ours.context(ON_TOP.format(name=name), {"more": {"a": "ours"}})
    ours(*options, "-o", "type=tar,dest=root.tar", "-o", "type=oci,dest=image.tar", context).ok()

    found = root_of(ours.work / "root.tar")
    assert found.pop("tmp/said").data == b"7:8 hello new\nfive /d\n"
    assert (found.pop("more").kind, found.pop("more/a").data) == ("folder", b"ours")
    assert not [line for line in difference(found, tree) if not line.startswith("'tmp'")]
    assert found["caps/ping"].xattrs == (("security.capability", CAPABILITY),)
    assert (found["caps/null"].kind, found["caps/null"].data) == ("characters", b"1:3")
    assert found["o/y"].names == ("o/y", "o/z") and found["d/f"].owner == (5, 6)

    image = read_image(ours.work / "image.tar")
    assert {key: image.settings[key] for key in SETTINGS} == {key: source["config"][key] for key in SETTINGS}
    image.settings["Labels"].pop("io.buildah.version", None)
    assert {key: image.settings.get(key) for key in SETTINGS} == SETTINGS
    assert (image.env["greeting"], image.env["two"]) == ("hello", "a b")
    layers = source["rootfs"]["diff_ids"]
    assert image.config["rootfs"]["diff_ids"][: len(layers)] == layers
    assert history(image.config)[:-2] == history(source)
    assert [line[0].partition(" ")[0] for line in history(image.config)[-2:]] == ["RUN", "COPY"]


def root_of(archive: Path) -> dict[str, Node]:
    folder = archive.with_suffix("")
    folder.mkdir()
    options = ["--numeric-owner", "--xattrs", "--xattrs-include=*"]
    subprocess.run(["tar", *options, "-xpf", archive, "-C", folder], check=True)
    return of_folder(folder)


def history(config: dict[str, Any]) -> list[tuple[str, str, bool]]:
    return [
        (line.get("created_by", ""), line.get("comment", ""), line.get("empty_layer", False))
        for line in config["history"]
    ]


# -- what else there is to take ------------------------------------------------------------


def test_several(makers: Makers, tmp_path: Path) -> None:
    """Archives of several images, of one with several names, of one with none; compressed ones."""
    ours, docker = Pybuild(tmp_path / "store", tmp_path), makers.peers["docker"]
    names = [makers.image(maker)[0] for maker in ("docker build", "docker build, by BuildKit")]
    docker("tag", names[0], "second.example/a/b:2")
    docker("save", "-o", tmp_path / "many.tar", *names, "second.example/a/b:2")
    subprocess.run(["gzip", "-k", tmp_path / "many.tar"], check=True)
    for archive in ("many.tar", "many.tar.gz"):
        said = ours("load", tmp_path / archive).ok().out
        assert all(name in said for name in (*names, "second.example/a/b:2"))
    docker("save", "-o", tmp_path / "nameless.tar", docker("image", "ls", "-q", names[0]).strip())
    assert "sha256:" in ours("load", tmp_path / "nameless.tar").ok().out
    name = makers.image("podman build")[0]
    makers.peers["podman"](
        "save", "-q", "-m", "-o", tmp_path / "p.tar", name, "docker.io/library/busybox:latest"
    )
    said = ours("load", tmp_path / "p.tar").ok().out
    assert f"localhost/{name}" in said and "busybox" in said


@pytest.mark.parametrize("peer", ["podman", "buildah"])
def test_list(makers: Makers, server: str, tmp_path: Path, peer: str) -> None:
    """An index that others put together: the image for this machine is taken."""
    maker = makers.peers[peer]
    for where in (str(host()), OTHER):
        context = make_tree(tmp_path / where.replace("/", "-"), {"f": where})
        (context / "Dockerfile").write_text("FROM scratch\nCOPY f /f\n")
        maker("build", "-q", "--platform", where, "--manifest", f"{peer}-list:1", context)
    reference = f"{server}/team/{peer}-list:1"
    maker("manifest", "push", "-q", "--all", "--tls-verify=false", f"{peer}-list:1", f"docker://{reference}")
    maker("manifest", "push", "-q", "--all", f"{peer}-list:1", f"oci-archive:{tmp_path}/list.tar:{reference}")
    for way in (["pull", reference], ["load", tmp_path / "list.tar"]):
        ours = Pybuild(tmp_path / f"store-{way[0]}", tmp_path)
        ours(*way).ok()
        assert ours.build(f"FROM {reference}\nLABEL a=b\n").read("f") == str(host()).encode()
    ours = Pybuild(tmp_path / "store-other", tmp_path)
    image = ours.build(f"FROM --platform={OTHER} {reference}\nLABEL a=b\n")
    assert image.read("f") == OTHER.encode() and image.config["architecture"] == OTHER.split("/")[1]


def test_settings_of_docker(makers: Makers, tmp_path: Path) -> None:
    """What only docker's format has: HEALTHCHECK, SHELL, and ONBUILD, which the next build does."""
    makers.image("docker build")
    text = (
        'FROM busybox\nVOLUME /v\nHEALTHCHECK --interval=7s CMD true\nSHELL ["/bin/sh", "-ec"]\n'
        "ONBUILD RUN echo built > /built\n"
    )
    docker = makers.peers["docker"]
    (make_tree(tmp_path / "theirs", {}) / "Dockerfile").write_text(text)
    docker("build", "-q", "-t", "settings:1", tmp_path / "theirs", DOCKER_BUILDKIT="0")
    docker("save", "-o", tmp_path / "s.tar", "settings:1")
    ours = Pybuild(tmp_path / "store", tmp_path)
    ours("load", tmp_path / "s.tar").ok()
    image = ours.build("FROM settings:1\n", None, "--network=none")
    assert image.read("built") == b"built\n" and not image.settings.get("OnBuild")
    assert image.settings["Healthcheck"] == {"Test": ["CMD-SHELL", "true"], "Interval": 7 * 10**9}
    assert image.settings["Shell"] == ["/bin/sh", "-ec"] and image.settings["Volumes"] == {"/v": {}}


def test_export(makers: Makers, tmp_path: Path) -> None:
    """The tar of a container's root, by docker export and podman export, is a base."""
    for name in ("docker", "podman"):
        peer, (image, _) = makers.peers[name], makers.image(f"{name} build")
        container = peer("create", "--network=none", *LIMITS, image)
        peer("export", "-o", tmp_path / f"{name}.tar", container.strip())
        peer("rm", container.strip())
        ours = Pybuild(tmp_path / name, tmp_path)
        ours("import", tmp_path / f"{name}.tar", "root:1").ok()
        built = ours.build("FROM root:1\nRUN cat /o/z > /tmp/said\n", None, "--network=none")
        assert built.read("tmp/said") == b"new\n"
        assert {"= o/y", "= o/z"} & {built.tree()["o/y"], built.tree()["o/z"]}


def table() -> str:
    """What docs/interop.md says of the ways."""
    lines = ["| made by | handed on by | taken by |", "| --- | --- | --- |"]
    lines += [f"| `{way.maker}` | `{way.commands}` | {way.taken} |" for way in WAYS]
    return "\n".join(lines) + "\n"


def test_page() -> None:
    """The page has this table. UPDATE_INTEROP=1 writes it anew."""
    head, mark, rest = PAGE.read_text().partition("<!-- in -->\n")
    _, end, tail = rest.partition("<!-- end -->\n")
    page = f"{head}{mark}{table()}{end}{tail}"
    if os.environ.get("UPDATE_INTEROP"):
        PAGE.write_text(page)
    assert PAGE.read_text() == page
