"""What is said of images that were really built: by the packages' own managers, and by the plan."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
from pathlib import Path

import pytest
from harness import Pybuild

from builder.attest.make import packages_of, sbom_of
from builder.attest.packages import Found
from builder.attest.sbom import CYCLONEDX, PREDICATE_TYPES, SPDX
from builder.attest.statement import Subject
from builder.image.local import find
from builder.image.model import MANIFEST_TYPE, ImageConfig
from cache.descriptor import Descriptor
from cache.store import Store

pytestmark = pytest.mark.e2e

NONE = "--network=none"
STATUS = "/var/lib/dpkg/status"


def found_in(pybuild: Pybuild, name: str) -> tuple[Found, ImageConfig]:
    """The packages of an image, and its config."""
    with Store(str(pybuild.store)) as store:
        _image, config = find(store, name)
        return packages_of(store, config), config


def test_debian_as_dpkg_says(pybuild: Pybuild) -> None:
    """The database of this machine, in an image: every package that dpkg has files of, and no other."""
    context = pybuild.context(
        "FROM busybox\nCOPY status /var/lib/dpkg/status\nCOPY release /etc/os-release\n"
    )
    (context / "status").write_bytes(Path(STATUS).read_bytes())
    (context / "release").write_bytes(Path("/etc/os-release").read_bytes())
    pybuild(NONE, "-t", "dpkg:1", context).ok()
    found, _config = found_in(pybuild, "dpkg:1")
    query = "${db:Status-Status} ${Package} ${Version} ${Architecture} ${source:Package}\n"
    wanted = set()
    for line in subprocess.check_output(["dpkg-query", "-W", "-f", query], text=True).splitlines():
        state, name, version, arch, source = line.split(" ")
        if state not in ("not-installed", "config-files"):
            wanted.add((name, version, arch, source if source != name else ""))
    assert len(wanted) > 50 and found.gaps == ()
    assert {(item.name, item.version, item.arch, item.source) for item in found.packages} == wanted
    assert found.distribution.id == "debian"


def test_python_as_python_says(pybuild: Pybuild) -> None:
    """The distributions of this very environment, in an image."""
    own = list(importlib.metadata.distributions())
    context = pybuild.context("FROM busybox\nCOPY site-packages /opt/venv/lib/python3.11/site-packages/\n")
    wanted = set()
    for item in own:
        path = Path(str(item._path)) if hasattr(item, "_path") else None  # an egg-link has none
        if path is None or path.suffix != ".dist-info":
            continue
        folder = context / "site-packages" / path.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "METADATA").write_bytes((path / "METADATA").read_bytes())
        wanted.add((item.metadata["Name"], item.version))
    pybuild(NONE, "-t", "venv:1", context).ok()
    found, _config = found_in(pybuild, "venv:1")
    assert len(wanted) > 10 and {(item.name, item.version) for item in found.packages} == wanted
    assert found.gaps == ()


def test_only_the_result(pybuild: Pybuild) -> None:
    """Not what other stages have, nor what a later step removed or made anew; the same after a cached build."""
    package = '{{"name": "{}", "version": "{}"}}'
    files = {
        "a.json": package.format("a", "1"),
        "b.json": package.format("b", "1"),
        "b2.json": package.format("b", "2"),
        "c.json": package.format("c", "1"),
    }
    text = """FROM busybox AS build
COPY a.json /node_modules/a/package.json
FROM busybox
COPY b.json /node_modules/b/package.json
COPY c.json /x/node_modules/c/package.json
RUN rm -r /x/node_modules && mkdir -p /x/node_modules/d && mkfifo /x/node_modules/d/package.json
RUN ln -s /node_modules /y && ln -s .. /node_modules/up
COPY b2.json /node_modules/b/package.json
COPY --from=build /node_modules/a/package.json /a.json
"""
    context = pybuild.context(text, files)
    said = []
    for _ in range(2):
        pybuild(NONE, "-t", "only:1", context).ok()
        found, config = found_in(pybuild, "only:1")
        assert [(item.name, item.version) for item in found.packages] == [("b", "2")] and not found.gaps
        subject = Subject(
            ("docker.io/library/only:1",),
            Descriptor(MANIFEST_TYPE, config.diff_ids[0], 1),
            config.platform,
            config.created,
        )
        with Store(str(pybuild.store)) as store:
            said.append([sbom_of(store, subject, found, form) for form in (SPDX, CYCLONEDX)])
    assert said[0] == said[1]
    for made, form in zip(said[0], (SPDX, CYCLONEDX), strict=True):
        value = json.loads(made.statement)
        assert value["predicateType"] == PREDICATE_TYPES[form]
        assert "pkg:npm/b@2" in made.statement.decode()


def test_hostile_image(pybuild: Pybuild) -> None:
    """A step that leaves the worst it can: the image is built, the search ends, and says what it missed."""
    text = """FROM busybox
RUN mkdir -p /var/lib/dpkg /lib/apk/db /node_modules/a /node_modules/b /usr/lib \\
 && dd if=/dev/urandom of=/var/lib/dpkg/status bs=1M count=4 2>/dev/null \\
 && ln -s /proc/self/environ /lib/apk/db/installed && ln -s os-release /etc/os-release \\
 && truncate -s 3M /node_modules/a/package.json && ln -s /etc/shadow /node_modules/b/package.json
"""
    pybuild(NONE, "-t", "hostile:1", pybuild.context(text)).ok()
    found, _config = found_in(pybuild, "hostile:1")
    assert found.packages == {}
    places = [gap.partition(": ")[0] for gap in found.gaps]
    assert places == ["/etc/os-release", "/var/lib/dpkg/status", "/node_modules/a/package.json"]
