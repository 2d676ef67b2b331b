"""Where credentials must not go: other hosts, realms, redirects, links (REG-05 to REG-10)."""

from __future__ import annotations

import gzip
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from faults import Answer, Exchange, Listener, certificate
from harness import Pybuild
from stages import DATA, LAYER, MANIFEST, ME, SECRETS, Stage, client, config_of, get, get_blob, guard

from builder.oci.model import host as machine
from builder.registry.client import Registry
from builder.registry.credentials import Credentials
from builder.registry.errors import NotFound, RegistryError, Untrusted
from builder.registry.transport import Transport
from cache.descriptor import Descriptor
from cache.digest import digest_of

pytestmark = pytest.mark.e2e


def test_REG_05_layer_elsewhere(server: Stage, other: Stage, tmp_path: Path) -> None:
    """A layer's urls are never asked; the registry is."""
    pybuild = Pybuild(tmp_path / "store", tmp_path)
    layer = gzip.compress(b"\0" * 1024, mtime=0)
    image = server.image()
    config: dict[str, Any] = {"os": machine().os, "architecture": machine().architecture}
    config |= {"rootfs": {"type": "layers", "diff_ids": [digest_of(b"\0" * 1024)]}}
    image["config"] = server.blob(json.dumps(config).encode())
    image["layers"] = [
        {
            **server.blob(layer),
            "mediaType": f"{LAYER}.foreign.diff.tar.gzip",
            "urls": [f"http://{other.host}/layer"],
        }
    ]
    server.manifest(image)
    env = {
        "DOCKER_CONFIG": str(tmp_path / "docker"),
        "CONTAINERS_REGISTRIES_CONF": str(tmp_path / "registries.conf"),
    }
    (tmp_path / "docker").mkdir()
    auths = {server.host: {"auth": SECRETS[1]}, other.host: {"auth": SECRETS[1]}}
    (tmp_path / "docker/config.json").write_text(json.dumps({"auths": auths}))
    name = f"{server.host}/x"
    del server.answers[f"/v2/x/blobs/{digest_of(layer)}"]
    server.guarded = True
    pybuild("pull", name, env=env).failed()
    server.blob(layer)
    pybuild("pull", name, env=env).ok()
    assert not other.asked


REALMS = [
    "http://OTHER/token", "file:///etc/passwd", "http://169.254.169.254/t", "https://169.254.169.254/t",
    "https://[fd00:ec2::254]/t", "https://10.0.0.1/t", "https://0.0.0.0/t", "https://[::]/t", "https://0/t",
    "https://me@HOST/t", "http://me:pw@HOST/t", "https://2852039166/t", "https://0xa9.0xfe.0xa9.0xfe/t",
    "https://[::ffff:169.254.169.254]/t", "https://[fe80::1]/t", "gopher://HOST/t", "//HOST/t", "", "x",
    "http://[::1", "https://HOST:x/", "https://h:99999/", "http://example.com/t", "HTTP://OTHER/t", "https:///t",
]  # fmt: skip


@pytest.mark.parametrize("realm", REALMS)
def test_REG_06_realm(server: Stage, other: Stage, realm: str) -> None:
    guard(server, realm.replace("OTHER", other.host).replace("HOST", server.host))
    with pytest.raises(RegistryError):
        get(server)
    assert not other.asked and all(asked.route != "/t" for asked in server.asked)


def test_REG_06_benign_realm(server: Stage) -> None:
    """A registry in the clear has its own token server in the clear, which gets the credentials."""
    guard(server, f"http://{server.host}/token")
    assert get(server) == b"{}"
    (asked,) = [asked for asked in server.asked if asked.route == "/token"]
    assert asked.headers["authorization"] == ME.basic()


def test_REG_06_realm_in_the_clear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry with TLS has none without, not even on its own host."""
    key, cert = certificate(tmp_path / "tls", "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    with Stage(tls=(key, cert)) as server, Stage() as clear:
        clear.answers["/token"] = server.answers["/token"] = Answer(200, {}, b'{"token": "tok"}')
        guard(server, f"http://{clear.host}/token")
        with Registry(server.host, credentials=ME) as registry, pytest.raises(Untrusted, match="not safe"):
            registry.manifest("x", "latest")
        assert not clear.asked
        guard(server, f"https://{server.host}/token")
        with Registry(server.host, credentials=ME) as registry:
            assert registry.manifest("x", "latest").data == b"{}"


@pytest.mark.parametrize("identity", [False, True])
def test_REG_06_token_server_that_redirects(server: Stage, other: Stage, identity: bool) -> None:
    """What it redirects to gets neither the password nor an identity token."""
    guard(server, f"http://{server.host}/token")
    server.answers["/token"] = Answer(307, {"Location": f"http://{other.host}/token"})
    other.answers["/token"] = Answer(200, {}, b'{"token": "other"}')
    who = Credentials(identity_token="hunter2") if identity else ME
    with client(server, who) as registry, pytest.raises(RegistryError):
        registry.manifest("x", "latest")
    assert identity or other.asked


def push(server: Listener, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(DATA)
    with client(server) as registry:
        what = Descriptor("", digest_of(DATA), len(DATA))
        registry.push_blob("x", what, str(tmp_path / "blob"), "", lambda count: None)


def test_REG_07_upload_elsewhere(server: Stage, other: Stage, tmp_path: Path) -> None:
    """Storage on another host gets the bytes, as the registry wants, but no credentials; nor later on."""
    server.guarded = True
    server.answers["POST /v2/x/blobs/uploads/"] = Answer(202, {"Location": f"http://{other.host}/up?a=b"})
    other.answers["PUT /up"] = Answer(201)
    push(server, tmp_path)
    (asked,) = other.asked
    assert asked.path == f"/up?a=b&digest={digest_of(DATA).replace(':', '%3A')}"
    back = {"Location": f"http://{server.host}/back", "Range": "0-9"}
    other.answers["PUT /up"] = Answer(503)
    other.answers["PATCH /up"] = Answer(202, back)
    server.asked.clear()
    with pytest.raises(RegistryError):
        push(server, tmp_path)
    assert all("authorization" not in asked.headers for asked in server.asked if asked.route == "/back")


def test_REG_07_benign(server: Stage, tmp_path: Path) -> None:
    server.guarded = True
    server.answers["POST /v2/x/blobs/uploads/"] = Answer(202, {"Location": "/up?state=1"})
    server.answers["PUT /up"] = Answer(201)
    push(server, tmp_path)


@pytest.mark.parametrize(
    "location",
    ["http://169.254.169.254/", "file:///x", "http://me:pw@HOST/", "http://[::1", "gopher://HOST/", "http://0/x",
     "http://[::ffff:a9fe:a9fe]/", ""],
)  # fmt: skip
def test_REG_07_upload_inside(server: Stage, tmp_path: Path, location: str) -> None:
    server.answers["POST /v2/x/blobs/uploads/"] = Answer(
        202, {"Location": location.replace("HOST", server.host)}
    )
    with pytest.raises(RegistryError):
        push(server, tmp_path)
    assert all(asked.method in ("POST", "HEAD") for asked in server.asked)


def test_REG_07_downgrade() -> None:
    transport = Transport("registry.test")
    with pytest.raises(Untrusted, match="https to http"):
        transport.resolve("https://registry.test/v2/x", "http://registry.test/up")
    with pytest.raises(Untrusted, match="https to http"):
        transport.resolve("HTTPS://registry.test/v2/x", "http://registry.test/up")
    assert transport.resolve("https://registry.test/v2/x", "/up") == "https://registry.test/up"


def test_REG_07_upload_that_comes_back_from_elsewhere(server: Stage, other: Stage, tmp_path: Path) -> None:
    """A place that is relative to where a redirect led is not the registry's: it gets no credentials."""
    server.guarded = True
    server.answers["POST /v2/x/blobs/uploads/"] = Answer(202, {"Location": "/up"})
    server.answers["PUT /up"] = Answer(503)
    server.answers["GET /up"] = Answer(307, {"Location": f"http://{other.host}/there"})
    other.answers["GET /there"] = Answer(204, {"Location": "/on", "Range": "0-9"})
    with pytest.raises(RegistryError):
        push(server, tmp_path)


@pytest.mark.parametrize("kind", ["manifests/latest", "blobs"])
def test_REG_08_redirect_that_wants_credentials(server: Stage, other: Stage, kind: str) -> None:
    """They are the registry's; without wanting any, the other host is as good."""
    server.guarded = True
    route = f"/v2/x/{kind}" + (f"/{digest_of(DATA)}" if kind == "blobs" else "")
    server.answers[route] = Answer(307, {"Location": f"http://{other.host}/there"})
    other.answers["/there"] = Answer(200, {"Content-Type": MANIFEST}, DATA)

    def ask() -> bytes:
        return get_blob(server, DATA) if kind == "blobs" else get(server)

    assert ask() == DATA and len(other.asked) == 1
    for wants in (
        'Basic realm="x"',
        f'Bearer realm="http://{other.host}/token"',
        f'Bearer realm="http://{server.host}/token"',
    ):
        other.answers["/there"] = Answer(401, {"WWW-Authenticate": wants})
        server.answers["/token"] = Answer(200, {}, b'{"token": "tok"}')
        with pytest.raises(Untrusted, match="wants credentials"):
            ask()
    assert all(asked.route == "/there" for asked in other.asked)
    assert all(asked.route != "/token" for asked in server.asked)


def test_REG_08_redirect_to_another_port(server: Stage) -> None:
    """Another port is another origin."""
    with Stage() as port:
        server.guarded = True
        server.answers["/v2/x/manifests/latest"] = Answer(307, {"Location": f"http://{port.host}/there"})
        port.answers["/there"] = Answer(200, {"Content-Type": MANIFEST}, b"{}")
        assert get(server) == b"{}"
        assert "authorization" not in port.asked[0].headers


def test_REG_08_redirect_and_back(server: Stage, other: Stage) -> None:
    """Credentials that were left behind are not picked up again."""
    server.answers["/v2/x/manifests/latest"] = Answer(307, {"Location": f"http://{other.host}/there"})
    other.answers["/there"] = Answer(307, {"Location": f"http://{server.host}/back"})
    server.answers["/back"] = Answer(200, {"Content-Type": MANIFEST}, b"{}")
    with client(server) as registry:
        assert registry.manifest("x", "latest").data == b"{}"
    assert "authorization" not in server.asked[-1].headers


def test_REG_09_links_are_not_followed(server: Stage, other: Stage) -> None:
    """Nothing is asked in pages, so no next page is ever fetched."""
    server.image()
    for answer in server.answers.values():
        assert isinstance(answer, Answer)
        answer.headers["Link"] = f'<http://{other.host}/next>; rel="next"'
    config_of(server)
    assert not other.asked


@pytest.mark.parametrize("hops, fine", [(10, True), (11, False), (1000, False)])
def test_REG_10_chain(server: Stage, hops: int, fine: bool) -> None:
    server.answers["/v2/x/manifests/latest"] = Answer(302, {"Location": f"/1?{hops - 1}"})

    def hop(exchange: Exchange) -> None:
        left = int(exchange.asked.path.partition("?")[2])
        if left:
            exchange.send(Answer(307, {"Location": f"/1?{left - 1}"}))
        else:
            exchange.send(Answer(200, {"Content-Type": MANIFEST}, b"{}"))

    server.answers["/1"] = hop
    if fine:
        assert get(server) == b"{}"
    else:
        with pytest.raises(Untrusted, match="more than 10 times"):
            get(server)
        assert len(server.asked) == 11


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "gopher://HOST/", "ftp://HOST/", "javascript:x", "data:,x", "http://", "http:///x",
     "http://HOST\\@169.254.169.254/", "//169.254.169.254/x", "http://" + "a" * 300 + "/", "http://a..b/",
     "http://HOST:99999/", "http://HOST:-1/", "http://\u00e9/", "http://%31%36%39.254.169.254/", "unix:/x"],
)  # fmt: skip
def test_REG_10_odd_redirect(server: Stage, location: str) -> None:
    server.answers["/v2/x/manifests/latest"] = Answer(
        307, {"Location": location.replace("HOST", server.host)}
    )
    with pytest.raises(RegistryError) as raised:
        get(server)
    assert "\n" not in raised.value.message


def test_REG_10_header_injection(server: Stage) -> None:
    """What is encoded stays so: no header and no second request comes of it."""
    server.answers["/v2/x/manifests/latest"] = Answer(307, {"Location": "/a%0d%0aEvil:%20x%0d%0a b\tc"})
    with pytest.raises(RegistryError):
        get(server)
    assert not any("evil" in asked.headers for asked in server.asked) and len(server.asked) == 2


def test_second_listener_would_hear(other: Stage) -> None:
    """The guard of these tests works: what is sent to the other host is seen there."""
    command = ["curl", "-s", "-u", "me:nothing", f"http://{other.host}/"]
    subprocess.run(command, check=False, capture_output=True)
    with client(other, Credentials("a", "b")) as registry, pytest.raises(NotFound):
        registry.manifest("x", "1")
    assert other.asked
