"""Mirrors: what they answer, lack, and must not get."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clients import good
from faults import Answer, Exchange, Listener, certificate

from builder.registry.errors import Blocked, NotFound, Untrusted
from builder.registry.repository import open_for_push, open_repository
from builder.request import ClientOptions
from cache.descriptor import Descriptor
from cache.digest import digest_of
from grammar.reference import parse_reference

pytestmark = pytest.mark.e2e

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Images(Listener):
    """A registry of single manifests and blobs; it may want a password. Who asks wrong is told 404."""

    def __init__(self, name: str, password: str = "") -> None:
        super().__init__()
        self.name = name
        self.password = password
        self.things: dict[str, bytes] = {}
        self.answer = self._answer

    def image(self, repository: str, tag: str, data: bytes) -> None:
        for reference in (tag, digest_of(data)):
            self.things[f"/v2/{repository}/manifests/{reference}"] = data
        self.things[f"/v2/{repository}/blobs/{digest_of(data)}"] = data

    def _answer(self, exchange: Exchange) -> None:
        basic = "Basic " + base64.b64encode(f"me:{self.password}".encode()).decode()
        if self.password and exchange.asked.headers.get("authorization") != basic:
            return exchange.send(Answer(401, {"WWW-Authenticate": 'Basic realm="x"'}))
        data = self.things.get(exchange.asked.route)
        if data is None:
            return exchange.send(Answer(404))
        exchange.send(Answer(200, {"Content-Type": MANIFEST}, data))


@pytest.fixture
def origin() -> Iterator[Images]:
    with Images("origin") as made:
        made.image("team/app", "1", b'{"from": "origin"}')
        yield made


@pytest.fixture
def mirror() -> Iterator[Images]:
    with Images("mirror") as made:
        yield made


@pytest.fixture
def configured(tmp_path: Path) -> Callable[[str], None]:
    def write(text: str) -> None:
        (tmp_path / "registries.conf").write_text(text)

    return write


def table(origin: Images, *mirrors: Images, more: str = "", each: str = "") -> str:
    text = f'[[registry]]\nprefix = "{origin.host}/team"\n{more}\n'
    for mirror in mirrors:
        text += f'[[registry.mirror]]\nlocation = "{mirror.host}/copies"\n{each}\n'
    return text


def fetch(name: str) -> bytes:
    reference = parse_reference(name)
    with open_repository(reference, ClientOptions()) as repository:
        fetched = repository.fetch()
        sink = io.BytesIO()
        what = Descriptor("", fetched.digest, len(fetched.data))
        repository.blob(what, sink, lambda count: None)
        assert sink.getvalue() == fetched.data
        return fetched.data


def test_mirror_first(origin: Images, mirror: Images, configured: Callable[[str], None]) -> None:
    mirror.image("copies/app", "1", b'{"from": "mirror"}')
    configured(table(origin, mirror))
    assert fetch(f"{origin.host}/team/app:1") == b'{"from": "mirror"}'
    assert not origin.asked and [asked.route.split("/")[2] for asked in mirror.asked] == ["copies"] * 2
    assert fetch(f"{mirror.host}/copies/app:1") == b'{"from": "mirror"}'  # a name without a table


def test_mirror_lacks_it(origin: Images, mirror: Images, configured: Callable[[str], None]) -> None:
    configured(table(origin, mirror))
    assert fetch(f"{origin.host}/team/app:1") == b'{"from": "origin"}'
    assert len(mirror.asked) == 2 and len(origin.asked) == 2


def test_mirror_is_gone(origin: Images, mirror: Images, configured: Callable[[str], None]) -> None:
    """It is not waited for again."""
    mirror.answer = lambda exchange: exchange.send(Answer(503))
    configured(table(origin, mirror))
    assert fetch(f"{origin.host}/team/app:1") == b'{"from": "origin"}'
    assert len(mirror.asked) == 2


def test_mirror_nobody_listens(origin: Images, configured: Callable[[str], None]) -> None:
    with Images("gone") as gone:
        pass
    configured(table(origin, gone))
    assert fetch(f"{origin.host}/team/app:1") == b'{"from": "origin"}'


def test_REG_13_mirror_lies(origin: Images, mirror: Images, configured: Callable[[str], None]) -> None:
    """By digest it is found out and passed over. Its tag is taken unless the file forbids that."""
    right = b'{"from": "origin"}'
    for kind in ("manifests", "blobs"):
        mirror.things[f"/v2/copies/app/{kind}/{digest_of(right)}"] = b'{"from": "a liar"}'
    name = f"{origin.host}/team/app@{digest_of(right)}"
    configured(table(origin, mirror))
    assert fetch(name) == right
    mirror.image("copies/app", "1", b'{"from": "a liar"}')
    mirror.asked.clear()
    for forbidden in (
        table(origin, mirror, more="mirror-by-digest-only = true"),
        table(origin, mirror, each='pull-from-mirror = "digest-only"'),
    ):
        configured(forbidden)
        assert fetch(f"{origin.host}/team/app:1") == right and not mirror.asked
    configured(table(origin, mirror, each='pull-from-mirror = "tag-only"'))
    assert fetch(name) == right and not mirror.asked


def test_REG_13_credentials_of_a_mirror(
    origin: Images,
    mirror: Images,
    configured: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Each place gets its own and nobody else's."""
    origin.password, mirror.password = "origins-secret", "mirrors-secret"
    mirror.things["/v2/copies/app/manifests/1"] = b'{"from": "origin"}'
    auth = {
        place.host: base64.b64encode(f"me:{place.password}".encode()).decode() for place in (origin, mirror)
    }
    folder = tmp_path / "docker"
    folder.mkdir()
    entries = {host: {"auth": value} for host, value in auth.items()}
    (folder / "config.json").write_text(json.dumps({"auths": entries}))
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    configured(table(origin, mirror))
    assert fetch(f"{origin.host}/team/app:1") == b'{"from": "origin"}'  # the blob is the origin's
    for place, foreign in ((origin, mirror), (mirror, origin)):
        assert (
            place.asked
            and auth[foreign.host] not in str(place.asked)
            and auth[place.host] in str(place.asked)
        )
    del mirror.things["/v2/copies/app/manifests/1"]
    (folder / "config.json").write_text(json.dumps({"auths": {origin.host: entries[origin.host]}}))
    mirror.asked.clear()
    assert fetch(f"{origin.host}/team/app:1") == b'{"from": "origin"}'
    assert mirror.asked and not any("authorization" in asked.headers for asked in mirror.asked)


def test_nobody_has_it(origin: Images, mirror: Images, configured: Callable[[str], None]) -> None:
    """The error is the origin's, and says who else was asked."""
    configured(table(origin, mirror))
    with pytest.raises(NotFound, match=r"team/app:9 does not exist.*mirrors: .*copies/app:9 does not exist"):
        fetch(f"{origin.host}/team/app:9")


def test_moved_and_blocked(origin: Images, configured: Callable[[str], None]) -> None:
    configured(f'[[registry]]\nprefix = "example.test/our"\nlocation = "{origin.host}/team"\n')
    assert fetch("example.test/our/app:1") == b'{"from": "origin"}'
    configured('[[registry]]\nlocation = "example.test"\nblocked = true\n')
    with pytest.raises(Blocked, match=r"may not be used: .*registries\.conf blocks example\.test"):
        fetch("example.test/our/app:1")
    with pytest.raises(Blocked):
        open_for_push(parse_reference("example.test/x"), ClientOptions())


def test_push_goes_to_the_origin(origin: Images, mirror: Images, configured: Callable[[str], None]) -> None:
    configured(table(origin, mirror, more=f'location = "{mirror.host}/elsewhere"'))
    with open_for_push(parse_reference(f"{origin.host}/team/app"), ClientOptions()) as repository:
        assert repository.name == f"{origin.host}/team/app:latest"
        assert repository.fetch("1").data == b'{"from": "origin"}'
    assert not mirror.asked


def test_insecure_means_any_certificate(tmp_path: Path, configured: Callable[[str], None]) -> None:
    """Of that registry alone; without it nothing is trusted, and HTTP is not tried instead."""
    key, cert = certificate(tmp_path / "tls", "somebody.else")
    with Listener(tls=(key, cert)) as server:
        server.answer = good
        name = f"{server.host}/x:1"
        with (
            open_repository(parse_reference(name), ClientOptions()) as repository,
            pytest.raises(Untrusted, match="no certificate"),
        ):
            repository.fetch()
        configured(f'[[registry]]\nlocation = "{server.host}"\ninsecure = true\n')
        with open_repository(parse_reference(name), ClientOptions()) as repository:
            assert repository.fetch().data == b"{}"


def test_progress_of_a_mirror_that_breaks_off(
    origin: Images, mirror: Images, configured: Callable[[str], None]
) -> None:
    """What is thrown away is taken back from the progress."""
    blob = random.Random(3).randbytes(100_000)
    digest = "sha256:" + hashlib.sha256(blob).hexdigest()
    origin.things[f"/v2/team/app/blobs/{digest}"] = blob

    def breaking(exchange: Exchange) -> None:
        exchange.write(exchange.head(Answer(200, {}, blob)) + blob[:50_000])
        exchange.end()

    mirror.answer = breaking
    configured(table(origin, mirror))
    counted: list[int] = []
    with open_repository(parse_reference(f"{origin.host}/team/app:1"), ClientOptions()) as repository:
        repository.blob(Descriptor("", digest_of(blob), len(blob)), io.BytesIO(), counted.append)
    assert sum(counted) == len(blob)
