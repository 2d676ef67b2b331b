"""What other tools make of our images. docs/interop.md is the table of these cells, and says how to do each.

Each cell takes an image in one form to one reader: the tree is compared down to owners, times, xattrs and
hard links, and the image is run. A cell that is "no" has to fail, with the words given in ``REASONS``.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from daemons import Peers, Refused, Words, is_archive, peers, versions
from harness import PYBUILD, Pybuild, make_tree
from schemas import INDEXES, MANIFESTS, Checker
from servers import registry
from trees import Node, difference, of_folder, of_image

from builder.oci.model import host

pytestmark = [pytest.mark.e2e, pytest.mark.interop]

PAGE = Path(__file__).resolve().parents[2] / "docs/interop.md"
ONE, MANY = "interop:1", "many:1"
NONE = "--network=none"
OTHER = "linux/arm64" if str(host()) != "linux/arm64" else "linux/amd64"
PLATFORMS = f"--platform={host()},{OTHER}"
CAPABILITY = bytes.fromhex("0100000280200000000000000000000000000000")  # cap_setuid, cap_net_raw
COLOUR = b"gr\xfcn = \n\0"  # a value like any other
LONG = "long/" + "/".join(["n" * 120] * 3)

DOCKERFILE = """\
FROM busybox
ENV greeting=hello
COPY --chown=5:6 d /d
ADD caps.tar /
RUN mkdir /o /swap && echo old > /o/x && ln /o/x /o/y && chmod 4755 /o/x && echo 1 > /swap/file && mkdir /swap/folder
RUN rm -r /o /swap/* && mkdir /o /swap/file && echo new > /o/z && ln /o/z /o/y && ln /o/z /o/w && ln -s /o /swap/folder && rm /d/gone
RUN cp /bin/busybox /d/suid && chmod 6755 /d/suid && chmod 2775 /d && chmod 1777 /o && : > /d/empty && ln /o/z /d/three \\
 && ln -s ../nowhere "/d/ü 日" && mkdir -m 700 /d/private && chown 70000:70001 /d/private && mkfifo /d/pipe \\
 && mkdir /odd && touch /odd/$(printf 'a\\377') && ln -s x /odd/l && ln /odd/l /odd/m && touch /odd/.wh /odd/wh. && ln /d/pipe /odd
WORKDIR /d
LABEL of=pybuild
CMD ["sh", "-c", "echo $greeting; cat /o/* f; ls -ln f | awk '{print $3, $4}'; ls -d s*; ls /o /swap"]
"""
SAYS = "hello new new new five 5 6 suid /o: w y z /swap: file folder".split()

TWO_PLATFORMS = """\
FROM --platform=$BUILDPLATFORM busybox AS build
FROM scratch
ARG TARGETARCH
COPY --from=build / /
COPY d /d
ENV ARCH=$TARGETARCH
CMD ["sh", "-c", "echo for $ARCH; cat /d/f"]
"""
SAYS_FOR = f"for {host().architecture} five".split()

ARCHIVES = {
    "`type=oci`": "oci",
    "`type=oci,compression=zstd`": "oci,compression=zstd",
    "`type=oci,compression=uncompressed`": "oci,compression=uncompressed",
    "`type=oci,compression=zstd,force-compression=true`": "oci,compression=zstd,force-compression=true",
    "`type=oci,oci-mediatypes=false`": "oci,oci-mediatypes=false",
    "`type=oci`, several platforms": "oci",
    "`type=docker`": "docker",
    "`type=docker,compression=uncompressed`": "docker,compression=uncompressed",
    "`type=docker,compression=zstd`": "docker,compression=zstd",
    "`pybuild save`": "save",
}
REGISTRY = {
    "`--push`": "registry",
    "`type=registry,compression=zstd`": "registry,compression=zstd",
    "`type=registry,compression=uncompressed`": "registry,compression=uncompressed",
    "`type=registry,compression=zstd,force-compression=true`": "registry,compression=zstd,force-compression=true",
    "`type=registry,oci-mediatypes=false`": "registry,oci-mediatypes=false",
    "`type=registry,compression=zstd,oci-mediatypes=false`": "registry,compression=zstd,oci-mediatypes=false",
    "`--push`, several platforms": "registry",
}
READERS = {
    "archive": ("skopeo", "umoci", "podman", "buildah", "docker", "containerd"),
    "registry": ("skopeo", "podman", "buildah", "docker", "containerd"),
}


@dataclass(frozen=True)
class Reason:
    """Why cells are "no": what the page says, and a pattern of what the reader says."""

    text: str
    said: str


LAYOUT = Reason("docker loads archives with a manifest.json: use `type=docker`", "no such file or directory")
DOCKER_ZSTD = Reason("docker knows zstd from 23.0 on", "Error processing tar file")
UMOCI_ZSTD = Reason("umoci 0.4 knows no zstd", "not correct mediatype")
UMOCI_DOCKER = Reason("umoci knows the OCI's media types only", "not implemented")
UMOCI_MANY = Reason("umoci needs an image, not an index: build for one `--platform`", "ambiguous")
NO_SUCH_TYPE = Reason(
    "docker's media types have none for zstd that all tools know: leave `oci-mediatypes=false` out",
    "unsupported docker v2s2 media type|no processor for media-type",
)
REASONS = (LAYOUT, DOCKER_ZSTD, UMOCI_ZSTD, UMOCI_DOCKER, UMOCI_MANY, NO_SUCH_TYPE)


def reason(form: str, reader: str) -> Reason | None:
    """Why *reader* cannot take *form*; None if it can."""
    docker_types, zstd = "oci-mediatypes=false" in form, "zstd" in form
    if reader == "docker":
        if "type=oci" in form:
            return LAYOUT
        return DOCKER_ZSTD if zstd else None
    if reader == "umoci":
        if docker_types:
            return UMOCI_DOCKER
        return UMOCI_ZSTD if zstd else UMOCI_MANY if "several" in form else None
    return NO_SUCH_TYPE if docker_types and zstd else None


CELLS = [
    *((form, reader) for form in ARCHIVES for reader in READERS["archive"]),
    *((form, reader) for form in REGISTRY for reader in READERS["registry"]),
]


# -- samples -------------------------------------------------------------------------------


def make_context(folder: Path) -> Path:
    """What the sample images are built from: xattrs, a capability, names of every kind."""
    make_tree(folder, {"d": {"f": "five ", "gone": "x", "l": "-> f", "ä": "umlaut", LONG: "deep"}})
    (folder / "Dockerfile").write_text(DOCKERFILE)
    (folder / "many.Dockerfile").write_text(TWO_PLATFORMS)
    os.setxattr(folder / "d/f", "user.colour", COLOUR)
    members: list[tuple[str, dict[str, object]]] = [
        ("caps/ping", {"mode": 0o755, "pax_headers": {"SCHILY.xattr.security.capability": CAPABILITY.decode("utf-8", "surrogateescape")}}),
        ("caps/long", {"type": tarfile.SYMTYPE, "linkname": "../" * 100}),
    ]  # fmt: skip
    with tarfile.open(folder / "caps.tar", "w") as tar:
        for name, values in members:
            item = tarfile.TarInfo(name)
            for key, value in values.items():
                setattr(item, key, value)
            tar.addfile(item)
    return folder


@dataclass
class Samples:
    """The sample images in all forms, each made when it is first asked for."""

    pybuild: Pybuild
    context: Path
    registry: str
    _made: dict[str, str] = field(default_factory=dict)

    def source(self, form: str) -> str:
        """An archive's path, or a name in the registry."""
        if form not in self._made:
            self._made[form] = self._make(form, len(self._made))
        return self._made[form]

    def _make(self, form: str, number: int) -> str:
        several = "several" in form
        kind = ARCHIVES.get(form) or REGISTRY[form]
        archive = self.pybuild.work / f"{number}.tar"
        if kind == "save":
            self.pybuild("-q", NONE, "-t", ONE, self.context).ok()
            self.pybuild("save", ONE, "-o", archive).ok()
            return str(archive)
        name = MANY if several else ONE
        out = f"type={kind},dest={archive}"
        if "registry" in kind:
            name = f"{self.registry}/team/image{number}:1"
            out = f"type={kind}"
        which: Words = [PLATFORMS, "-f", self.context / "many.Dockerfile"] if several else []
        self.pybuild("-q", NONE, *which, "-t", name, "-o", out, self.context).ok()
        return name if "registry" in kind else str(archive)

    def expected(self, several: bool) -> dict[str, Node]:
        """The tree, as the archive of the same image says."""
        which: Words = ["-f", self.context / "many.Dockerfile"] if several else []
        return of_image(self.pybuild.export(self.context, "-q", NONE, *which))


@pytest.fixture(scope="module")
def samples(
    shared_store: Path, tools: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Samples]:
    work = tmp_path_factory.mktemp("samples")
    with registry(tools["docker-registry"], work) as server:
        yield Samples(Pybuild(shared_store, work), make_context(work / "context"), server)


@pytest.fixture(scope="module")
def trees(samples: Samples) -> dict[bool, dict[str, Node]]:
    return {several: samples.expected(several) for several in (False, True)}


@pytest.fixture(scope="module")
def readers(tools: dict[str, str]) -> Iterator[Peers]:
    with peers(tools) as found:
        yield found


def test_sample(trees: dict[bool, dict[str, Node]]) -> None:
    """It holds what a reader could get wrong."""
    tree = trees[False]
    assert tree["d/f"].xattrs == (("user.colour", COLOUR),) and tree["d/f"].owner == (5, 6)
    assert tree["caps/ping"].xattrs == (("security.capability", CAPABILITY),)
    assert tree["d/suid"].mode == 0o6755 and tree["d"].mode == 0o2775 and tree["o"].mode == 0o1777
    assert tree["d/private"].owner == (70000, 70001) and tree["d/pipe"].kind == "pipe"
    assert tree["o/y"].names == ("o/w", "o/y", "o/z") and tree["o/y"].data == b"new\n"
    assert (
        tree["d/three"].names == () and tree["d/three"].data == b"new\n"
    )  # a link to what a layer below has is a copy
    assert tree["d/ü 日"].data == b"../nowhere" and tree["swap/folder"].data == b"/o"
    assert tree["swap/file"].kind == "folder" and tree[f"d/{LONG}"].data == b"deep"
    assert tree["caps/long"].data == b"../" * 100 and tree["odd/a\udcff"].kind == "file"
    assert tree["odd/l"].names == ("odd/l", "odd/m") and tree["d/pipe"].names == ("d/pipe", "odd/pipe")
    assert len(tree["d/suid"].data) > 1 << 20, "more than a block of gzip"
    assert not {"o/x", "d/gone", "swap/file/x"} & tree.keys() and tree["d/empty"].data == b""


# -- the cells -----------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "reader"), CELLS)
def test_cell(
    samples: Samples, trees: dict[bool, dict[str, Node]], readers: Peers, form: str, reader: str
) -> None:
    source, peer, why = samples.source(form), readers[reader], reason(form, reader)
    several = "several" in form
    try:
        if why is not None:
            with pytest.raises(Refused, match=why.said):
                peer.take(source)
            return
        image = peer.take(source)
        if reader == "skopeo":
            assert (Path(image) / "manifest.json").read_bytes() == top(source)
            return
        with peer.root(image) as root:
            assert not difference(of_folder(root), trees[several])
        assert peer.run(image).split() == (SAYS_FOR if several else SAYS)
    finally:
        peer.forget()


def members(archive: str | Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        files = ((member.name, tar.extractfile(member)) for member in tar)
        return {name: file.read() for name, file in files if file is not None}


def fetched(source: str, kind: str, name: str) -> tuple[bytes, str]:
    """A manifest or blob of the repository of *source*, and its media type."""
    host_and_port, _, rest = source.partition("/")
    url = f"http://{host_and_port}/v2/{rest.partition(':')[0]}/{kind}/{name}"
    accept = ", ".join((*INDEXES.values(), *MANIFESTS.values()))
    request = urllib.request.Request(url, headers={"Accept": accept} if kind == "manifests" else {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as answer:
        return answer.read(), str(answer.headers["Content-Type"])


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def top(source: str) -> bytes:
    """The manifest or index that a source names."""
    if not is_archive(source):
        return fetched(source, "manifests", source.rpartition(":")[2])[0]
    files = members(source)
    (item,) = json.loads(files["index.json"])["manifests"]
    return files["blobs/sha256/" + item["digest"][7:]]


@pytest.mark.parametrize(
    ("reader", "load"),
    [("docker", ["load"]), ("podman", ["load"]), ("containerd", ["images", "import", "-"])],
)
def test_pipes(samples: Samples, readers: Peers, reader: str, load: list[str]) -> None:
    """Without a file between."""
    command: Words = [PYBUILD, "-q", NONE, "-t", ONE, "-o", "type=docker,dest=-", samples.context]
    environment = samples.pybuild.environment()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as build:
        subprocess.run([*readers[reader].client, *load], stdin=build.stdout, check=True, capture_output=True)
    assert build.returncode == 0 and readers[reader].run(f"docker.io/library/{ONE}").split() == SAYS
    readers[reader].forget()


def test_zstd_base(samples: Samples, readers: Peers, tmp_path: Path) -> None:
    """Layers of a base stay as they are, which an old docker cannot read; force-compression changes them too."""
    ours, docker = Pybuild(tmp_path / "store", tmp_path), readers["docker"]
    ours("load", samples.source("`type=oci,compression=zstd,force-compression=true`")).ok()
    context = ours.context(f"FROM {ONE}\nLABEL more=yes\n")
    for options in ("", ",force-compression=true"):
        ours("-q", "-t", ONE, "-o", f"type=docker,dest={tmp_path}/out.tar{options}", context).ok()
        if options:
            assert docker.run(docker.take(f"{tmp_path}/out.tar")).split() == SAYS
        else:
            with pytest.raises(Refused, match=DOCKER_ZSTD.said):
                docker.take(f"{tmp_path}/out.tar")
    docker.forget()


def test_kubernetes(samples: Samples, readers: Peers) -> None:
    """What a node's containerd takes into k8s.io its CRI plugin knows. (Debian 12 has no crictl to ask it.)"""
    containerd = readers["containerd"]
    image, managed = (
        containerd.take(samples.source("`pybuild save`")),
        'labels."io.cri-containerd.image"==managed',
    )
    end = time.monotonic() + 10
    while f"{image} " not in (known := containerd("images", "list", managed)):
        assert time.monotonic() < end, known
        time.sleep(0.1)
    containerd.forget()


# -- the JSON ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [*ARCHIVES, *REGISTRY])
def test_schema(samples: Samples, form: str) -> None:
    """Every JSON is what the image-spec's schemas say, every media type what the bytes are."""
    source = samples.source(form)
    seen = check_archive(Path(source)) if is_archive(source) else check_registry(source)
    family = "vnd.docker." if "oci-mediatypes=false" in form else "vnd.oci."
    assert all(family in media for media in seen)
    assert any("zstd" in media for media in seen) == ("zstd" in form)
    assert any("index" in media for media in seen) == ("several" in form)


def check_archive(archive: Path) -> set[str]:
    """Check all that it holds; the media types."""
    files = members(archive)
    check = Checker(lambda digest: files["blobs/" + digest.replace(":", "/")])
    check.layout(files["oci-layout"], files["index.json"])
    return check.seen


def check_registry(source: str) -> set[str]:
    """Check an image in a registry."""

    def fetch(digest: str) -> bytes:
        try:
            return fetched(source, "blobs", digest)[0]
        except urllib.error.HTTPError:
            return fetched(source, "manifests", digest)[0]

    data, media = fetched(source, "manifests", source.rpartition(":")[2])
    check = Checker(fetch)
    check.descriptor({"mediaType": media, "size": len(data), "digest": digest_of(data)})
    return check.seen


@pytest.mark.parametrize("options", [["-t", ONE, "-t", "other:2"], [PLATFORMS, "-t", MANY], []], ids=len)
def test_annotations(samples: Samples, tmp_path: Path, options: list[str]) -> None:
    """Annotations and names, of one image and of several, are where the schemas have them."""
    marks = "annotation.org.opencontainers.image.title=a ü,annotation-manifest-descriptor.of=it"
    archive = tmp_path / "marked.tar"
    which: Words = ["-f", samples.context / "many.Dockerfile", "-o", f"type=oci,dest={archive},{marks}"]
    samples.pybuild("-q", NONE, *options, *which, samples.context).ok()
    check_archive(archive)
    files = members(archive)
    items = json.loads(files["index.json"])["manifests"]
    assert len(items) == max(1, options.count("-t"))
    if PLATFORMS in options:  # then the index has the descriptors of manifests
        items = json.loads(files["blobs/" + items[0]["digest"].replace(":", "/")])["manifests"]
    assert all(item["annotations"]["of"] == "it" for item in items)
    manifests = [json.loads(data) for name, data in files.items() if b'"layers":[{' in data[:5000]]
    assert manifests and all(
        item["annotations"] == {"org.opencontainers.image.title": "a ü"} for item in manifests
    )


# -- the page ------------------------------------------------------------------------------


def tables() -> str:
    """What docs/interop.md says of the cells."""
    numbers = {why: str(number) for number, why in enumerate(REASONS, 1)}
    lines = []
    for title, forms, kind in (("archive", ARCHIVES, "archive"), ("in a registry", REGISTRY, "registry")):
        lines += [
            f"| {title} | " + " | ".join(READERS[kind]) + " |",
            "| --- |" + " --- |" * len(READERS[kind]),
        ]
        for form in forms:
            reasons = [reason(form, reader) for reader in READERS[kind]]
            cells = ["yes" if why is None else f"no ({numbers[why]})" for why in reasons]
            lines.append(f"| {form} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += [f"{numbers[why]}. {why.text}." for why in REASONS]
    return "\n".join(lines) + "\n"


def test_page() -> None:
    """The page has these tables, and these versions. UPDATE_INTEROP=1 writes both anew."""
    packages = {"docker": "docker.io", "registry": "docker-registry"}
    names = [*READERS["archive"], "runc", "registry"]
    found = versions([packages.get(name, name) for name in names])
    said = ", ".join(f"{name} {found[packages.get(name, name)]}" for name in names) + ".\n"
    page = PAGE.read_text()
    for mark, text in (("out", tables()), ("versions", said)):
        page = replaced(page, mark, text)
    if os.environ.get("UPDATE_INTEROP"):
        PAGE.write_text(page)
    assert PAGE.read_text() == page


def replaced(page: str, mark: str, text: str) -> str:
    """The page with other text between ``<!-- mark -->`` and the next such line."""
    head, _, rest = page.partition(f"<!-- {mark} -->\n")
    _, end, tail = rest.partition("<!-- end -->\n")
    assert end, f"docs/interop.md has no part {mark}"
    return f"{head}<!-- {mark} -->\n{text}{end}{tail}"
