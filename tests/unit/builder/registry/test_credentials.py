"""Where credentials are found: as docker compares names, in the places that docker and podman have."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from builder.registry.auth import parse_challenges
from builder.registry.credentials import CredentialStore

HUB = "https://index.docker.io/v1/"


def entry(user: str, password: str = "pw") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, and nothing else that says where credentials are; helpers there are found."""
    for name in ("DOCKER_CONFIG", "DOCKER_AUTH_CONFIG", "REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    helper = tmp_path / "docker-credential-test"
    helper.write_text(
        '#!/bin/sh\nread -r given; echo "{\\"Username\\": \\"helper\\", \\"Secret\\": \\"$given\\"}"\n'
    )
    helper.chmod(0o755)
    return tmp_path


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def found(registry: str, repository: str = "") -> str:
    store = CredentialStore()
    user = store.find(registry, repository).user
    assert not store.warnings
    return user


@pytest.mark.parametrize(
    "key, registry",
    [(HUB, "docker.io"), ("docker.io", "docker.io"), ("index.docker.io", "docker.io"),
     ("https://registry-1.docker.io/v2/", "docker.io"), ("index.docker.io/v1/", "docker.io"),
     *((key, "r.test:5000") for key in ("r.test:5000", "r.test:5000/", "r.test:5000/v1/", "r.test:5000/v2",
       "https://r.test:5000", "http://r.test:5000/v1/", "r.test:5000/team", "https://r.test:5000/team"))],
)  # fmt: skip
def test_keys(home: Path, key: str, registry: str) -> None:
    """In auths and in credHelpers alike; another host or port is another registry."""
    config = home / ".docker/config.json"
    put(config, {"auths": {"a.test": entry("a"), key: entry("me"), f"x{key}x": entry("x")}})
    assert found(registry) == found(registry, "other/app") == "me"
    assert not found("r.test") and not found("r.test:5001") and not found("test:5000")
    put(config, {"auths": {registry: entry("file")}, "credHelpers": {key: "test"}})
    assert found(registry) == "helper"
    put(config, {"auths": {registry: entry("file")}, "credsStore": "test", "credHelpers": {key: ""}})
    assert found(registry) == "file" and found("other.test") == "helper"


def test_longest_path(home: Path) -> None:
    keys = (
        "r.test",
        "r.test/team",
        "r.test/team/app",
        "https://r.test/team/v1",
        "r.test/te",
        "docker.io/library",
    )
    put(home / ".docker/config.json", {"auths": {key: entry(key.removeprefix("https://")) for key in keys}})
    for repository, key in {
        "": "r.test",
        "x/y": "r.test",
        "team": "r.test/team",
        "team/other": "r.test/team",
        "team/app": "r.test/team/app",
        "team/app/deep": "r.test/team/app",
        "team/v1/x": "r.test/team/v1",
        "teams/x": "r.test",
    }.items():
        assert found("r.test", repository) == key
    assert found("docker.io", "library/busybox") == "docker.io/library"
    put(
        home / ".docker/config.json",
        {"credHelpers": {"r.test": "", "r.test/team": "test"}, "auths": {"r.test": entry("f")}},
    )
    assert found("r.test", "team/x") == "helper" and found("r.test", "x") == "f"


def test_places(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the last to the first; each goes before those after it, and what it lacks is asked of the next."""
    shared = {"last.test": entry("last")}
    put(home / ".docker/config.json", {"auths": {"r.test": entry("docker"), **shared}})
    assert found("r.test") == "docker"
    put(home / ".config/containers/auth.json", {"auths": {"r.test": entry("config"), "empty.test": {}}})
    assert found("r.test") == "config" and found("last.test") == "last"
    put(home / "xdg/containers/auth.json", {"auths": {"r.test": entry("xdg")}})
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "xdg"))
    assert found("r.test") == "xdg"
    put(home / "run/containers/auth.json", {"auths": {"r.test": entry("run"), "r.test/x": entry("x")}})
    assert found("r.test", "y") == "run" and found("r.test", "x/y") == "x" and found("last.test") == "last"
    put(home / "docker/config.json", {"auths": {"r.test": entry("folder")}})
    monkeypatch.setenv("DOCKER_CONFIG", str(home / "docker"))
    assert found("r.test") == "folder" and not found("last.test")
    put(home / "file", {"auths": {"r.test": entry("file")}})
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(home / "file"))
    assert found("r.test") == "file" and not found("last.test")
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps({"auths": {"https://r.test/v1/": entry("env")}}))
    assert found("r.test") == "env" and not found("last.test")
    put(home / "file", {"auths": shared})
    assert found("r.test") == "env" and found("last.test") == "last"


def test_podmans_keys_are_for_their_path(home: Path) -> None:
    put(home / "run/containers/auth.json", {"auths": {"r.test/team": entry("team")}})
    assert found("r.test", "team/x") == "team" and not found("r.test", "x") and not found("r.test")


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": 5}', '{"auths": {"r.test": {"auth": "!"}}}'])
def test_damaged_environment(home: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The next place is asked, and nothing of the text is in a warning."""
    put(home / ".docker/config.json", {"auths": {"r.test": entry("docker")}})
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", text)
    store = CredentialStore()
    assert store.find("r.test").user == "docker"
    assert all("DOCKER_AUTH_CONFIG" in line or "r.test" in line for line in store.warnings)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("password", ["a" * 90, "p:w", "", "\u00e4\u00f6", "nul\0"])
def test_wrapped_base64(home: Path, ends: str, password: str) -> None:
    """As base64(1) wraps it, at the end and within."""
    text = entry("me", password)["auth"]
    wrapped = ends.join(text[i : i + 7] for i in range(0, len(text), 7)) + ends
    put(home / ".docker/config.json", {"auths": {"r.test": {"auth": wrapped}}})
    got = CredentialStore().find("r.test")
    assert (got.user, got.password) == ("me", password.rstrip("\0"))


def test_password_that_is_no_text(home: Path) -> None:
    raw = b"me:\xff\xfe"
    put(home / ".docker/config.json", {"auths": {"r.test": {"auth": base64.b64encode(raw).decode()}}})
    assert CredentialStore().find("r.test").basic() == "Basic " + base64.b64encode(raw).decode()


def test_login_goes_where_it_is_found(home: Path) -> None:
    """Into the file whose entry counts, else docker's; a logout leaves none anywhere."""
    podman, docker = home / "run/containers/auth.json", home / ".docker/config.json"
    put(podman, {"auths": {"p.test": entry("old"), "p.test/x": entry("x")}})
    put(docker, {"auths": {"p.test": entry("old"), "https://p.test/v1/": entry("older")}})
    assert CredentialStore().store("p.test", "new", "pw") == str(podman) and found("p.test") == "new"
    assert CredentialStore().store("d.test", "new", "pw") == str(docker) and found("d.test") == "new"
    assert CredentialStore().erase("p.test") and not found("p.test") and found("p.test", "x") == "x"
    assert not CredentialStore().erase("p.test") and list(json.loads(docker.read_text())["auths"]) == [
        "d.test"
    ]


@pytest.mark.parametrize(
    "header, expected",
    [
        ("Negotiate", [("negotiate", {})]),
        ('Negotiate, Basic realm="x"', [("negotiate", {}), ("basic", {"realm": "x"})]),
        ("Negotiate YIIZ==, NTLM TlRM=", [("negotiate", {"yiiz": "="}), ("ntlm", {})]),
        (
            'Basic realm="a, b=c", Bearer realm="https://t/x?y=z",service=s, scope="r:x:pull,push"',
            [("basic", {"realm": "a, b=c"}), ("bearer", {"realm": "https://t/x?y=z", "service": "s", "scope": "r:x:pull,push"})],
        ),
        (r'Basic realm="a \"quoted\" one"', [("basic", {"realm": 'a "quoted" one'})]),
        ('Bearer realm = "https://t/" , service = "s"', [("bearer", {"realm": "https://t/", "service": "s"})]),
        ('Bearer realm="https://t/', [("bearer", {"realm": "https://t/"})]),
        ("", []),
        ("=x, =", []),
    ],
)  # fmt: skip
def test_challenges(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    found = parse_challenges(header)
    assert [item for item in found if item[0] in dict(expected)] == expected
