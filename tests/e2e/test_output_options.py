"""Where a build goes: one image with one ID, annotations in every place, options of docker's exporters."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import PYBUILD, Pybuild
from oci import Image, read_image
from servers import registry

pytestmark = pytest.mark.e2e

TEXT = "FROM scratch\nCOPY f /f\n"
FILES = {"f": "1"}
BOTH = "--platform=linux/amd64,linux/arm64"
EPOCH = {"SOURCE_DATE_EPOCH": "1700000000"}
KINDS = ("oci", "docker")


@pytest.fixture(scope="module")
def server(tools: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registry(tools["docker-registry"], tmp_path_factory.mktemp("registry")) as host:
        yield host


def blob(image: Image, descriptor: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(image.files["blobs/" + descriptor["digest"].replace(":", "/")])
    return found


def fetched(host: str, name: str, reference: str) -> tuple[dict[str, Any], str]:
    """A manifest of the registry, and its digest."""
    raw = subprocess.check_output(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{host}/{name}{reference}"]
    )
    import hashlib

    return json.loads(raw), "sha256:" + hashlib.sha256(raw).hexdigest()


# -- one image, one ID ---------------------------------------------------------------------


@pytest.mark.parametrize("output", ["oci", "docker", "image"])
def test_one_image_one_id(pybuild: Pybuild, tmp_path: Path, output: str) -> None:
    """With times rewritten everything names the image that was exported, and the store has it."""
    where = f"type={output}," + ("name=rewritten:2" if output == "image" else f"dest={tmp_path}/x.tar")
    files = ("--iidfile", tmp_path / "iid", "--metadata-file", tmp_path / "m")
    context = pybuild.context(TEXT, {"f": f"{output}"})
    given = ("-q", "-t", f"rewritten:{output}", *files, "-o", f"{where},rewrite-timestamp=true")
    image = pybuild(*given, context, env=EPOCH).ok().out.strip()
    said = json.loads((tmp_path / "m").read_text())
    assert (tmp_path / "iid").read_text() == image == said["containerimage.config.digest"]
    names = [f"rewritten:{output}", *(["rewritten:2"] if output == "image" else [])]
    assert {found["Id"] for found in json.loads(pybuild("inspect", *names).ok().out)} == {image}
    if output != "image":
        written = read_image(tmp_path / "x.tar")
        assert written.manifest["config"]["digest"] == image
        assert said["containerimage.digest"] == written.index["manifests"][0]["digest"]
    pybuild("save", names[0], "-o", tmp_path / "saved.tar").ok()
    saved = read_image(tmp_path / "saved.tar")
    assert saved.manifest["config"]["digest"] == image
    assert saved.layers[-1].entries["f"].mtime == 1700000000


def test_times_that_are_not_rewritten(pybuild: Pybuild, tmp_path: Path) -> None:
    """The output that the metadata is about counts: the last archive, not the files, nor another archive."""
    one, two = (f"type=oci,dest={tmp_path}/{name}.tar" for name in "ab")
    files = f"type=tar,dest={tmp_path}/files.tar,rewrite-timestamp=true"
    given = ("-q", "-o", f"{one},rewrite-timestamp=true", "-o", two, "-o", files)
    image = pybuild(*given, pybuild.context(TEXT, {"f": "two"}), env=EPOCH).ok().out.strip()
    assert read_image(tmp_path / "b.tar").manifest["config"]["digest"] == image
    assert read_image(tmp_path / "a.tar").manifest["config"]["digest"] != image


def test_ids_of_several_platforms(pybuild: Pybuild, tmp_path: Path) -> None:
    """The index is what they are called together, whether or not it goes anywhere."""
    files = ("--iidfile", tmp_path / "iid", "--metadata-file", tmp_path / "m")
    context = pybuild.context(TEXT, FILES)
    seen = set()
    for output in ((), ("-o", f"type=oci,dest={tmp_path}/x.tar")):
        seen.add(pybuild("-q", BOTH, *files, *output, context).ok().out.strip())
        said = json.loads((tmp_path / "m").read_text())
        assert "containerimage.config.digest" not in said
        seen |= {(tmp_path / "iid").read_text(), said["containerimage.digest"]}
        assert said["containerimage.descriptor"]["mediaType"].endswith("index.v1+json")
    (top,) = read_image(tmp_path / "x.tar").index["manifests"]
    assert seen == {top["digest"]}
    done = pybuild(BOTH, context).ok()
    assert done.err.count("\nimage sha256:") == 2 and " for linux/arm64\n" in done.err


# -- places --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ("-o", "a.tar", "-o", "./a.tar"),
        ("-o", "type=oci,dest=a.tar", "-o", "type=tar,dest=link.tar"),
        ("-o", "-", "-o", "type=tar,dest=-"),
        ("-o", "-", "-o", "type=tar,dest=/dev/stdout"),
        ("-o", "type=docker,dest=-", "--metadata-file", "/dev/stdout"),
        ("-o", "type=local,dest=out", "-o", "type=local,dest=out/"),
        ("--iidfile", "x", "--metadata-file", "x"),
        ("-o", "x", "--iidfile", "x"),
    ],
)
def test_two_things_in_one_place(pybuild: Pybuild, options: tuple[str, ...]) -> None:
    """Refused before anything is built: the last would win, or they would be mixed."""
    context = pybuild.context(TEXT, FILES)
    (pybuild.work / "link.tar").symlink_to("a.tar")
    done = pybuild(*options, context).failed(2)
    assert "both write to" in done.err and not done.out
    assert sorted(os.listdir(pybuild.work)) == ["context", "link.tar"]


def test_two_things_that_share(pybuild: Pybuild, tmp_path: Path) -> None:
    """A layout may hold several images, and a device takes everything."""
    context, layout = pybuild.context(TEXT, FILES), f"type=oci,dest={tmp_path}/l,tar=false"
    pybuild("-o", f"{layout},name=a:1", "-o", f"{layout},name=b:2", context).ok()
    assert len(json.loads((tmp_path / "l/index.json").read_text())["manifests"]) == 2
    pybuild("-o", "type=oci,dest=/dev/null", "-o", "type=tar,dest=/dev/null", context).ok()


def test_quiet_beside_an_archive(pybuild: Pybuild, tmp_path: Path) -> None:
    """Standard output holds the archive alone."""
    context = pybuild.context(TEXT, FILES)
    pybuild("-o", tmp_path / "x.tar", context).ok()
    done = subprocess.run(
        [PYBUILD, "-q", "-o", "-", context], env=pybuild.environment(), capture_output=True, check=True
    )
    assert done.stdout == (tmp_path / "x.tar").read_bytes()


@pytest.mark.parametrize(
    "wrong",
    [("RUN",), ("FROM scratch\nCOPY nope /\n",), (TEXT, "--label=="), (TEXT, "-o", "/nowhere/x.tar")],
    ids=["parse", "step", "option", "export"],
)
def test_results_of_an_old_build(pybuild: Pybuild, tmp_path: Path, wrong: tuple[str, ...]) -> None:
    """A build that fails leaves no ID and no metadata, above all not those of the last one."""
    for name in "im":
        (tmp_path / name).write_text("old")
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    text, *options = wrong
    for files in (("i", "m"), ("link", "m")):
        given = ("--iidfile", tmp_path / files[0], "--metadata-file", tmp_path / files[1])
        assert pybuild(*given, *options, pybuild.context(text, FILES)).code != 0
    assert not (tmp_path / "i").exists() and not (tmp_path / "m").exists()
    assert (tmp_path / "real").read_text() == ""


# -- annotations ---------------------------------------------------------------------------


def test_annotations_of_every_place(pybuild: Pybuild, server: str, tmp_path: Path) -> None:
    """Of two platforms: the index, its entries, the manifests; in an archive and in a registry alike."""
    given = [
        "manifest-descriptor:md=1",
        "manifest-descriptor[linux/arm64]:md=2",
        "index:i=1",
        "index-descriptor:id=1",
        "index,manifest:both=1",
        "manifest[linux/amd64]:only=amd64",
    ]
    words = [word for item in given for word in ("--annotation", item)]
    context, name = pybuild.context(TEXT, FILES), f"{server}/noted:1"
    own = "annotation-index.k=v,annotation-manifest[linux/arm64].only=arm64"
    archive = f"type=oci,dest={tmp_path}/x.tar,{own}"
    pybuild(BOTH, "-t", name, *words, "-o", archive, "-o", f"type=registry,{own}", context).ok()
    image = read_image(tmp_path / "x.tar")
    (top,) = image.index["manifests"]
    assert top["annotations"].items() >= {"id": "1"}.items() and "i" not in top["annotations"]
    index = blob(image, top)
    pushed, digest = fetched(server, "noted", ":1")
    assert index == pushed and digest == top["digest"]
    assert index["annotations"] == {"i": "1", "both": "1", "k": "v"}
    assert [item["annotations"] for item in index["manifests"]] == [{"md": "1"}, {"md": "2"}]
    assert [blob(image, item)["annotations"] for item in index["manifests"]] == [
        {"both": "1", "only": "amd64"},
        {"both": "1", "only": "arm64"},
    ]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("index:a=b", "single platform"),
        ("index-descriptor:a=b", "single platform"),
        ("manifest[linux/s390x]:a=b", "not built"),
        ("manifest[/]:a=b", "invalid component"),
        ("manifests:a=b", "'manifests' is not one of"),
        ("index,:a=b", "is not one of"),
        ("a", "is not KEY=VALUE"),
    ],
)
def test_annotations_that_cannot_be(pybuild: Pybuild, word: str, says: str) -> None:
    done = pybuild("--annotation", word, "-o", "x.tar", pybuild.context(TEXT, FILES)).failed(2)
    assert says in done.err


# -- options of docker's exporters ---------------------------------------------------------


def test_push_by_digest(pybuild: Pybuild, server: str, tmp_path: Path) -> None:
    """One platform for each runner: pushed without a tag, joined by whoever has the digests."""
    context, name = pybuild.context(TEXT, FILES), f"{server}/parts"
    options = "push-by-digest=true,name-canonical=true,push=true"
    for given in (("-o", f"type=image,name={name},{options}"), ("-t", name, "-o", f"type=image,{options}")):
        pybuild(*given, "--metadata-file", tmp_path / "m", context).ok()
        digest = json.loads((tmp_path / "m").read_text())["containerimage.digest"]
        assert fetched(server, "parts", f"@{digest}")[1] == digest
    tags = subprocess.run(
        ["skopeo", "list-tags", "--tls-verify=false", f"docker://{name}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert tags.returncode != 0 or json.loads(tags.stdout)["Tags"] in (None, [])
    for given in (
        ("-o", f"type=image,name={name}:1,{options}"),
        ("-t", f"{name}:1", "-o", f"type=image,{options}"),
    ):
        assert "has a tag" in pybuild(*given, context).failed(2).err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("compression=estargz", "plain gzip"),
        ("compression=zstd,compression-level=99", ""),
        ("compression=uncompressed,compression-level=5", ""),
        ("compression=gzip,compression-level=-1", ""),
        ("store=false,unpack=true", "unpack of --output has no effect"),
        ("oci-artifact=true,dangling-name-prefix=x", "oci-artifact of --output has no effect"),
        ("prefer-nondist-layers=true,name-canonical=", "prefer-nondist-layers of --output has no effect"),
        ("force-compression=T,tar=", ""),
    ],
)
def test_options_that_are_taken(pybuild: Pybuild, tmp_path: Path, options: str, says: str) -> None:
    done = pybuild("-o", f"type=oci,dest={tmp_path}/x.tar,{options}", pybuild.context(TEXT, FILES)).ok()
    assert says in done.err and read_image(tmp_path / "x.tar").read("f") == b"1"


def test_names_in_the_store(pybuild: Pybuild) -> None:
    """``type=image`` without a push is a name here; so is a registry that is not pushed to."""
    context = pybuild.context(TEXT, {"f": "names"})
    given = (
        "-o",
        'type=image,"name=named-here:1,named-here:2"',
        "-o",
        "type=registry,push=false,name=named-here:3",
    )
    done = pybuild(*given, context).ok()
    assert done.err.count("\ntagged docker.io/library/named-here:") == 3
    assert pybuild("images", "-q", "named-here").ok().out.count("\n") == 1
    pybuild("-o", "type=image", context).ok()


def test_platform_split(pybuild: Pybuild, tmp_path: Path) -> None:
    """A folder for each platform, or none; without one no file may be lost to another's."""
    text = "FROM scratch\nARG TARGETARCH\nCOPY d /d/\nCOPY $TARGETARCH /d/\n"
    context = pybuild.context(text, {"d": {}, "amd64": {"x": "1"}, "arm64": {"y": "2"}})
    one = "--platform=linux/arm64"
    for number, (platforms, split, there) in enumerate(
        (
            (one, "true", ["linux_arm64/d/y"]),
            (one, "false", ["d/y"]),
            (BOTH, "true", ["linux_amd64/d/x", "linux_arm64/d/y"]),
            (BOTH, "false", ["d/x", "d/y"]),
        )
    ):
        dest = tmp_path / str(number)
        pybuild(platforms, "-o", f"type=local,dest={dest},platform-split={split}", context).ok()
        assert sorted(str(path.relative_to(dest)) for path in dest.rglob("*") if path.is_file()) == there
    clash = pybuild.context(TEXT, FILES)
    said = pybuild(BOTH, "-o", f"type=local,dest={tmp_path}/c,platform-split=false", clash).failed().err
    assert "linux_amd64 and linux_arm64 both have /f" in said and not list((tmp_path / "c").iterdir())


def test_mode_of_a_folder(pybuild: Pybuild, tmp_path: Path) -> None:
    """``copy`` leaves what is there, ``delete`` makes the folder what the image is; links are not followed."""
    context, dest, outside = pybuild.context(TEXT, FILES), tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (dest / "old/deep").mkdir(parents=True)
    (dest / "link").symlink_to(outside)
    pybuild("-o", f"type=local,dest={dest},mode=copy", context).ok()
    assert sorted(os.listdir(dest)) == ["f", "link", "old"]
    pybuild("-o", f"type=local,dest={dest},mode=delete", context).ok()
    assert os.listdir(dest) == ["f"] and os.listdir(outside) == ["kept"]
    store = pybuild.store.parent
    assert (
        "would remove the store"
        in pybuild("-o", f"type=local,mode=delete,dest={store}", context).failed().err
    )
    assert "copy or delete" in pybuild("-o", f"type=local,mode=move,dest={dest}", context).failed(2).err


def test_this_machine_by_name(pybuild: Pybuild) -> None:
    """``host-gateway``: known where steps share the machine's network, else said to be out of reach."""
    hosts = "FROM busybox\nRUN {}grep '^127.0.0.1.here' /etc/hosts\n"
    option = "--add-host=here:host-gateway"
    pybuild(option, "--network=host", "--no-cache", pybuild.context(hosts.format(""))).ok()
    done = pybuild(option, "--no-cache", pybuild.context(hosts.format("! "))).ok()
    assert "--add-host here: steps cannot reach the host" in done.err
