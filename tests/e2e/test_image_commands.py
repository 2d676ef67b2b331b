"""images, inspect and history for programs: --json, --format, -q."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path

import pytest
from harness import Pybuild

pytestmark = pytest.mark.e2e

NONE = "--network=none"


@pytest.fixture
def image(fresh: Pybuild) -> str:
    context = fresh.context("FROM busybox\nCOPY f /f\nENV a=1\nLABEL l=m\n", {"f": "1" * 2000})
    return fresh(NONE, "-q", "-t", "example.com:5000/one/two:3", context).ok().out.strip()


def test_images(fresh: Pybuild, image: str) -> None:
    rows = {row["Name"]: row for row in json.loads(fresh("images", "--json").ok().out)}
    row = rows["example.com:5000/one/two:3"]
    assert (row["Repository"], row["Tag"], row["ID"]) == ("example.com:5000/one/two", "3", image)
    assert row["Size"] > rows["busybox:latest"]["Size"] > 0 and row["Platform"].startswith("linux/")
    line = fresh("images", "--format", "{{.Repository}}\\t{{.Tag}} {{.ID}}").ok().out
    assert f"example.com:5000/one/two\t3 {image[7:19]}\n" in line
    assert set(fresh("images", "-q", "--no-trunc").ok().out.split()) == {image, rows["busybox:latest"]["ID"]}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("busybox", ["busybox:latest"]),
        ("docker.io/library/busybox", ["busybox:latest"]),
        ("example.com:5000/one/two", ["example.com:5000/one/two:3"]),
        ("example.com:5000/one/two:3", ["example.com:5000/one/two:3"]),
        ("example.com:5000/one/two:4", []),
        ("busy", []),
    ],
)
def test_images_of_a_name(fresh: Pybuild, image: str, name: str, shown: list[str]) -> None:
    assert fresh("images", name, "--format", "{{.Name}}").ok().out.splitlines() == shown


def test_several_in_one_archive(fresh: Pybuild, image: str, tools: dict[str, str]) -> None:
    """save writes them with each of their names once; load takes them in, also as docker is called."""
    fresh("tag", "example.com:5000/one/two:3", "again:1").ok()
    archive = fresh.work / "some.tar"
    fresh("save", "busybox", "again:1", "example.com:5000/one/two:3", "busybox", "-o", archive).ok()
    with tarfile.open(archive) as tar:
        member = tar.extractfile("manifest.json")
        assert member is not None
        names = [item["RepoTags"] for item in json.load(member)]
        assert len(tar.getnames()) == len(set(tar.getnames()))
    assert names == [["busybox:latest"], ["again:1", "example.com:5000/one/two:3"]]
    listed = [tools["skopeo"], "inspect", f"docker-archive:{archive}:again:1"]
    assert json.loads(subprocess.check_output(listed))["Labels"] == {"l": "m"}
    calls: list[tuple[list[str | Path], bytes]] = [
        (["load", archive], b""),
        (["load", "-i", archive], b""),
        (["load"], archive.read_bytes()),
    ]
    for number, (args, stdin) in enumerate(calls):
        other = Pybuild(fresh.work / f"other{number}", fresh.work)
        said = other(*args, stdin=stdin).ok().out
        assert sorted(line.split()[-1].rpartition("/")[2] for line in said.splitlines()) == [
            "again:1", "busybox:latest", "two:3",
        ]  # fmt: skip
        assert image[7:19] in other("images", "-q").ok().out


def test_rmi_by_force(fresh: Pybuild, image: str) -> None:
    assert "no image 'gone'" in fresh("rmi", "gone").failed().err
    assert "untagged example.com:5000/one/two:3" in fresh("rmi", "-f", "gone", image[7:19]).ok().out


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{.Id}}", "{image}"),
        ("{{ .Os }}/{{.RootFS.Type}}", "linux/layers"),
        ("{{json .Config.Labels}}", '{{"l": "m"}}'),
        ("{{.Config.Labels}}", '{{"l": "m"}}'),
        ("{{json .RepoTags}}", '["example.com:5000/one/two:3"]'),
        ("plain", "plain"),
    ],
)
def test_inspect(fresh: Pybuild, image: str, template: str, expected: str) -> None:
    found = fresh("inspect", "-f", template, "example.com:5000/one/two:3").ok().out
    assert found == expected.format(image=image) + "\n"
    (value,) = json.loads(fresh("inspect", image[7:19]).ok().out)
    assert value["RootFS"]["Layers"] and value["History"][-1]["created_by"] == "LABEL l=m"


@pytest.mark.parametrize(
    "template", ["{{.Nothing}}", "{{.Id.Deeper}}", "{{range .RepoTags}}", "{{.Config.Env.x}}"]
)
def test_templates_that_say_nothing(fresh: Pybuild, image: str, template: str) -> None:
    assert "--format" in fresh("inspect", "--format", template, image[7:19]).failed(2).err


def test_history(fresh: Pybuild, image: str) -> None:
    said = fresh("history", "--format", "{{.CreatedBy}}|{{.Size}}", image[7:19]).ok().out.splitlines()
    assert said[0] == "LABEL l=m|0" and said[2].startswith("COPY f /f") and int(said[2].split("|")[1]) >= 2000


def test_results_of_transfers(fresh: Pybuild, image: str) -> None:
    """Errors stay text, and results JSON."""
    assert fresh("pull", "--json", "127.0.0.1:9/nothing").failed().out == ""
