"""Credentials for registries, where docker and podman keep them: config.json, auth.json, and helpers that
they name.

An unreadable file counts as no credentials, and is a warning. Secrets never appear in an argument, an
error or a log.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping

from builder.errors import BuildError, RegistryConfigError
from builder.support.json_strict import loads
from builder.support.json_types import JsonObject
from builder.support.paths import in_home
from builder.support.tethered import Tethered
from cache.fs import write_atomically
from grammar.structs import struct

_LIMIT = 1 << 20
_HELPER_NAME = re.compile(r"[A-Za-z0-9._-]+")
_HELPER_LIMIT = 1 << 16
_HELPER_SECONDS = 30.0
_HUB = "docker.io"
_HUB_KEY = "https://index.docker.io/v1/"  # what docker calls its own registry there
_HUB_HOSTS = ("index.docker.io", "registry-1.docker.io")
_ENVIRONMENT = "DOCKER_AUTH_CONFIG"  # holds what else a file does


@struct
class Credentials:
    """A user's name and password, or an identity token, or a bearer token as it is; all empty: nobody."""

    user: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

    @property
    def anonymous(self) -> bool:
        return not (self.user or self.identity_token or self.registry_token)

    def basic(self) -> str:
        """The value of an Authorization header."""
        pair = f"{self.user}:{self.password}".encode("utf-8", "surrogateescape")
        return "Basic " + base64.b64encode(pair).decode()


class CredentialStore:
    """Where credentials are looked for, one place after the other:

    1. the text in DOCKER_AUTH_CONFIG;
    2. the file REGISTRY_AUTH_FILE, and no other; or the ``config.json`` in DOCKER_CONFIG, and no other;
    3. podman's ``auth.json``, in $XDG_RUNTIME_DIR/containers (or /run/containers/UID), then in
       $XDG_CONFIG_HOME/containers (or ~/.config/containers);
    4. ``~/.docker/config.json``.

    ``path`` is the file that new ones are put into, ``warnings`` are what could not be read; *path* is for
    one file instead of all places, *patience* is seconds for a helper.
    """

    def __init__(self, path: str = "", patience: float = _HELPER_SECONDS) -> None:
        self.warnings: list[str] = []
        self._patience = patience
        self._text = "" if path else os.environ.get(_ENVIRONMENT, "")
        self._files = [path] if path else _files(os.environ)
        self.path = self._files[-1]

    def find(self, registry: str, repository: str = "") -> Credentials:
        """The credentials for a registry's ``host[:port]`` and, where some are for a part of it, for a
        repository there; anonymous ones if there are none.
        """
        for place, config in self._configs():
            try:
                found = self._found(place, config, registry, repository)
            except BuildError as error:
                self.warnings.append(error.message)
                continue
            if not found.anonymous:
                return found
        return Credentials()

    def _configs(self) -> Iterator[tuple[str, JsonObject]]:
        """Yield each place with its content. An unreadable one is a warning."""
        if self._text.strip():
            try:
                value = loads(self._text.encode("utf-8", "surrogateescape"), _ENVIRONMENT, _LIMIT)
                if not isinstance(value, dict):
                    raise RegistryConfigError(f"{_ENVIRONMENT} is not a JSON object")
                yield _ENVIRONMENT, value
            except BuildError as error:
                self.warnings.append(f"{error.message}: no credentials are used")
        for path in self._files:
            yield path, self._read(path)

    def _found(self, place: str, config: JsonObject, registry: str, repository: str) -> Credentials:
        if helper := _helper(config, registry, repository):
            return _ask(helper, _key(registry), self._patience)
        auths = config.get("auths")
        name = _best(auths, registry, repository, whole=not place.endswith("auth.json"))
        return (
            _decoded(auths[name], registry) if isinstance(auths, dict) and name is not None else Credentials()
        )

    def store(self, registry: str, user: str, password: str) -> str:
        """Store credentials in the first place that has some for this registry. Return that place.

        Raises BuildError.
        """
        path = next((path for path in self._files if self._has(path, registry)), self.path)
        config = self._read(path, strict=True)
        if helper := _helper(config, registry, ""):
            secret = {"ServerURL": _key(registry), "Username": user, "Secret": password}
            _run_helper(helper, "store", json.dumps(secret), self._patience)
            return f"docker-credential-{helper}"
        auths = config.setdefault("auths", {})
        if not isinstance(auths, dict):
            raise RegistryConfigError(f"{path}: auths is not an object")
        for name in _names(auths, registry):
            del auths[name]
        name = registry if path.endswith("auth.json") else _key(registry)
        auths[name] = {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}
        self._write(path, config)
        return path

    def _has(self, path: str, registry: str) -> bool:
        config = self._read(path)
        return bool(_names(config.get("auths"), registry) or _names(config.get("credHelpers"), registry))

    def erase(self, registry: str) -> bool:
        """Erase credentials from all places. Return True if there were any. Raises BuildError."""
        found = False
        for path in self._files:
            config = self._read(path, strict=True)
            if helper := _helper(config, registry, ""):
                found |= not _ask(helper, _key(registry), self._patience).anonymous
                _run_helper(helper, "erase", _key(registry), self._patience)
                continue
            names = _names(config.get("auths"), registry)
            for name in names:
                del config["auths"][name]
            if names:
                self._write(path, config)
            found |= bool(names)
        return found

    def _read(self, path: str, strict: bool = False) -> JsonObject:
        try:
            with open(path, "rb") as file:
                data = file.read(_LIMIT + 1)
            value = loads(data, path, _LIMIT)
            if not isinstance(value, dict):
                raise RegistryConfigError(f"{path} is not a JSON object")
            return value
        except FileNotFoundError:
            return {}
        except OSError as error:
            failure: BuildError = RegistryConfigError(f"reading {path}: {error.strerror}")
        except BuildError as error:
            failure = error
        if strict:
            raise failure
        self.warnings.append(f"{failure.message}: no credentials are used")
        return {}

    def _write(self, path: str, config: JsonObject) -> None:
        """Replace the file atomically, readable by its owner only."""
        target = os.path.realpath(path)
        temporary = f"{target}.pybuild-{os.urandom(8).hex()}"
        try:
            os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
            write_atomically(target, (json.dumps(config, indent="\t") + "\n").encode(), temporary)
        except OSError as error:
            raise RegistryConfigError(f"writing {path}: {error.strerror}") from None


def _files(environ: Mapping[str, str]) -> list[str]:
    """Return the files that may hold credentials, in the order in which they are read."""
    if path := environ.get("REGISTRY_AUTH_FILE"):
        return [path]
    folder = environ.get("DOCKER_CONFIG")
    docker = os.path.join(folder or in_home(".docker"), "config.json")
    if folder and os.path.exists(docker):
        return [docker]
    runtime = environ.get("XDG_RUNTIME_DIR")
    places = [f"{runtime}/containers" if runtime else f"/run/containers/{os.geteuid()}"]
    places.append(f"{environ.get('XDG_CONFIG_HOME') or in_home('.config')}/containers")
    return [*(f"{place}/auth.json" for place in places if os.access(f"{place}/auth.json", os.R_OK)), docker]


def _key(registry: str) -> str:
    """Return the key of a registry in docker's files."""
    return _HUB_KEY if registry == _HUB else registry


def _split(name: str) -> tuple[str, str]:
    """Return host and path of a key. Older keys are URLs."""
    host, _, path = name.removeprefix("https://").removeprefix("http://").partition("/")
    path = path.strip("/")
    return _HUB if host in _HUB_HOSTS else host, "" if path in ("v1", "v2") else path


def _names(entries: object, registry: str) -> list[str]:
    """Return the keys of *entries* that are for a whole registry."""
    found = entries if isinstance(entries, dict) else {}
    return [name for name in found if _split(name) == (registry, "")]


def _best(entries: object, registry: str, repository: str, whole: bool) -> str | None:
    """Return the key of *entries* that covers most of a repository's path.

    If none does and *whole* is set, return any key of the registry: docker compares only hosts.
    """
    ranks: dict[str, int] = {}
    for name in entries if isinstance(entries, dict) else {}:
        host, path = _split(name)
        if host != registry:
            continue
        if not path:
            ranks[name] = 2 if name in (registry, _key(registry)) else 1
        elif f"{repository}/".startswith(f"{path}/"):
            ranks[name] = 2 + len(path)
        elif whole or "://" in name:
            ranks[name] = 0
    return max(ranks, key=lambda name: ranks[name], default=None)


def _helper(config: JsonObject, registry: str, repository: str) -> str:
    """Return the name of a registry's credential helper; "" if the file itself holds the credentials."""
    helpers = config.get("credHelpers")
    name = _best(helpers, registry, repository, whole=True)
    named = helpers[name] if isinstance(helpers, dict) and name is not None else None
    return str(config.get("credsStore") or "") if named is None else str(named)


def _decoded(entry: object, registry: str) -> Credentials:
    """Return the credentials of an entry, as docker and podman write them. Raises BuildError."""
    if not isinstance(entry, dict):
        return Credentials()

    def text(name: str) -> str:
        value = entry.get(name)
        return value if isinstance(value, str) else ""

    user, password = text("username"), text("password")
    if auth := text("auth"):
        try:
            # Line ends between the digits count for nothing, as in Go.
            packed = auth.replace("\r", "").replace("\n", "")
            decoded = base64.b64decode(packed, validate=True).decode("utf-8", "surrogateescape")
        except (binascii.Error, ValueError):
            raise RegistryConfigError(
                f"the credentials for {registry} are not base64: none are used"
            ) from None
        user, _, password = decoded.rstrip("\0").partition(":")
    return Credentials(user, password, text("identitytoken"), text("registrytoken"))


def _ask(helper: str, server: str, patience: float) -> Credentials:
    said = _run_helper(helper, "get", server, patience)
    if said is None:
        return Credentials()
    value = loads(said, f"the answer of docker-credential-{helper}", _HELPER_LIMIT)
    user = value.get("Username") if isinstance(value, dict) else None
    secret = value.get("Secret") if isinstance(value, dict) else None
    if not isinstance(user, str) or not isinstance(secret, str):
        raise RegistryConfigError(f"docker-credential-{helper} answered no credentials: none are used")
    return Credentials(identity_token=secret) if user == "<token>" else Credentials(user, secret)


def _run_helper(helper: str, action: str, given: str, patience: float) -> bytes | None:
    """Return the answer of a credential helper, None where it has nothing. Errors hold no secrets.

    Raises BuildError.
    """
    name = f"docker-credential-{helper}"
    path = shutil.which(name) if _HELPER_NAME.fullmatch(helper) else None
    if path is None:
        raise RegistryConfigError(f"{name}, which the docker configuration names, is not installed")
    end = time.monotonic() + patience
    try:
        with Tethered(
            [path, action], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            try:
                out = _talk(process, given.encode(), end)
                process.wait(max(0.0, end - time.monotonic()))
            except BaseException:
                process.kill()
                raise
            finally:
                process.release()
    except subprocess.TimeoutExpired:
        raise RegistryConfigError(f"{name} did not answer in {patience:.0f} seconds") from None
    except OSError as error:
        raise RegistryConfigError(f"{name}: {error.strerror}") from None
    if len(out) > _HELPER_LIMIT:
        raise RegistryConfigError(f"{name} answered more than {_HELPER_LIMIT} bytes")
    if process.returncode == 0:
        return out
    if b"credentials not found" in out:
        return None
    raise RegistryConfigError(f"{name} {action} failed with {process.returncode}")


def _talk(process: subprocess.Popen[bytes], given: bytes, end: float) -> bytes:
    """Write to a helper and return its answer, cut at one byte over the limit.

    Raises TimeoutExpired at *end* (monotonic seconds).
    """
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(given)
    waiting = select.poll()
    waiting.register(process.stdout)
    said = b""
    while len(said) <= _HELPER_LIMIT:
        if not waiting.poll(max(0.0, end - time.monotonic()) * 1000):
            raise subprocess.TimeoutExpired(process.args, 0)
        piece = os.read(process.stdout.fileno(), _HELPER_LIMIT)
        if not piece:
            return said
        said += piece
    process.kill()
    return said
