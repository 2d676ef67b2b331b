"""Which proxy a URL is requested through."""

from __future__ import annotations

import pytest

from builder.errors import BuildError
from builder.registry.proxies import proxy_for

PROXY = "http://proxy:3128"


@pytest.mark.parametrize(
    "url, rules, used",
    [
        ("https://a.test/", "", True),
        ("https://a.test/", "*", False),
        ("https://a.test/", "a.test", False),
        ("https://b.a.test/", "a.test", False),
        ("https://xa.test/", "a.test", True),
        ("https://a.test/", ".a.test", True),
        ("https://b.a.test/", "*.a.test", False),
        ("https://a.test/", "a.test:443", False),
        ("https://a.test/", "a.test:80", True),
        ("https://10.1.2.3/", "10.0.0.0/8", False),
        ("https://11.1.2.3/", "10.0.0.0/8", True),
        ("https://[fd00::1]/", "fd00::1", False),
        ("https://[fd00::1]/", "[fd00::1]", False),
        ("https://localhost/", "", False),
        ("https://127.0.0.1:5000/", "", False),
    ],
)
def test_exceptions(url: str, rules: str, used: bool) -> None:
    assert bool(proxy_for(url, {"HTTPS_PROXY": PROXY, "NO_PROXY": rules})) is used


def test_names() -> None:
    assert proxy_for("http://a/", {"HTTPS_PROXY": PROXY}) == ""
    assert proxy_for("http://a/", {"http_proxy": "proxy", "HTTP_PROXY": "x"}) == "http://proxy"
    assert proxy_for("http://a/", {"HTTP_PROXY": PROXY, "REQUEST_METHOD": "GET"}) == ""


@pytest.mark.parametrize("proxy", ["socks5://p:1", "ftp://p", "http://", "http://[", "http://p:0"])
def test_unusable(proxy: str) -> None:
    with pytest.raises(BuildError, match="HTTPS_PROXY"):
        proxy_for("https://a/", {"HTTPS_PROXY": proxy})
