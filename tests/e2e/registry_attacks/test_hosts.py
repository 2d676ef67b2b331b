"""Credential helpers, TLS, and names that lead inside (REG-14, REG-15, REG-17)."""

from __future__ import annotations

import json
import os
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import certificate
from stages import ME, Stage

from builder.registry.addresses import leads_inside
from builder.registry.client import Registry
from builder.registry.credentials import CredentialStore
from builder.registry.errors import RegistryError, Unauthorized, Untrusted
from builder.registry.transport import Transport

pytestmark = pytest.mark.e2e


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CredentialStore]:
    """A configuration with a helper of these lines."""

    def make(script: str, name: str = "test") -> CredentialStore:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        path = folder / "docker-credential-test"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        (tmp_path / "config.json").write_text(json.dumps({"credsStore": name}))
        return CredentialStore(str(tmp_path / "config.json"), patience=1.0)

    return make


GOOD = 'read -r given; echo "{\\"Username\\": \\"me\\", \\"Secret\\": \\"hunter2\\"}"'


def test_REG_14_benign(helper: Callable[..., CredentialStore]) -> None:
    assert helper(GOOD).find("r.test") == ME
    assert helper(f"echo hunter2 >&2; {GOOD}").find("r.test") == ME
    store = helper("echo credentials not found in native keychain; exit 1")
    assert store.find("r.test").anonymous and not store.warnings


@pytest.mark.parametrize(
    "script, says",
    [
        ("while :; do echo 0123456789012345678901234567890123456789; done", "more than"),
        ("exec sleep 30", "did not answer"),
        ("exec >&-; exec sleep 30", "did not answer"),
        ("echo hunter2 >&2; exit 3", "failed with 3"),
        ("echo hunter2; exit 3", "failed with 3"),
        ("kill -9 $$", "failed with -9"),
        ("echo hunter2", "not valid JSON"),
        ("echo []", "answered no credentials"),
        ('echo "{\\"Username\\": 5, \\"Secret\\": []}"', "answered no credentials"),
    ],
)
def test_REG_14_helper(helper: Callable[..., CredentialStore], script: str, says: str) -> None:
    """Bounded in time and memory; what it says of secrets is in no message."""
    start = time.monotonic()
    store = helper(script)
    assert store.find("r.test").anonymous
    assert time.monotonic() - start < 5
    (warning,) = store.warnings
    assert says in warning and "hunter2" not in warning


@pytest.mark.parametrize("name", ["../test", "a b", "x/../test", "$(id)", "test\n", "é", "-", "."])
def test_REG_14_name(helper: Callable[..., CredentialStore], name: str) -> None:
    store = helper("echo called > $0.log", name)
    assert store.find("r.test").anonymous and store.warnings
    assert not list(Path(store.path).parent.glob("bin/*.log"))


def test_REG_14_the_warning_is_seen(server: Stage, tmp_path: Path) -> None:
    """Who is refused reads why there were no credentials."""
    server.guarded = True
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker/config.json").write_text("{")
    with Registry(server.host) as registry, pytest.raises(Unauthorized) as raised:
        registry.manifest("x", "latest")
    assert "config.json is not valid JSON" in raised.value.hint and "pybuild login" in raised.value.hint


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize(
    "kind", ["good", "self-signed", "wrong-host", "expired", "old", "client-certificate"]
)
def test_REG_15_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A clear error at once; no fall-back to HTTP, no credentials before the certificate is known."""
    names = ("elsewhere.test",) if kind == "wrong-host" else ("127.0.0.1", "localhost")
    key, cert = certificate(tmp_path / "tls", *names, expired=kind == "expired")
    if kind != "self-signed":
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    with Stage(tls=(key, cert)) as server:
        server.manifest(b"{}")
        server.guarded = True
        if kind == "old":
            server.context.set_ciphers("ALL:@SECLEVEL=0")
            server.context.minimum_version = ssl.TLSVersion.TLSv1
            server.context.maximum_version = ssl.TLSVersion.TLSv1_1
        if kind == "client-certificate":
            server.context.verify_mode = ssl.CERT_REQUIRED
            server.context.load_verify_locations(cert)
        transport = Transport(server.host, sleep=lambda _: None)
        with Registry(server.host, transport=transport, credentials=ME) as registry:
            if kind == "good":
                assert registry.manifest("x", "latest").data == b"{}"
                return
            with pytest.raises(RegistryError) as raised:
                registry.manifest("x", "latest")
        assert not server.asked and server.connections <= 8
        if kind in ("self-signed", "wrong-host", "expired"):
            assert "no certificate that this machine trusts" in raised.value.message
            assert server.connections == 2  # one looked whether it speaks HTTP


def test_REG_15_http_where_tls_is_wanted(server: Stage) -> None:
    """Another host than loopback is not asked in the clear, whatever it would say."""
    server.manifest(b"{}")
    transport = Transport("registry.test", sleep=lambda _: None)
    with pytest.raises(Untrusted) as raised:
        transport.request("GET", f"https://{server.host}/v2/x/manifests/latest", {})
    assert "--insecure-registry" in raised.value.hint and not server.asked


@pytest.mark.parametrize(
    "addresses, inside",
    [(["93.184.216.34"], False), (["169.254.169.254"], True), (["93.184.216.34", "127.0.0.1"], True), (["::1"], True),
     (["fd00::1"], True), (["::ffff:10.0.0.1"], True), (["100.100.100.200"], True), (["0.0.0.0"], True),
     (["64:ff9b::a00:1"], True), (["64:ff9b::a9fe:a9fe"], True), (["64:ff9b::7f00:1"], True), (["64:ff9b:1::a00:1"], True),
     (["::10.0.0.1"], True), (["2002:a00:1::1"], True), (["2001:0:1:2:3:4:f5ff:fffe"], True), (["fec0::1"], True),
     (["168.63.129.16"], True), (["64:ff9b::808:808"], False), (["2002:808:808::1"], False), (["100.64.0.1"], True)],
)  # fmt: skip
def test_REG_17_names_that_lead_inside(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str], inside: bool
) -> None:
    """Names are looked up. That one changes until it is connected to is not excluded (see docs)."""
    usual = socket.getaddrinfo

    def look_up(host: str, *args: Any, **named: Any) -> Any:
        if host == "rebind.test":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]
        if host == "registry.test":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 0))]
        return usual(host, *args, **named)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert leads_inside("registry.test", "rebind.test") is inside
    assert not leads_inside("rebind.test", "rebind.test")


@pytest.mark.parametrize(
    "own, target, inside",
    [("100.64.1.1", "100.64.1.2", False), ("10.0.0.1", "10.9.9.9", False), ("10.0.0.1", "192.168.0.1", False),
     ("[64:ff9b::a00:1]", "10.0.0.2", False), ("[64:ff9b::6440:101]", "100.64.1.2", False), ("[fd00::1]", "10.0.0.1", False),
     ("100.64.1.1", "10.0.0.1", True), ("10.0.0.1", "100.64.1.1", True), ("100.64.1.1", "100.100.100.200", True),
     ("10.0.0.1", "127.0.0.1", True), ("8.8.8.8", "100.64.1.1", True), ("10.0.0.1", "64:ff9b::a9fe:a9fe", True),
     ("169.254.0.1", "169.254.0.2", True), ("100.64.1.1", "8.8.8.8", False)],
)  # fmt: skip
def test_REG_17_kinds_of_networks(own: str, target: str, inside: bool) -> None:
    """From one network to the same kind; where clouds tell secrets is of no kind."""
    assert leads_inside(f"{own}:5000", target) is inside
