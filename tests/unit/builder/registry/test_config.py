"""registries.conf and the proxy variables, as tables: what name leads where, what is an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from builder.errors import BuildError
from builder.registry.config import Endpoint, endpoints, read_tables
from builder.registry.errors import Blocked
from builder.registry.proxies import proxy_for
from grammar.reference import parse_reference

DIGEST = "@sha256:" + "0" * 64
EXAMPLE = """
unqualified-search-registries = ["quay.io"]
short-name-mode = "enforcing"
[aliases]
"fedora" = "registry.fedoraproject.org/fedora"

[[registry]]
prefix = "example.com/foo"
location = "internal.example.net/bar"
[[registry.mirror]]
location = "mirror-0.test/foo"
[[registry.mirror]]
location = "mirror-1.test:5000/deep/foo"
insecure = true

[[registry]]
prefix = "example.com/foo/special"
[[registry.mirror]]
location = "special.test/s"
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "tags.test/s"
pull-from-mirror = "tag-only"

[[registry]]
location = "docker.io"
[[registry.mirror]]
location = "hub.test/proxy"

[[registry]]
prefix = "*.wild.test"
insecure = true
[[registry.mirror]]
location = "all.test"

[[registry]]
prefix = "bad.test"
blocked = true

[[registry]]
prefix = "tags.test/x:1"
blocked = true

[[registry]]
location = "digests.test"
mirror-by-digest-only = true
[[registry.mirror]]
location = "copies.test"
"""


Places = Callable[..., list[str]]


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """From a name to what the example makes of it."""
    path = tmp_path / "registries.conf"
    path.write_text(EXAMPLE)
    found = read_tables({"CONTAINERS_REGISTRIES_CONF": str(path)})

    def of(name: str, insecure: tuple[str, ...] = ()) -> list[str]:
        made = endpoints(parse_reference(name), found, frozenset(insecure))
        return [f"{e.registry}/{e.repository}{' insecure' if e.insecure else ''}" for e in made]

    return of


@pytest.mark.parametrize(
    "name, expected",
    [
        ("example.com/foo/x:1", ["mirror-0.test/foo/x", "mirror-1.test:5000/deep/foo/x insecure", "internal.example.net/bar/x"]),
        ("example.com/foo", ["mirror-0.test/foo", "mirror-1.test:5000/deep/foo insecure", "internal.example.net/bar"]),
        ("example.com/foobar", ["example.com/foobar"]),
        ("example.com/foo/special", ["tags.test/s", "example.com/foo/special"]),
        ("alpine", ["hub.test/proxy/library/alpine", "docker.io/library/alpine"]),
        ("quay.io/x/y", ["quay.io/x/y"]),
        ("a.wild.test/x", ["all.test/x", "a.wild.test/x insecure"]),
        ("a.b.wild.test:5/x", ["all.test:5/x", "a.b.wild.test:5/x insecure"]),
        ("wild.test/x", ["wild.test/x"]),
        ("other.test/a.wild.test/x", ["other.test/a.wild.test/x"]),
        ("tags.test/x:2", ["tags.test/x"]),
        ("tags.test/x:10", ["tags.test/x"]),
        ("digests.test/x", ["digests.test/x"]),
        ("digests.test/x" + DIGEST, ["copies.test/x", "digests.test/x"]),
        ("bad.test.org/x", ["bad.test.org/x"]),
    ],
)  # fmt: skip
def test_places(places: Places, name: str, expected: list[str]) -> None:
    assert places(name) == expected


@pytest.mark.parametrize("name", ["bad.test/x", "bad.test:443/x", "tags.test/x:1", "bad.test/x/y" + DIGEST])
def test_blocked(places: Places, name: str) -> None:
    with pytest.raises(Blocked):
        places(name)


def test_insecure_on_the_command_line(places: Places) -> None:
    assert places("quay.io/x", ("quay.io",)) == ["quay.io/x insecure"]
    assert places("alpine", ("hub.test",)) == [
        "hub.test/proxy/library/alpine insecure",
        "docker.io/library/alpine",
    ]


@pytest.mark.parametrize(
    "text, says",
    [
        ("[[registry]\n", "registries.conf: "),
        ("[registries.search]\nregistries = ['x']\n", "version 1"),
        ("registry = 1\n", "list of tables"),
        ("registry = [1]\n", "list of tables"),
        ("[registry]\nlocation='x'\n", "list of tables"),
        ("[[registry]]\n", "neither prefix nor location"),
        ("[[registry]]\nprefix = 1\n", "prefix is not a text"),
        ("[[registry]]\nprefix = 'a.b'\nblocked = 'yes'\n", "neither true nor false"),
        ("[[registry]]\nlocation = 'https://a.b'\n", "host"),
        ("[[registry]]\nlocation = '*.a.b'\n", "host"),
        ("[[registry]]\nprefix = 'a.*.b'\n", "can only begin"),
        ("[[registry]]\nprefix = '*.a.b/c'\n", "can only begin"),
        ("[[registry]]\nprefix = 'a.b'\n[[registry.mirror]]\n", "a mirror has no location"),
        ("[[registry]]\nprefix = 'a.b'\nmirror = 'x'\n", "list of tables"),
        ("[[registry]]\nprefix='a.b'\n[[registry.mirror]]\nlocation='c.d'\npull-from-mirror='no'\n", "is one of"),
        ("[[registry]]\nprefix='a.b'\nmirror-by-digest-only=true\n[[registry.mirror]]\nlocation='c.d'\npull-from-mirror='all'\n", "exclude"),
        ("[[registry]]\nprefix='a.b'\n[[registry]]\nlocation='a.b'\n", "two"),
        ("\xff", ""),
    ],
)  # fmt: skip
def test_broken_file(tmp_path: Path, text: str, says: str) -> None:
    """The error names the file and what is wrong with it."""
    path = tmp_path / "registries.conf"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(BuildError) as raised:
        read_tables({"CONTAINERS_REGISTRIES_CONF": str(path)})
    assert str(path) in raised.value.message and says in raised.value.message


@pytest.mark.parametrize("location", ["UPPER.test/X", "team", "a.b/c:tag", "a.b/c d", "a.b//c"])
def test_location_that_makes_no_name(tmp_path: Path, location: str) -> None:
    path = tmp_path / "registries.conf"
    path.write_text(f"[[registry]]\nprefix = 'x.test/y'\nlocation = '{location}'\n")
    found = read_tables({"CONTAINERS_REGISTRIES_CONF": str(path)})
    with pytest.raises(BuildError, match=r"registries\.conf: "):
        endpoints(parse_reference("x.test/y:1"), found, frozenset())


def test_missing_file(tmp_path: Path) -> None:
    """One that is named has to be there, the usual ones need not."""
    with pytest.raises(BuildError, match="No such file"):
        read_tables({"CONTAINERS_REGISTRIES_CONF": str(tmp_path / "none")})
    read_tables({"HOME": str(tmp_path)})
    read_tables({})


def test_folder_of_more(tmp_path: Path) -> None:
    """In the order of their names; the last table for a prefix counts; only *.conf."""
    own = tmp_path / ".config/containers"
    (own / "registries.conf.d").mkdir(parents=True)
    (own / "registries.conf").write_text("[[registry]]\nprefix='a.b'\nlocation='one.test'\n")
    (own / "registries.conf.d/20.conf").write_text("[[registry]]\nprefix='a.b'\nlocation='three.test'\n")
    (own / "registries.conf.d/10.conf").write_text(
        "[[registry]]\nprefix='a.b'\nlocation='two.test'\n[[registry]]\nlocation='c.d'\ninsecure=true\n"
    )
    (own / "registries.conf.d/30.txt").write_text("[[")
    found = read_tables({"HOME": str(tmp_path)})
    (place,) = endpoints(parse_reference("a.b/x"), found, frozenset())
    assert place == Endpoint("three.test", "x", False)
    (place,) = endpoints(parse_reference("c.d/x"), found, frozenset())
    assert place.insecure


@pytest.mark.parametrize(
    "url, environ, proxy",
    [
        ("https://a.b/", {}, ""),
        ("https://a.b/", {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        ("https://a.b/", {"https_proxy": "http://p:1", "HTTPS_PROXY": "http://q:1"}, "http://p:1"),
        ("https://a.b/", {"HTTP_PROXY": "http://p:1"}, ""),
        ("http://a.b/", {"HTTP_PROXY": "p:1"}, "http://p:1"),
        ("http://a.b/", {"HTTP_PROXY": "http://evil:1", "REQUEST_METHOD": "GET"}, ""),
        ("https://localhost/", {"HTTPS_PROXY": "http://p:1"}, ""),
        ("https://127.3.2.1/", {"HTTPS_PROXY": "http://p:1"}, ""),
        ("https://[::1]:5/", {"HTTPS_PROXY": "http://p:1"}, ""),
    ],
)
def test_proxy(url: str, environ: dict[str, str], proxy: str) -> None:
    assert proxy_for(url, environ) == proxy


@pytest.mark.parametrize(
    "host, rules, direct",
    [
        ("a.b", "*", True),
        ("a.b", "a.b", True),
        ("A.b", "a.B", True),
        ("x.a.b", "a.b", True),
        ("xa.b", "a.b", False),
        ("x.a.b", ".a.b", True),
        ("a.b", ".a.b", False),
        ("x.a.b", "*.a.b", True),
        ("a.b", "c.d, a.b ", True),
        ("a.b", "", False),
        ("a.b", ",,", False),
        ("a.b:5000", "a.b:5000", True),
        ("a.b:5001", "a.b:5000", False),
        ("a.b", "a.b:443", True),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3:5000", "10.1.2.3:5000", True),
        ("10.1.2.3", "1.2.3", False),
        ("[fd00::1]", "fd00::/8", True),
        ("[fd00::1]:5", "[fd00::1]:5", True),
        ("[fd00::1]", "fd00::1", True),
        ("a.b", "10.0.0.0/8", False),
        ("10.1.2.3", "10.0.0.0/x", False),
    ],
)
def test_no_proxy(host: str, rules: str, direct: bool) -> None:
    environ = {"HTTPS_PROXY": "http://p:1", "NO_PROXY": rules}
    assert (proxy_for(f"https://{host}/", environ) == "") is direct
