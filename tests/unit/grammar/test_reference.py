"""Image references: what is completed, what is shown, what is refused."""

from __future__ import annotations

import time

import pytest
from pytest import param

from grammar.errors import ReferenceError_
from grammar.reference import Reference, parse_reference

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest"),
    [
        param("busybox", "docker.io", "library/busybox", "latest", "", id="official"),
        param("busybox:1.36", "docker.io", "library/busybox", "1.36", "", id="tag"),
        param("me/app", "docker.io", "me/app", "latest", "", id="two-parts"),
        param("a/b/c", "docker.io", "a/b/c", "latest", "", id="three-parts-no-host"),
        param("docker.io/app", "docker.io", "library/app", "latest", "", id="official-with-registry"),
        param("index.docker.io/app:x", "docker.io", "library/app", "x", "", id="old-registry-name"),
        param("ghcr.io/a/b:v1", "ghcr.io", "a/b", "v1", "", id="dot-makes-a-host"),
        param("localhost/a", "localhost", "a", "latest", "", id="localhost-is-a-host"),
        param("host:5000/a", "host:5000", "a", "latest", "", id="port-makes-a-host"),
        param("host:5000/a:6", "host:5000", "a", "6", "", id="port-and-tag"),
        param("HOST/a", "HOST", "a", "latest", "", id="capitals-make-a-host"),
        param("localhost:5000", "docker.io", "library/localhost", "5000", "", id="tag-not-port"),
        param("[::1]:5000/a", "[::1]:5000", "a", "latest", "", id="IPv6-port"),
        param("[fe80::1]/a", "[fe80::1]", "a", "latest", "", id="IPv6"),
        param(f"a@{DIGEST}", "docker.io", "library/a", "", DIGEST, id="digest-needs-no-tag"),
        param(f"a:1@{DIGEST}", "docker.io", "library/a", "1", DIGEST, id="tag-and-digest"),
        param("a_b/c__d/e-f/g---h/i.j", "docker.io", "a_b/c__d/e-f/g---h/i.j", "latest", "", id="joins"),
        param("a:_T.a-" + "x" * 123, "docker.io", "library/a", "_T.a-" + "x" * 123, "", id="tag-128"),
        param(HEX[:63], "docker.io", f"library/{HEX[:63]}", "latest", "", id="63-hex-digits"),
        param(f"x/{HEX}", "docker.io", f"x/{HEX}", "latest", "", id="64-hex-digits-below-a-name"),
    ],
)
def test_completed(text: str, registry: str, repository: str, tag: str, digest: str) -> None:
    found = parse_reference(text)
    assert found == Reference(registry, repository, tag, digest)
    assert parse_reference(str(found)) == found
    assert parse_reference(found.familiar) == found


@pytest.mark.parametrize(
    ("text", "familiar", "full"),
    [
        ("busybox", "busybox:latest", "docker.io/library/busybox:latest"),
        ("docker.io/me/app:1", "me/app:1", "docker.io/me/app:1"),
        ("ghcr.io/library/x", "ghcr.io/library/x:latest", "ghcr.io/library/x:latest"),
        (f"a@{DIGEST}", f"a@{DIGEST}", f"docker.io/library/a@{DIGEST}"),
    ],
)
def test_shown(text: str, familiar: str, full: str) -> None:
    found = parse_reference(text)
    assert (found.familiar, str(found)) == (familiar, full)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "@", "/", "a/", "/a", "a//b", "a:", ":a", "a@", " a", "a b", "a\n", "a\x00"),
        *("App", "me/App", "ghcr.io/App", "ü", "a/-b", "a-", "-a", "a..b", "a._b", "a___b", "_a", ".a/b"),
        *("a:.x", "a:-x", "a:x/y:", "a:" + "x" * 129, "a:é", "a:b:c", "http://a/b"),
        *("a@sha256:", f"a@sha256:{HEX[:-1]}", f"a@sha256:{HEX}0", f"a@sha256:{HEX.upper()}"),
        *(
            f"a@md5:{HEX}",
            f"a@{DIGEST}@{DIGEST}",
            f"@{DIGEST}",
            HEX,
            f"{HEX}:tag",
            "-x.y/a",
            "x-.y/a",
            "x..y/a",
        ),
        *(
            "h.x:0/a",
            "h.x:65536/a",
            "h.x:/a",
            "h.x:٣/a",
            "h.x:1x/a",
            "[::1/a",
            "[]/a",
            "[g]/a",
            "h_x.y/a",
            "../a",
        ),
        *("a/" * 128 + "a", "a" * 256, "a" * 10_000),
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(ReferenceError_):
        parse_reference(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("App", "must be lower case"),
        ("a:-", "the tag '-' is invalid"),
        (f"a@md5:{HEX}", "is not a sha256 digest"),
        ("h.x:0/a", "'0' is not a port number"),
        (HEX, "image ID"),
        ("a" * 250, "longer than 255"),
    ],
)
def test_refusals_name_the_part(text: str, message: str) -> None:
    with pytest.raises(ReferenceError_, match=message):
        parse_reference(text)


def test_name_limit_counts_the_registry() -> None:
    longest = "a" * (255 - len("docker.io/library/"))
    assert parse_reference(longest).repository.endswith(longest)
    with pytest.raises(ReferenceError_):
        parse_reference(longest + "a")


@pytest.mark.parametrize("text", ["a" + "-" * 1_000_000, "a." * 500_000, "/" * 1_000_000, ":" * 1_000_000])
def test_hostile_names_end_soon(text: str) -> None:
    start = time.process_time()
    with pytest.raises(ReferenceError_):
        parse_reference(text)
    assert time.process_time() - start < 2
