"""Fixtures of the tests of transfers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import Listener


@pytest.fixture(autouse=True)
def nothing_is_left() -> None:
    """No containers are made here, so there is nothing to take a census of."""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials, proxies or mirrors of the machine's."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "no-docker"))
    monkeypatch.setenv("HOME", str(tmp_path / "no-home"))
    (tmp_path / "registries.conf").write_text("")
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(tmp_path / "registries.conf"))
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server() -> Iterator[Listener]:
    with Listener() as made:
        yield made


@pytest.fixture
def other() -> Iterator[Listener]:
    with Listener("127.0.0.2") as made:
        yield made
