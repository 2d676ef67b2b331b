"""Base images that other tools made: what their layers leave unsaid, and what is odd in them."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard
from archives import DIR, FILE, LINK
from bases import OCI, Base, Fields, layer, member
from harness import Pybuild
from oci import read_image
from servers import Misbehaving

pytestmark = pytest.mark.e2e

BOTH = pytest.mark.parametrize("isolation", ["namespaces", "chroot"])
NONE = "--network=none"


@pytest.fixture(scope="session")
def shell(busybox: Path) -> bytes:
    """The layer of busybox, without what others are to say."""
    return read_image(busybox).layers[0].data


def load(pybuild: Pybuild, name: str, base: Base) -> None:
    archive = pybuild.work / f"{name}.tar"
    archive.write_bytes(base.archive(f"{name}:1"))
    pybuild("load", archive).ok()


def shown(pybuild: Pybuild, name: str, script: str, isolation: str, *more: str) -> str:
    """What *script* says in a step on the image *name*."""
    text = f"FROM {name}:1 AS made\nRUN ({script}) > /said\nFROM scratch\nCOPY --from=made /said /\n"
    options = (NONE, f"--isolation={isolation}", *more)
    return pybuild.build(text, None, *options).read("said").decode()


# -- folders without an entry of their own -------------------------------------------------

BELOW = (
    member("shared", DIR, mode=0o1777, mtime=2_000_000_000),
    member("home", DIR),
    member("home/app", DIR, mode=0o750, uid=1000, gid=1000, mtime=1_500_000_000),
    member("home/app/gone", FILE, "1"),
    member("home/app/deep", DIR, mode=0o700, uid=1000, gid=1000),
)
ABOVE = (
    [member("shared/x", FILE, "x"), member("shared/.wh.none")],
    [member("home/app/deep/er/x", FILE, "x"), member("home/app/.wh.gone")],
    [member("way", LINK, "home/app"), member("way/x", FILE, "x"), member("way/deep/.wh.a")],
)
STAT = "cd /; stat -c '%n %a %u:%g %Y' shared home/app home/app/deep"
LOOKS = (
    "shared 1777 0:0 2000000000\nhome/app 750 1000:1000 1500000000\nhome/app/deep 700 1000:1000 1000000000\n"
)


@BOTH
def test_implied_folders(pybuild: Pybuild, shell: bytes, isolation: str) -> None:
    """A folder that no member of a layer is says nothing: it is as below. A later step changes nothing in it."""
    load(pybuild, "implied", Base(shell, layer(*BELOW), *(layer(*members) for members in ABOVE)))
    text = f"FROM implied:1\nRUN {STAT}\nUSER 1000\nRUN cp /home/app/x /shared/mine && ls /home/app/deep\n"
    done = pybuild(NONE, f"--isolation={isolation}", "--no-cache", pybuild.context(text)).ok()
    assert all(line in done.err for line in LOOKS.splitlines())
    archive = pybuild.work / "export.tar"
    pybuild(NONE, f"--isolation={isolation}", "-o", f"type=oci,dest={archive}", pybuild.work / "context").ok()
    last = read_image(archive).layers[-1]
    assert last.names == ["shared", "shared/mine"] and last.entries["shared"].mode == 0o1777


def test_implied_folders_exported(pybuild: Pybuild, shell: bytes) -> None:
    load(pybuild, "implied", Base(shell, layer(*BELOW), *(layer(*members) for members in ABOVE)))
    out = pybuild.work / "root.tar"
    pybuild("-o", f"type=tar,dest={out}", pybuild.context("FROM implied:1\n")).ok()
    with tarfile.open(out) as tar:
        entries = {entry.name: entry for entry in tar}
    assert (entries["shared"].mode, entries["shared"].mtime) == (0o1777, 2_000_000_000)
    assert (entries["home/app"].mode, entries["home/app"].uid) == (0o750, 1000)


@BOTH
def test_implied_folders_of_a_shared_layer(pybuild: Pybuild, shell: bytes, isolation: str) -> None:
    """One layer on several bases: its folders are as each has them; twice in one, as the lower ones have."""
    above = layer(member("shared/x", FILE, "x"), member("new/x", FILE, "x"))
    other = layer(member("shared", DIR, mode=0o700, uid=5), member("new", DIR, mode=0o711))
    bases = {"a": [layer(*BELOW), above], "b": [other, above], "c": [above, other, above], "d": [above]}
    for name, layers in bases.items():
        load(pybuild, name, Base(shell, *layers))
    text = "".join(f"FROM {name}:1 AS s{name}\nRUN stat -c '%a %u' /shared /new > /said\n" for name in bases)
    text += "FROM scratch\n" + "".join(f"COPY --from=s{name} /said /{name}\n" for name in bases)
    image = pybuild.build(text, None, NONE, f"--isolation={isolation}", "--no-cache")
    said = [image.read(name).decode() for name in bases]
    assert said == ["1777 0\n755 0\n", "700 5\n711 0\n", "700 5\n711 0\n", "755 0\n755 0\n"]


@BOTH
def test_implied_folders_of_nothing(pybuild: Pybuild, shell: bytes, isolation: str) -> None:
    """What a layer itself replaces is no more below; a folder that was a link is as what that led to."""
    below = (*BELOW, member("to", LINK, "home/app"))
    above = (member(".wh.shared"), member("shared/x", FILE, "x"), member("to/x", FILE, "x"))
    load(pybuild, "nothing", Base(shell, layer(*below), layer(*above)))
    assert shown(pybuild, "nothing", "stat -c '%n %F %a %u' /shared /to", isolation) == (
        "/shared directory 755 0\n/to directory 750 1000\n"
    )


# -- whiteouts and links -------------------------------------------------------------------

ODD = {
    "whiteout-in-a-link": (
        [member("a", DIR), member("a/a", FILE, "1"), member("b", DIR), member("b/a", FILE, "2"), member("b/keep")],
        [member("a/.wh.a"), member("a", LINK, "b")],
        {"a": "-> b", "b": "DIR", "b/a": "2", "b/keep": ""},
    ),
    "whiteout-below-a-link": (
        [member("b/d/x", FILE, "2")],
        [member("a", LINK, "/b"), member("a/d/.wh.x"), member("a/.wh..wh..opq")],
        {"a": "-> /b", "b": "DIR", "b/d": "DIR", "b/d/x": "2"},
    ),
    "whiteout-in-a-dangling-link": ([member("a/a")], [member("a/.wh.a"), member("a", LINK, "/nowhere")], {"a": "-> /nowhere"}),
    "whiteout-in-a-file": ([member("a/a")], [member("a", FILE, "1"), member("a/.wh.a")], {"a": "1"}),
    "whiteout-by-a-long-way": ([member("a"), member("b")], [member("x/../.wh.a")], {"b": ""}),
    "through-a-link-to-below": (
        [member("etc", DIR), member("etc/f", FILE, "1")],
        [member("link", LINK, "etc"), member("link/through", FILE, "2")],
        {"etc": "DIR", "etc/f": "1", "etc/through": "2", "link": "-> etc"},
    ),
    "through-two-links": (
        [member("x/y/f", FILE, "1")],
        [member("l", LINK, "m/../m/y"), member("m", LINK, "/../x"), member("l/z/g", FILE, "2")],
        {"x": "DIR", "x/y": "DIR", "x/y/f": "1", "x/y/z": "DIR", "x/y/z/g": "2", "m": "-> /../x", "l": "-> m/../m/y"},
    ),
    "folder-file-folder": (
        [member("d/old", FILE, "1"), member("e/old", FILE, "1")],
        [
            *(member("d", FILE, "2"), member("d", DIR), member("d/new", FILE, "3")),
            *(member("e", DIR), member("e", LINK, "d"), member("e", DIR)),
        ],
        {"d": "DIR", "d/new": "3", "e": "DIR"},
    ),
}  # fmt: skip
Members = list[tuple[tarfile.TarInfo, bytes]]


@pytest.mark.parametrize(("below", "above", "expected"), ODD.values(), ids=ODD.keys())
def test_odd_layers(pybuild: Pybuild, below: Members, above: Members, expected: dict[str, str]) -> None:
    """A whiteout counts for its literal path, and not where the layer has no folder; links lead on in the root."""
    load(pybuild, "odd", Base(layer(*below), layer(*above)))
    assert pybuild.build("FROM odd:1 AS odd\nFROM scratch\nCOPY --from=odd / /\n").tree() == expected


def test_a_link_that_leads_nowhere(pybuild: Pybuild) -> None:
    """A layer whose links go round in a circle is refused by a word, not by a hang."""
    archive = pybuild.work / "circle.tar"
    members = (member("a", LINK, "b"), member("b", LINK, "a"), member("a/x"))
    archive.write_bytes(Base(layer(*members)).archive("circle:1"))
    assert "a/x" in pybuild("load", archive).failed().err


# -- mount points that an image hides ------------------------------------------------------

HIDDEN: dict[str, tuple[Members, Members]] = {
    "relative-link": ([member("usr/etc", DIR), member("etc", LINK, "usr/etc")], []),
    "absolute-link": ([member("e", DIR), member("etc", LINK, "/e")], []),
    "dangling-link": ([member("etc", LINK, "no/where")], []),
    "links-into-links": ([member("etc", LINK, "/a/etc"), member("a", LINK, "../c")], []),
    "etc-removed": ([member("etc/f", FILE, "1")], [member(".wh.etc")]),
    "etc-opaque": ([member("etc/f", FILE, "1")], [member("etc", DIR), member("etc/.wh..wh..opq")]),
    "files-removed": ([member("etc/hosts", FILE, "1")], [member("etc/.wh.hosts"), member("etc/.wh.resolv.conf")]),
    "kernel-removed": ([member("proc", DIR), member("dev", DIR), member("sys", DIR)],
                       [member(".wh.proc"), member(".wh.sys"), member(".wh.dev")]),
}  # fmt: skip


@pytest.fixture(scope="module")
def hiding(shared_store: Path, tmp_path_factory: pytest.TempPathFactory, shell: bytes) -> None:
    """The images of HIDDEN, in the shared store."""
    pybuild = Pybuild(shared_store, tmp_path_factory.mktemp("hiding"))
    for name, (below, above) in HIDDEN.items():
        load(pybuild, name, Base(shell, layer(*below), layer(*above)))


@BOTH
@pytest.mark.usefixtures("hiding")
def test_hidden_mount_points(pybuild: Pybuild, isolation: str) -> None:
    """A step, and a container, get their mount points whatever the image has there; layers do not."""
    text = "".join(
        f"FROM {name}:1 AS s{name}\nRUN grep -q localhost /etc/hosts && test -f /etc/resolv.conf && "
        "test -e /proc/self && test -c /dev/null && ls /sys > /dev/null && echo 1 > /mine\n"
        for name in HIDDEN
    )
    text += "FROM scratch\n" + "".join(f"COPY --from=s{name} / /{name}/\n" for name in HIDDEN)
    tree = pybuild.build(text, None, NONE, f"--isolation={isolation}", "--no-cache").tree()
    assert [path for path in tree if path.endswith("/mine")] == [f"{name}/mine" for name in HIDDEN]
    ends = ("/hosts", "/resolv.conf", "/where", "/proc", "/dev", "/sys")
    assert not [path for path in tree if path.endswith(ends)]
    assert {name for name in HIDDEN if f"{name}/etc" not in tree} == {"etc-removed"}
    ran = pybuild("run", NONE, f"--isolation={isolation}", "dangling-link:1", "cat", "/etc/hosts").ok()
    assert "localhost" in ran.out


@BOTH
def test_opaque_root(pybuild: Pybuild, shell: bytes, isolation: str) -> None:
    """A layer may say that nothing of those below shows at all."""
    load(pybuild, "opaque", Base(layer(member("old/x")), layer(member(".wh..wh..opq")), shell))
    text = "FROM opaque:1\nRUN ls -a / > /said\nRUN test ! -e /old && ! grep -q old /said\n"
    pybuild(NONE, f"--isolation={isolation}", "--no-cache", pybuild.context(text)).ok()


# -- indexes -------------------------------------------------------------------------------

ARM, S390 = {"os": "linux", "architecture": "arm64"}, {"os": "linux", "architecture": "s390x"}
MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
AMD = {"os": "linux", "architecture": MACHINE}


def pictures(**platforms: dict[str, str]) -> tuple[Base, dict[str, Fields]]:
    """Images for several platforms among one's blobs, each with a file of its name, and what an index says."""
    whole, entries = Base(), {}
    for name, platform in platforms.items():
        one = Base(layer(member(name, FILE, "1")), platform=platform)
        whole.blobs.update(one.blobs)
        entries[name] = one.descriptor
    return whole, entries


def indexes() -> dict[str, tuple[Base, Fields]]:
    """Indexes whose file "good" is that of this machine's image."""
    out = {}
    whole, at = pictures(other=S390, good=AMD)
    inner = whole.index({**at["other"], "platform": S390}, {**at["good"], "platform": AMD})
    out["nested"] = whole, whole.index(whole.index(inner))
    out["unsaid"] = whole, whole.index(at["other"], at["good"])
    out["unsaid-last"] = whole, whole.index(at["other"], {**at["good"], "platform": AMD})
    out["stated-and-nested"] = whole, whole.index({**inner, "platform": S390}, {**inner, "platform": AMD})
    names = {"amd64": "x86_64", "arm64": "AARCH64"}
    odd = {"os": "Linux", "architecture": names[MACHINE]}
    out["odd-names"] = whole, whole.index({**at["other"], "platform": S390}, {**at["good"], "platform": odd})
    whole, at = pictures(v3={**AMD, "variant": "v11"}, good=AMD)
    out["newer"] = (
        whole,
        whole.index({**at["v3"], "platform": {**AMD, "variant": "v11"}}, {**at["good"], "platform": AMD}),
    )
    other = whole.put(
        "application/vnd.oci.image.manifest.v1+json",
        b'{"schemaVersion":2,"config":{"mediaType":"text/plain"}}',
    )
    out["something-else"] = whole, whole.index(other, at["good"])
    return out


@pytest.mark.parametrize("name", indexes())
def test_index(pybuild: Pybuild, name: str, tmp_path: Path) -> None:
    """By way of a registry and of a layout: indexes in indexes, and entries that do not say what they are for."""
    whole, index = indexes()[name]
    server = Misbehaving()
    for digest, data in whole.blobs.items():
        server.serve(f"/v2/x/blobs/{digest}", data)
        if data.startswith(b"{"):
            server.serve(f"/v2/x/manifests/{digest}", data, json.loads(data).get("mediaType", ""))
    server.serve("/v2/x/manifests/latest", whole.blobs[str(index["digest"])], str(index["mediaType"]))
    subprocess.run(["tar", "-x", "-C", tmp_path], input=whole.archive("one", index), check=True)
    try:
        text = f"FROM {server.host}/x AS x\nFROM base AS y\nFROM scratch\nCOPY --from=x / /x\nCOPY --from=y / /y\n"
        image = pybuild.build(text, None, f"--build-context=base=oci-layout://{tmp_path}:one")
    finally:
        server.close()
    assert image.tree() == {"x": "DIR", "x/good": "1", "y": "DIR", "y/good": "1"}


def test_endless_index(pybuild: Pybuild) -> None:
    """An index that only leads on is given up."""
    whole, _at = pictures()
    index = whole.index()
    for _ in range(6):
        index = whole.index(index, {**index, "annotations": {"a": "b"}})
    server = Misbehaving()
    for digest, data in whole.blobs.items():
        server.serve(f"/v2/x/manifests/{digest}", data, "application/vnd.oci.image.index.v1+json")
    server.serve("/v2/x/manifests/latest", whole.blobs[index["digest"]], index["mediaType"])
    try:
        assert "too many indexes" in pybuild.refuse(f"FROM {server.host}/x\n")
    finally:
        server.close()


def test_platforms_that_are_left_out(fresh: Pybuild) -> None:
    """Of an archive that names more than it holds, what is whole is loaded."""
    whole, at = pictures(other=S390, good=AMD, third=ARM)
    index = whole.index(
        *(
            {**entry, "platform": whole_of}
            for entry, whole_of in zip(at.values(), (S390, AMD, ARM), strict=True)
        )
    )
    lost = json.loads(whole.blobs.pop(at["other"]["digest"]))["layers"][0]["digest"]
    third = json.loads(whole.blobs[at["third"]["digest"]])["layers"][0]["digest"]
    del whole.blobs[lost], whole.blobs[third]
    archive = fresh.work / "some.tar"
    archive.write_bytes(whole.archive("some:1", index))
    fresh("load", archive).ok()
    assert fresh.build("FROM some:1 AS a\nFROM scratch\nCOPY --from=a / /\n").tree() == {"good": "1"}
    del whole.blobs[json.loads(whole.blobs[at["good"]["digest"]])["layers"][0]["digest"]]
    archive.write_bytes(whole.archive("none:1", index))
    assert "lacks" in fresh("load", archive).failed().err


# -- blobs ---------------------------------------------------------------------------------

TAR = layer(member("f", FILE, "1"))
GZIP, ZSTD = gzip.compress(TAR), zstandard.compress(TAR)
DOCKER = "application/vnd.docker.image.rootfs"
WIDE = zstandard.ZstdCompressionParameters(window_log=29)
BLOBS: dict[str, tuple[str, bytes, bytes]] = {
    "zstd-called-gzip": (f"{OCI}.layer.v1.tar+gzip", ZSTD, TAR),
    "gzip-called-zstd": (f"{OCI}.layer.v1.tar+zstd", GZIP, TAR),
    "plain-called-gzip": (f"{DOCKER}.diff.tar.gzip", TAR, TAR),
    "gzip-called-plain": (f"{OCI}.layer.v1.tar", GZIP, TAR),
    "foreign": (f"{DOCKER}.foreign.diff.tar.gzip", GZIP, TAR),
    "nondistributable": (f"{OCI}.layer.nondistributable.v1.tar+zstd", ZSTD, TAR),
    "wide": (
        f"{OCI}.layer.v1.tar+zstd",
        zstandard.ZstdCompressor(compression_params=WIDE).compress(TAR),
        TAR,
    ),
    "no-bytes": (f"{OCI}.layer.v1.tar+gzip", b"", b""),
    "no-bytes-in-gzip": (f"{OCI}.layer.v1.tar+gzip", gzip.compress(b""), b""),
}


@pytest.mark.parametrize("blob", BLOBS.values(), ids=BLOBS.keys())
def test_blob(fresh: Pybuild, blob: tuple[str, bytes, bytes]) -> None:
    """What a layer's bytes are, they say themselves; that they are the right ones, its digests."""
    load(fresh, "blob", Base(blob, layer(member("g", FILE, "2"))))
    expected = {"f": "1", "g": "2"} if blob[2] else {"g": "2"}
    assert fresh.build("FROM blob:1 AS a\nFROM scratch\nCOPY --from=a / /\n").tree() == expected


def test_blob_of_too_wide_a_window(pybuild: Pybuild) -> None:
    """What needs more memory than layers get is called so, and not damaged."""
    params = zstandard.ZstdCompressionParameters(window_log=31)
    made = zstandard.ZstdCompressor(compression_params=params).compressobj()
    data = made.compress(TAR) + made.flush()  # without its size in front
    (pybuild.work / "wide.tar").write_bytes(Base((f"{OCI}.layer.v1.tar+zstd", data, TAR)).archive("wide:1"))
    said = pybuild("load", pybuild.work / "wide.tar").failed().err
    assert "a window of more than 512 MiB" in said and "--long" in said


def test_many_layers(fresh: Pybuild, shell: bytes) -> None:
    """More layers than the options of a mount have room for; the last one shows, and all below it."""
    tars = [layer(member("f", FILE, str(count)), member(f"n{count}")) for count in range(370)]
    options = ("--network=none", "--isolation=namespaces")
    for count in (200, 370):
        load(fresh, "many", Base(shell, *tars[:count]))
        text = "FROM many:1\nRUN ls -d /n* | wc -l > /said && cat /f >> /said\nRUN --mount=from=many:1,target=/m cat /m/f\n"
        assert fresh.build(text, None, *options).read("said").decode() == f"{count}\n{count - 1}"
