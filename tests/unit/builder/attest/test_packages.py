"""Packages of an image's files: the four managers, merged layers, and what strangers put there."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from harness import Tree as Files
from harness import make_tree
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.attest import packages as packages_module
from builder.attest.databases import (
    Package,
    read_alpine,
    read_debian,
    read_npm,
    read_os_release,
    read_python,
)
from builder.attest.packages import Distribution, Found, find
from builder.attest.sbom import package_url
from builder.errors import BuildError
from cache.fs import OPAQUE
from cache.layer.merged_tree import Tree

STATUS = "Package: {0}\nStatus: install ok {2}\nArchitecture: amd64\nVersion: {1}\n\n"


def search(folder: Path, *layers: Files) -> Found:
    """What is found in *layers*, given from the bottom."""
    made = [make_tree(folder / str(number), layer) for number, layer in enumerate(layers)]
    return find(Tree(tuple(map(str, reversed(made)))))


def names(found: Found) -> list[str]:
    return [f"{item.kind} {item.namespace}/{item.name} {item.version}" for item in found.packages]


# -- what is found -------------------------------------------------------------------------


def test_debian(tmp_path: Path) -> None:
    text = (
        "Package: libssl3\nStatus: install ok installed\nArchitecture: amd64\nMulti-Arch: same\n"
        "Source: openssl (3.0.1-1)\nVersion: 3.0.1-1+b2\nDescription: a\n Package: fake\n Version: 9\n\n"
    )
    text += STATUS.format("gone", "1", "config-files") + STATUS.format("never", "1", "not-installed")
    text += STATUS.format("busy", "1:2~rc1", "triggers-pending")
    single = "Package: base-files\nVersion: 12.4\nArchitecture: all\n"
    found = search(
        tmp_path,
        {
            "var/lib/dpkg/status": text,
            "var/lib/dpkg/status.d": {"base": single, "base.md5sums": "0 usr/x\n"},
            "etc": {"os-release": "-> ../usr/lib/os-release"},
            "usr/lib/os-release": 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12"\n',
        },
    )
    assert found.gaps == () and found.distribution == Distribution("debian", "12", "Debian GNU/Linux 12")
    assert list(found.packages) == [
        Package("deb", "", "base-files", "12.4", "all"),
        Package("deb", "", "busy", "1:2~rc1", "amd64"),
        Package("deb", "", "libssl3", "3.0.1-1+b2", "amd64", "openssl"),
    ]
    assert next(iter(found.packages.values())) == ("var/lib/dpkg/status.d/base",)
    url = package_url(list(found.packages)[2], found.distribution).to_string()
    assert url == "pkg:deb/debian/libssl3@3.0.1-1%2Bb2?arch=amd64&distro=debian-12&upstream=openssl"


@pytest.mark.parametrize("linked", [False, True])
def test_alpine(tmp_path: Path, linked: bool) -> None:
    """Also where /lib is a link, and then once."""
    text = "C:Q1x=\nP:musl\nV:1.2.4-r2\nA:x86_64\no:musl\n\nP:musl-utils\nV:1.2.4-r2\nA:x86_64\no:musl\np:x\n"
    files: Files = {"lib/apk/db/installed": text}
    if linked:
        files = {"lib": "-> usr/lib", "usr/lib/apk/db/installed": text}
    found = search(tmp_path, {**files, "etc/os-release": "ID=alpine\nVERSION_ID=3.19.1\n"})
    assert names(found) == ["apk /musl 1.2.4-r2", "apk /musl-utils 1.2.4-r2"] and not found.gaps
    urls = [package_url(item, found.distribution).to_string() for item in found.packages]
    assert urls[0] == "pkg:apk/alpine/musl@1.2.4-r2?arch=x86_64&distro=alpine-3.19.1"
    assert urls[1].endswith("&upstream=musl")


def test_python(tmp_path: Path) -> None:
    metadata = "Metadata-Version: 2.1\nName: {}\nVersion: {}\n\nName: body\nVersion: 0\n"
    site = "opt/venv/lib/python3.11/site-packages"
    found = search(
        tmp_path,
        {
            f"{site}/zope.event-5.0.dist-info/METADATA": metadata.format("zope.event", "5.0"),
            f"{site}/Flask-2.dist-info/METADATA": metadata.format("Flask", "2"),
            f"{site}/old.egg-info/PKG-INFO": metadata.format("old", "1"),
            f"{site}/x.egg/EGG-INFO/PKG-INFO": metadata.format("egg", "1"),
            "usr/lib/python3/dist-packages/single-3.egg-info": metadata.format("single", "3"),
            "elsewhere/y.dist-info/METADATA": metadata.format("y", "1"),
            f"{site}/deep/z.dist-info/RECORD": "z",
        },
    )
    assert names(found) == [
        "pypi /Flask 2",
        "pypi /egg 1",
        "pypi /old 1",
        "pypi /single 3",
        "pypi /zope.event 5.0",
    ]
    assert not found.gaps
    urls = [package_url(item, found.distribution).to_string() for item in found.packages]
    assert urls[0] == "pkg:pypi/flask@2" and urls[4] == "pkg:pypi/zope.event@5.0"


def test_npm(tmp_path: Path) -> None:
    def package(name: str, version: str) -> str:
        return json.dumps({"name": name, "version": version, "scripts": {"install": "reboot"}})

    found = search(
        tmp_path,
        {
            "app/package.json": package("app", "1.0.0"),
            "app/node_modules/a/package.json": package("a", "1.0.0"),
            "app/node_modules/a/esm/package.json": '{"type": "module"}',
            "app/node_modules/@s/b/package.json": "\ufeff" + package("@s/b", "2.0.0"),
            "app/node_modules/a/node_modules/@s/b/package.json": package("@s/b", "2.0.0"),
            "app/node_modules/.bin/package.json": "-> ../a/package.json",
        },
    )
    assert names(found) == ["npm /a 1.0.0", "npm @s/b 2.0.0"] and not found.gaps
    assert len(list(found.packages.values())[1]) == 2
    urls = [package_url(item, found.distribution).to_string() for item in found.packages]
    assert urls == ["pkg:npm/a@1.0.0", "pkg:npm/%40s/b@2.0.0"]


def test_layers(tmp_path: Path) -> None:
    """What an upper layer removed, replaced or covered is not in the image."""
    below: Files = {
        "var/lib/dpkg/status": STATUS.format("a", "1", "installed"),
        "node_modules": {"gone": {"package.json": '{"name": "gone", "version": "1"}'}, "x": {"f": ""}},
        "covered/node_modules/y/package.json": '{"name": "y", "version": "1"}',
        "file/node_modules/z/package.json": '{"name": "z", "version": "1"}',
    }
    above: Files = {
        "var/lib/dpkg/status": STATUS.format("a", "2", "installed"),
        "node_modules": {"x": {"package.json": '{"name": "x", "version": "1"}'}},
        "covered": None,
        "file": "a file now",
    }
    lower, upper = make_tree(tmp_path / "0", below), make_tree(tmp_path / "1", above)
    os.setxattr(upper / "covered", OPAQUE, b"y")
    if os.geteuid() == 0:
        os.mknod(upper / "node_modules/gone", 0o020000, 0)
    found = find(Tree((str(upper), str(lower))))
    gone = [] if os.geteuid() == 0 else ["npm /gone 1"]
    assert names(found) == ["deb /a 2", *gone, "npm /x 1"] and not found.gaps


def test_nothing(tmp_path: Path) -> None:
    assert find(Tree(())) == Found(Distribution(), {}, ())
    assert search(tmp_path, {"bin/busybox": "x"}) == Found(Distribution(), {}, ())
    assert search(tmp_path / "2", {"var/lib/dpkg/status": ""}).gaps == ()


def test_os_release() -> None:
    text = b'# x\nID=de\\bian\nNAME=\'a b\'\nQ="say \\"hi\\""\nnonsense\n=x\n1A=2\nVERSION_ID=\n\xff=\xff\n'
    assert read_os_release(text) == {"ID": "de\\bian", "NAME": "a b", "Q": 'say "hi"', "VERSION_ID": ""}


# -- what strangers put there --------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "content", "why"),
    [
        ("var/lib/dpkg/status", b"\x7fELF\0\0\xff\xfe" * 100, "names no package"),
        ("var/lib/dpkg/status", b"Version: 1\n\nPackage: x\n\n", "no package"),
        ("var/lib/dpkg/status", b"Package: a b\nVersion: 1\n", "1 of its packages have no name"),
        ("var/lib/dpkg/status", b"Package: " + b"a" * 10_000 + b"\nVersion: 1\n", "no name"),
        ("var/lib/dpkg/status", b"Package: /\nVersion: 1\n", "no name"),
        ("var/lib/dpkg/status", b"Package: a\x1b[31m\nVersion: 1\n", "no name"),
        ("lib/apk/db/installed", b"P:x\n" * 1000, "no version"),
        ("site-packages/x.dist-info/METADATA", b"\0" * 100, "names no package"),
        ("node_modules/x/package.json", b"[" * 100_000, "nested too deeply"),
        ("node_modules/x/package.json", b'{"name": "a", "name": "b", "version": "1"}', "twice"),
        ("node_modules/x/package.json", b"\xff\xfe", "not valid JSON"),
        ("node_modules/x/package.json", b'{"name": "x", "version": "1"}' + b" " * (1 << 20), "larger than"),
        ("node_modules/x/package.json", b'{"name": "../../x", "version": "1"}', "no name"),
        ("node_modules/x/package.json", b'{"name": "@a/b/c", "version": "1"}', "no name"),
        (
            "node_modules/x/package.json",
            b'{"name": "x", "version": ' + b"9" * 10_000 + b"}",
            "too many digits",
        ),
    ],
)
def test_hostile_files(tmp_path: Path, path: str, content: bytes, why: str) -> None:
    """What cannot be read is told, and nothing else suffers: a good package beside it is found."""
    good = '{"name": "good", "version": "1"}'
    found = search(tmp_path, {path: content, "node_modules/good/package.json": good})
    assert names(found) == ["npm /good 1"]
    (gap,) = found.gaps
    if "no package" not in why:
        assert why in gap
    assert gap.startswith(f"/{path}: ") and len(gap) < 500 and gap.isprintable()


def test_bad_text(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 in values and in names of files, and lone surrogates."""
    surrogate = b'{"name": "s\\ud800", "version": "1"}'
    folder = os.fsdecode(b"node_modules/\xff\xfe")
    status = b"Package: caf\xe9\nVersion: 1\nStatus: install ok installed\n"
    found = search(tmp_path, {f"{folder}/package.json": surrogate, "var/lib/dpkg/status": status})
    assert names(found) == ["deb /caf\ufffd 1", "npm /s\ufffd 1"]
    for paths in found.packages.values():
        "".join(paths).encode()


def test_names_that_write_on_terminals(tmp_path: Path) -> None:
    found = search(tmp_path, {"node_modules/\x1b[2J\n/package.json": "{"})
    assert found.gaps[0].startswith("/node_modules/?[2J?/package.json: it is not valid JSON")
    assert found.gaps[0].isprintable()


@pytest.mark.no_cover
def test_huge_database(tmp_path: Path) -> None:
    """A sparse file of a terabyte is not read; one of 30 MB is, in seconds."""
    path = make_tree(tmp_path / "0", {"var/lib/dpkg/x": ""}) / "var/lib/dpkg/status"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    (gap,) = find(Tree((str(tmp_path / "0"),))).gaps
    assert "larger than" in gap
    path.write_bytes(b"\n" * (15 << 20) + b"Package: a\n" * (1 << 20) + b"Version: 1\n")
    started = time.monotonic()
    assert names(find(Tree((str(tmp_path / "0"),)))) == ["deb /a 1"]
    assert time.monotonic() - started < 30


def test_links(tmp_path: Path) -> None:
    """Links in circles, out of the image, and to folders that hold them."""
    secret = tmp_path / "secret"
    secret.write_text(STATUS.format("outside", "1", "installed"))
    found = search(
        tmp_path,
        {
            "var/lib/dpkg/status": f"-> ../../../../../../..{secret}",
            "lib/apk/db/installed": "-> installed",
            "etc/os-release": "-> /etc/os-release",
            "node_modules": {"loop": "-> ..", "self": "-> self", "x": {"package.json": f"-> {secret}"}},
        },
    )
    assert found.packages == {} and found.distribution == Distribution()
    assert sorted(gap.partition(":")[0] for gap in found.gaps) == ["/etc/os-release", "/lib/apk/db/installed"]


def test_special_files(tmp_path: Path) -> None:
    """A pipe is not opened, a folder in a file's place is no file."""
    top = make_tree(
        tmp_path / "0", {"var/lib/dpkg/x": "", "lib/apk/db/installed/x": "", "node_modules/p/f": ""}
    )
    os.mkfifo(top / "var/lib/dpkg/status")
    os.mkfifo(top / "node_modules/p/package.json")
    found = find(Tree((str(top),)))
    assert found.packages == {}
    assert sorted(found.gaps) == [
        "/lib/apk/db/installed: it is not a regular file",
        "/var/lib/dpkg/status: it is not a regular file",
    ]


def test_deep(tmp_path: Path) -> None:
    """Folders nested beyond what the kernel takes as a path end the way there, not the search."""
    top = make_tree(tmp_path / "0", {"node_modules/good/package.json": '{"name": "good", "version": "1"}'})
    script = 'cd "$0" && i=0; while [ $i -lt 60 ]; do mkdir $1 && cd -P $1 || exit 1; i=$((i+1)); done'
    subprocess.run(["bash", "-c", script, top, "d" * 200], check=True)
    found = find(Tree((str(top),)))
    assert names(found) == ["npm /good 1"]
    (gap,) = found.gaps
    assert "too deep" in gap or "too long" in gap


def test_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than is counted ends the search, and is told."""
    tree: Files = {
        f"node_modules/p{n}/package.json": f'{{"name": "p{n}", "version": "1"}}' for n in range(30)
    }
    bad: Files = {f"node_modules/p{n}/package.json": "{" for n in range(30)}
    for name, limit in (("_ENTRIES", 20), ("_PACKAGES", 10), ("_BYTES", 100)):
        with monkeypatch.context() as patch:
            patch.setattr(packages_module, name, limit)
            found = search(tmp_path / name, tree)
            assert len(found.packages) <= 10 and "ended early" in found.gaps[-1], name
    monkeypatch.setattr(packages_module, "_GAPS", 5)
    found = search(tmp_path / "gaps", bad)
    assert len(found.gaps) == 6 and found.gaps[-1] == "25 more files could not be read"


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    """Readers take anything, and whatever package they make has a URL."""
    for start in (b"", b"Package: ", b"P:", b"Name: ", b'{"name": "'):
        for reader in (read_debian, read_alpine, read_python, read_npm):
            try:
                found = [item for item in reader(start + data) if item is not None]
            except BuildError:
                continue
            for item in found:
                assert package_url(item, Distribution()).to_string().startswith(f"pkg:{item.kind}/")
    read_os_release(data)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=10))
def test_any_names(name: str, version: str, arch: str) -> None:
    """Every package that a database can name has a URL, which is one line of ASCII."""
    text = f"Package: {name}\nVersion: {version}\nArchitecture: {arch}\nSource: {version}\n"
    packages = [*read_debian(text.encode("utf-8", "replace"))]
    npm = json.dumps({"name": name, "version": version})
    for item in (*packages, *read_npm(npm.encode())):
        if item is not None:
            url = package_url(item, Distribution("debian", "12")).to_string()
            assert url.isascii() and url.isprintable() and " " not in url
