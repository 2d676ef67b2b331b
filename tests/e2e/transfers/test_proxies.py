"""Requests by way of proxies."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from clients import good
from faults import Answer, Listener, Proxy, certificate

from builder.registry.client import Registry
from builder.registry.errors import Unavailable
from builder.registry.transport import Transport
from builder.request import ClientOptions

pytestmark = pytest.mark.e2e


def test_https_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A name that only the proxy knows; the proxy's password is for the proxy alone."""
    key, cert = certificate(tmp_path / "tls", "registry.test")
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    with Listener(tls=(key, cert)) as server, Proxy(server.host) as proxy:
        server.answer = good
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:s%40cret@{proxy.host}")
        with Registry("registry.test") as registry:
            assert registry.manifest("x", "1").data == b"{}"
        (connect,) = proxy.asked
        assert connect.method == "CONNECT" and connect.path == "registry.test:443"
        basic = base64.b64encode(b"me:s@cret").decode()
        assert connect.headers["proxy-authorization"] == f"Basic {basic}"
        assert all("proxy-authorization" not in asked.headers for asked in server.asked)


def test_http_proxy(server: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """An insecure registry that only the proxy reaches, with a proxy that is written without a scheme."""
    server.answer = good
    with Proxy(server.host) as proxy:
        monkeypatch.setenv("http_proxy", proxy.host)
        with Registry("registry.test:5000", ClientOptions(frozenset({"registry.test:5000"}))) as registry:
            assert registry.manifest("x", "1").data == b"{}"
        assert [asked.method for asked in proxy.asked] == ["GET"]


def test_no_proxy(server: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_PROXY is asked for each host: the registry's, and the one it redirects to."""
    server.answer = good
    with Proxy(server.host) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}")
        monkeypatch.setenv("NO_PROXY", "registry.test")
        with Registry("a.registry.test:5000", ClientOptions(frozenset({"a.registry.test:5000"}))) as registry:
            registry._transport = Transport("a.registry.test:5000", "http", sleep=lambda _: None)
            with pytest.raises(Unavailable):
                registry.manifest("x", "1")
        assert not proxy.asked
        monkeypatch.setenv("NO_PROXY", "other.test")
        server.answer = lambda exchange: exchange.send(
            Answer(307, {"Location": "http://other.test/y"})
            if exchange.asked.route.startswith("/v2")
            else Answer()
        )
        with Registry("registry.test:5000", ClientOptions(frozenset({"registry.test:5000"}))) as registry:
            registry._transport = Transport("registry.test:5000", "http", sleep=lambda _: None)
            with pytest.raises(Unavailable):
                registry.manifest("x", "1")
        assert proxy.asked and all("other.test" not in asked.path for asked in proxy.asked)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "socks5h://h", "http://", "http://h:x", "ftp://x"])
def test_unusable_proxy(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    from builder.errors import BuildError

    monkeypatch.setenv("HTTPS_PROXY", proxy)
    says = "HTTPS_PROXY is a SOCKS proxy" if proxy.startswith("socks") else "HTTPS_PROXY is not"
    with Registry("registry.test") as registry, pytest.raises(BuildError, match=says):
        registry.manifest("x", "1")


def test_proxy_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with Listener() as proxy:
        proxy.answer = lambda exchange: exchange.send(Answer(407))
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@{proxy.host}")
        transport = Transport("registry.test", sleep=lambda _: None)
        with Registry("registry.test", transport=transport) as registry, pytest.raises(Unavailable) as raised:
            registry.manifest("x", "1")
    assert "407" in raised.value.message and "secret" not in raised.value.message
