"""Exports, saves, loads, names: what leaves, what comes in, what the store shows."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from harness import PYBUILD, Pybuild
from oci import Image, read_image

pytestmark = pytest.mark.e2e


def test_to_a_file_and_to_standard_output(pybuild: Pybuild) -> None:
    """``-o`` twice in one build; ``-`` carries nothing but the archive."""
    context = pybuild.context("FROM busybox\nCOPY f /f\n", {"f": "1"})
    file = pybuild.work / "a.tar"
    done = subprocess.run(
        [PYBUILD, "-o", f"type=oci,dest={file}", "-o", "type=oci,dest=-", context],
        env=pybuild.environment(),
        capture_output=True,
        check=True,
    )
    assert done.stdout == file.read_bytes()
    assert read_image(done.stdout).read("f") == b"1"


def test_export_is_reproducible(pybuild: Pybuild) -> None:
    context = pybuild.context("FROM busybox\nCOPY f /f\n", {"f": "1"})
    pybuild.export(context)
    first = (pybuild.work / "export.tar").read_bytes()
    pybuild.export(context)
    assert (pybuild.work / "export.tar").read_bytes() == first


def test_export_into_a_missing_folder(pybuild: Pybuild) -> None:
    """Nothing is tagged when an export fails."""
    context = pybuild.context("FROM busybox\n")
    said = pybuild("-t", "unexported", "-o", f"type=oci,dest={pybuild.work}/no/a.tar", context).failed().err
    assert "no/a.tar" in said
    assert "unexported" not in pybuild("images").out


def test_export_replaces_at_once(pybuild: Pybuild) -> None:
    """What was there stays whole until the new archive is; a full disk leaves it."""
    small = pybuild.work / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", small], check=True)
    try:
        (small / "a.tar").write_bytes(b"old")
        context = pybuild.context("FROM busybox\nCOPY f /f\n", {"f": os.urandom(4 << 20)})
        said = pybuild("-o", f"type=oci,dest={small}/a.tar", context).failed().err
        assert "space" in said
        assert [p.name for p in small.iterdir()] == ["a.tar"] and (small / "a.tar").read_bytes() == b"old"
    finally:
        subprocess.run(["umount", small], check=True)


def test_iidfile_quiet_images(pybuild: Pybuild) -> None:
    """The image ID is the digest of the config, the same everywhere."""
    context = pybuild.context("FROM busybox\nENV x=iid\n")
    iid = pybuild.work / "iid"
    out = pybuild("-q", "-t", "iid:7", "-t", "other/iid", "--iidfile", iid, context).ok().out.strip()
    assert out == iid.read_text() and re.fullmatch("sha256:[0-9a-f]{64}", out)
    assert pybuild.export(context).manifest["config"]["digest"] == out
    rows = [line.split() for line in pybuild("images").out.splitlines()]
    assert {row[0] for row in rows if row[1] == out[7:19]} == {"iid:7", "other/iid:latest"}


def test_save_and_load(pybuild: Pybuild, fresh: Pybuild) -> None:
    """An image goes from store to store unchanged, by file and through a pipe."""
    context = pybuild.context('FROM busybox\nCOPY f /f\nRUN rm /f\nCMD ["x"]\n', {"f": "1"})
    image = pybuild("-q", "-t", "travel:1", "--network=none", context).ok().out
    archive = pybuild.work / "t.tar"
    pybuild("save", "travel:1", "-o", archive).ok()
    assert "docker.io/library/travel:1" in fresh("load", archive).ok().out
    assert fresh("-q", fresh.context("FROM travel:1\n")).ok().code == 0
    assert image[7:19] in fresh("images").out
    piped = subprocess.run(
        [PYBUILD, "save", "travel:1"], env=pybuild.environment(), stdout=subprocess.PIPE, check=True
    ).stdout
    assert piped == archive.read_bytes()
    assert fresh("load", "-", stdin=piped).ok()
    assert fresh("run", "--network=none", "travel:1", "ls", "/").ok().out.count("f\n") == 0


def test_save_of_nothing(pybuild: Pybuild) -> None:
    said = pybuild("save", "nope", "-o", pybuild.work / "x.tar").failed().err
    assert "nope" in said and "pybuild images" in said
    assert not (pybuild.work / "x.tar").exists()


def rewritten(archive: Path, change: dict[str, bytes], out: Path) -> Path:
    """The archive with some files' bytes replaced."""
    with tarfile.open(archive) as old, tarfile.open(out, "w") as new:
        for member in old:
            data = b""
            if member.isreg():
                data = change.get(member.name, old.extractfile(member).read())  # type: ignore[union-attr]
                member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    return out


def docker_manifest(image: Image, names: object) -> bytes:
    """What ``docker save`` writes of an image, with something odd for its names."""
    paths = ["blobs/" + layer["digest"].replace(":", "/") for layer in image.manifest["layers"]]
    config = "blobs/" + image.manifest["config"]["digest"].replace(":", "/")
    return json.dumps([{"Config": config, "RepoTags": names, "Layers": paths}]).encode()


def test_load_on_a_full_disk(fresh: Pybuild, tmp_path: Path) -> None:
    """Said in a line, and nothing is left."""
    fresh("-t", "big", fresh.context("FROM scratch\nCOPY f /f\n", {"f": os.urandom(8 << 20)})).ok()
    archive = tmp_path / "big.tar"
    fresh("save", "big", "-o", archive).ok()
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", mount], check=True)
    try:
        small = Pybuild(mount / "store", tmp_path)
        assert "no space left" in small("load", archive).failed().err
        assert not list((mount / "store/tmp").iterdir())
    finally:
        subprocess.run(["umount", mount], check=True)


def test_load_of_what_lies(fresh: Pybuild) -> None:
    """Digests, sizes and diff IDs are checked before anything is named (REG)."""
    fresh("-t", "good", fresh.context("FROM busybox\nCOPY f /f\n", {"f": "1"})).ok()
    archive = fresh.work / "good.tar"
    fresh("save", "good", "-o", archive).ok()
    image = read_image(archive)
    index = json.loads(image.files["index.json"])
    manifest_name = "blobs/" + index["manifests"][0]["digest"].replace(":", "/")
    layer_name = "blobs/" + image.manifest["layers"][-1]["digest"].replace(":", "/")
    other_layer = image.files["blobs/" + image.manifest["layers"][0]["digest"].replace(":", "/")]
    index["manifests"][0]["size"] = 5
    lies = {
        "manifest": {manifest_name: image.files[manifest_name].replace(b"sha256", b"sha256", 1) + b" "},
        "layer": {layer_name: other_layer},
        "index": {"index.json": b"[" * 100000},
        "index-json": {"index.json": b"{}"},
        "size-true": {
            "index.json": json.dumps(index | {"manifests": [index["manifests"][0] | {"size": True}]}).encode()
        },
        "size": {"index.json": json.dumps(index).encode()},
        "docker-names": {"manifest.json": docker_manifest(image, 5)},
        "docker-name": {"manifest.json": docker_manifest(image, [5])},
        "layout": {"oci-layout": b"{}", "manifest.json": b"[]"},
    }
    target = Pybuild(fresh.work / "target", fresh.work)
    for name, lie in lies.items():
        bad = rewritten(
            archive,
            {**lie, **({} if "manifest.json" in lie else {"manifest.json": b"[]"})},
            fresh.work / "bad.tar",
        )
        done = target("load", bad)
        assert done.code == 1 and "Traceback" not in done.err, (name, done.err)
        assert target("images").out.count("\n") == 1, name
    assert target("load", archive).ok().out.startswith("loaded")


def test_bad_names_and_options(pybuild: Pybuild) -> None:
    """A usage error is code 2 and says what would be right."""
    context = pybuild.context("FROM busybox\n")
    for options, says in (
        (["-t", "UPPER"], "UPPER"),
        (["-t", "a:b:c"], "a:b:c"),
        (["-t", "../x"], "../x"),
        (["--jobs", "0"], "--jobs"),
        (["--nope"], "--nope"),
        (["-o", "type=zip,dest=x"], "zip"),
        (["-o", "type=oci"], "dest"),
        (["--build-arg", "=x"], "--build-arg"),
        (["--pull=perhaps"], "--pull"),
        (["--cache-to=type=gha,mode=max"], "docs/ci.md"),
    ):
        done = pybuild(*options, context)
        assert done.code in (1, 2) and says in done.err and "Traceback" not in done.err, options
    assert pybuild(pybuild.work / "nowhere").failed(2).err.startswith("error: the build context")
    assert pybuild().failed(2)
    assert pybuild("--version").ok().out.startswith("pybuild ")
    assert "CONTEXT" in pybuild("--help").ok().out


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "binary", "huge"])
def test_dockerfile_that_is_none(pybuild: Pybuild, kind: str) -> None:
    """Never a hang, never a traceback."""
    context = pybuild.context(None)
    path = context / "Dockerfile"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "binary":
        path.write_bytes(b"\x7fELF\0\xff\xfe" * 100)
    elif kind == "huge":
        path.write_bytes(b"# x\n" * (5 << 20))
    assert "Dockerfile" in pybuild(context, timeout=20).failed().err


def test_options_of_docker(pybuild: Pybuild) -> None:
    """What scripts say to docker is no error where it changes nothing here, or has another name."""
    context = pybuild.context("FROM busybox\nLABEL a=b\n")
    pybuild("build", "--rm", "--force-rm", "-m", "512m", "-o", "type=cacheonly", "--pull=false", context).ok()


def test_dockerfile_elsewhere(pybuild: Pybuild, tmp_path: Path) -> None:
    """``-f`` outside the context, a link, lower case; errors name the file as given."""
    context = pybuild.context(None, {"f": "1"})
    (tmp_path / "other").write_text("FROM scratch\nCOPY f /\n")
    assert pybuild.export(context, "-f", tmp_path / "other").tree() == {"f": "1"}
    (context / "dockerfile").write_text("FROM scratch\nCOPY f /lower\n")
    assert pybuild.export(context).tree() == {"lower": "1"}
    (context / "Dockerfile").symlink_to("real")
    (context / "real").write_text("FROM scratch\nCOPY f /linked\n")
    assert pybuild.export(context).tree() == {"linked": "1"}
    (context / "Dockerfile").unlink()
    (context / "Dockerfile").symlink_to("/etc/hostname")
    pybuild(context).failed()


def test_progress_on_a_terminal(pybuild: Pybuild) -> None:
    """A terminal gets bars and every line of output; nothing else is mixed in."""
    import fcntl
    import pty
    import struct
    import termios

    context = pybuild.context("FROM busybox\nRUN echo shown-line\n")
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    build = subprocess.Popen(
        [PYBUILD, "--no-cache", "--network=none", context],
        env=pybuild.environment({"TERM": "xterm"}),
        stderr=side,
    )
    os.close(side)
    said = b""
    try:
        while data := os.read(main, 4096):
            said += data
    except OSError:
        pass  # the other side is closed
    os.close(main)
    assert build.wait(timeout=20) == 0
    assert b"steps: 1/2" in said
    assert b"RUN echo shown-line" in said and b"shown-line\r\n" in said


def test_layout_in_a_folder(pybuild: Pybuild, fresh: Pybuild, tools: dict[str, str], tmp_path: Path) -> None:
    """Several images in one, each under its name; skopeo reads it, and it is loaded and built on as it is."""
    dest = tmp_path / "layout"
    for name, word in (("one:1", "a"), ("two:2", "b"), ("one:1", "c")):
        context = pybuild.context("FROM scratch\nCOPY f /f\n", {"f": word})
        pybuild("-t", name, "-o", f"type=oci,dest={dest},tar=false", context).ok()
    index = json.loads((dest / "index.json").read_text())
    names = [item["annotations"]["org.opencontainers.image.ref.name"] for item in index["manifests"]]
    assert sorted(names) == ["1", "2"]
    subprocess.run(
        [tools["skopeo"], "copy", f"oci:{dest}:1", f"dir:{tmp_path}/copy"], check=True, capture_output=True
    )
    assert fresh("load", dest).ok().out.split() == [
        "loaded",
        "docker.io/library/two:2",
        "loaded",
        "docker.io/library/one:1",
    ]
    assert fresh.export(fresh.context("FROM one:1\nLABEL a=b\n"), "--network=none").read("f") == b"c"
    for bad in ("type=docker,dest={},tar=false", "type=oci,dest=-,tar=false"):
        pybuild("-o", bad.format(dest), context).failed(2)
    (dest / "index.json").write_text("[]")
    assert "not the index" in pybuild("-o", f"type=oci,dest={dest},tar=false", context).failed().err
    assert "index.json" in fresh("load", dest).failed().err


def test_two_builds_write_to_one_layout(pybuild: Pybuild, tmp_path: Path) -> None:
    """Whoever changes a layout's index has it to itself: a name that comes meanwhile is not lost."""
    dest = tmp_path / "layout"
    context = pybuild.context("FROM scratch\nCOPY f /f\n", {"f": "a"})
    pybuild("-t", "one:1", "-o", f"type=oci,dest={dest},tar=false", context).ok()
    folder = os.open(dest, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    command = [PYBUILD, "-t", "two:2", "-o", f"type=oci,dest={dest},tar=false", str(context)]
    waiting = subprocess.Popen(command, env=pybuild.environment(), stderr=subprocess.DEVNULL)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(2)
        index = json.loads((dest / "index.json").read_text())
        (other,) = index["manifests"]
        other["annotations"]["org.opencontainers.image.ref.name"] = "3"
        (dest / "index.json").write_text(json.dumps(index))
    finally:
        os.close(folder)
        assert waiting.wait(60) == 0
    names = [
        item["annotations"]["org.opencontainers.image.ref.name"]
        for item in json.loads((dest / "index.json").read_text())["manifests"]
    ]
    assert names == ["3", "2"]
    assert sorted(os.listdir(dest)) == ["blobs", "index.json", "oci-layout"]


def test_metadata_of_what_was_exported(pybuild: Pybuild, tmp_path: Path) -> None:
    """The digest to deploy: that of the manifest."""
    context, file = pybuild.context("FROM scratch\nLABEL a=b\n"), tmp_path / "m.json"
    archive = tmp_path / "o.tar"
    pybuild("-o", f"type=oci,dest={archive}", "--metadata-file", file, context).ok()
    said = json.loads(file.read_text())
    with tarfile.open(archive) as tar:
        packed = tar.extractfile("index.json")
        assert packed is not None
        (top,) = json.loads(packed.read())["manifests"]
    assert said["containerimage.digest"] == top["digest"] == said["containerimage.descriptor"]["digest"]
    pybuild("--metadata-file", file, context).ok()
    assert "containerimage.digest" not in json.loads(file.read_text())


def test_folder_without_privileges(pybuild: Pybuild) -> None:
    """Files of a folder belong to who builds: none lets others be that user. A tar keeps what the image has."""
    text = "FROM scratch\nCOPY --chmod=6755 f /d/\nCOPY --chmod=2755 f /g\nCOPY --chmod=1777 f /s\n"
    context, out = pybuild.context(text, {"f": "1"}), pybuild.work / "out"
    done = pybuild("-o", f"type=local,dest={out}", "-o", f"type=tar,dest={out}.tar", context).ok()
    modes = {name: (out / name).stat().st_mode & 0o7777 for name in ("d/f", "g", "s")}
    assert modes == {"d/f": 0o755, "g": 0o755, "s": 0o1777}
    assert done.err.count("2 files lose their setuid or setgid bits") == 1
    with tarfile.open(f"{out}.tar") as tar:
        assert tar.getmember("d/f").mode == 0o6755
