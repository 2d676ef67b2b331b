"""Bills of materials: SPDX and CycloneDX, equal bytes, times."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attested import FOUND, IMAGE, PACKAGES, SUBJECT

from builder.attest.packages import Distribution, Found
from builder.attest.sbom import CYCLONEDX, SPDX, sbom
from builder.attest.statement import statement
from builder.oci.media_types import MANIFEST as MANIFEST_TYPE
from cache.descriptor import Descriptor
from cache.digest import digest_of
from grammar.structs import replace

SPDX_TOOLS = Path(sys.executable).with_name("pyspdxtools")


def check_spdx(document: dict[str, Any], folder: Path) -> None:
    """Have the document judged by the specification's own tools."""
    path = folder / "x.spdx.json"
    path.write_text(json.dumps(document))
    done = subprocess.run([SPDX_TOOLS, "-i", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "found",
    [
        FOUND,
        replace(FOUND, gaps=("/a: it is bad", "/b: so is it")),
        Found(Distribution(), {}, ()),
        Found(Distribution("x"), PACKAGES, ()),
    ],
    ids=["full", "gaps", "empty", "unknown"],
)
def test_spdx(found: Found, tmp_path: Path) -> None:
    document = sbom(found, SUBJECT, SPDX)
    check_spdx(document, tmp_path)
    assert document["creationInfo"]["created"] == "2024-05-06T07:08:09Z"
    assert all(gap in document.get("comment", "") for gap in found.gaps)
    ids = [item["SPDXID"] for item in document["packages"]]
    assert len(set(ids)) == len(ids)
    if found is FOUND:
        named = {item["name"]: item for item in document["packages"]}
        assert list(named)[:2] == ["registry.example.com/team/app:1", "debian"]
        assert named["libstdc++6"]["versionInfo"] == "1:12~rc1+b2"
        assert named["libstdc++6"]["externalRefs"][0]["referenceLocator"] == (
            "pkg:deb/debian/libstdc%2B%2B6@1:12~rc1%2Bb2?arch=amd64&distro=debian-12&upstream=gcc-12"
        )
        assert named["@babel/core"]["sourceInfo"].endswith("and 2 more files")
        assert sum("lask" in name for name in named) == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("found", [FOUND, replace(FOUND, gaps=("/a: bad",)), Found(Distribution(), {}, ())])
def test_cyclonedx(found: Found) -> None:
    document = sbom(found, SUBJECT, CYCLONEDX)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.5")
    assert document["metadata"]["component"]["name"] == "registry.example.com/team/app:1"
    assert document["metadata"]["component"]["version"] == IMAGE.digest
    assert document["metadata"]["timestamp"].startswith("2024-05-06T07:08:09")
    notes = [item["value"] for item in document["metadata"].get("properties", [])]
    assert notes == list(found.gaps)
    items = document.get("components", [])
    assert len({item["bom-ref"] for item in items}) == len(items)
    if found.packages:
        (babel,) = [item for item in items if item["name"] == "core"]
        assert babel["group"] == "@babel" and babel["purl"] == "pkg:npm/%40babel/core@7.0.0"
        assert len(babel["properties"]) == 5
        assert [item["name"] for item in items if item["type"] == "operating-system"] == ["debian"]


@pytest.mark.parametrize("form", [SPDX, CYCLONEDX])
def test_equal_bytes(form: str) -> None:
    """The same in every process, and in whatever order packages were found."""
    script = (
        "import sys; sys.path[:0] = [sys.argv[1]]; from attested import *;"
        "from builder.attest.sbom import sbom; from builder.attest.statement import statement;"
        "from grammar.structs import replace;"
        "backwards = replace(FOUND, packages=dict(reversed(PACKAGES.items())));"
        "sys.stdout.buffer.write(statement(SUBJECT, 'x', sbom(backwards, SUBJECT, sys.argv[2])))"
    )
    support = Path(__file__).parents[3] / "support"
    again = [
        subprocess.check_output(
            [sys.executable, "-c", script, support, form],
            env={"PYTHONHASHSEED": seed},
        )
        for seed in ("1", "2")
    ]
    assert again[0] == again[1] == statement(SUBJECT, "x", sbom(FOUND, SUBJECT, form))
    other = replace(SUBJECT, manifest=Descriptor(MANIFEST_TYPE, digest_of(b"other"), 5))
    key = {SPDX: "documentNamespace", CYCLONEDX: "serialNumber"}[form]
    assert sbom(FOUND, SUBJECT, form)[key] != sbom(FOUND, other, form)[key]


@pytest.mark.parametrize(
    ("created", "time"),
    [
        ("2024-05-06T07:08:09.123456789Z", "2024-05-06T07:08:09Z"),
        ("2024-05-06T07:08:09+02:00", "2024-05-06T05:08:09Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ("0001-01-01T00:00:00+10:00", "1970-01-01T00:00:00Z"),
        ("", "1970-01-01T00:00:00Z"),
        ("yesterday\0", "1970-01-01T00:00:00Z"),
    ],
)
def test_times(created: str, time: str) -> None:
    assert replace(SUBJECT, created=created).time == time
