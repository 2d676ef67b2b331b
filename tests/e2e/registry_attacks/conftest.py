"""The two listeners of the attacks of registries (S15).

The registry is on one address, a second listener on another remembers every header that reaches it:
no credentials may, in no test.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stages import SECRETS, Stage


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine's configuration."""
    (tmp_path / "registries.conf").write_text("")
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(tmp_path / "registries.conf"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))


@pytest.fixture
def nothing_is_left() -> None:
    """Nearly no containers are made here, so there is nothing to take a census of."""


@pytest.fixture
def server() -> Iterator[Stage]:
    with Stage() as made:
        yield made


@pytest.fixture
def other() -> Iterator[Stage]:
    """Somebody else. No secret may get here."""
    with Stage("127.0.0.2") as made:
        yield made
        assert not any(secret in str(asked.headers) for asked in made.asked for secret in SECRETS)
