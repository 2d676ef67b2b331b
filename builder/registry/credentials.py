"""Credentials for registries, where docker keeps them: config.json, and helpers that it names.

What cannot be read is a warning and no credentials, as for docker; secrets are never in an
argument, an error or a log.
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
from typing import Any

from builder.errors import BuildError
from builder.strict_json import loads
from builder.tether import Tethered
from grammar.structs import struct

_LIMIT = 1 << 20
_HELPER_NAME = re.compile(r"[A-Za-z0-9._-]+")
_HELPER_LIMIT = 1 << 16
_HELPER_SECONDS = 30.0
_HUB = "docker.io"
_HUB_KEY = "https://index.docker.io/v1/"  # what docker calls its own registry there


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
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


class CredentialStore:
    """One config.json. ``warnings`` are what could not be read of it; *patience* is seconds for a helper."""

    def __init__(self, path: str = "", patience: float = _HELPER_SECONDS) -> None:
        folder = os.environ.get("DOCKER_CONFIG") or os.path.join("/", os.path.expanduser("~/.docker"))
        self.path = path or os.path.join(folder, "config.json")
        self.warnings: list[str] = []
        self._patience = patience

    def find(self, registry: str) -> Credentials:
        """The credentials for a registry's ``host[:port]``; anonymous ones if there are none."""
        config = self._read()
        try:
            if helper := self._helper(config, registry):
                return _ask(helper, _key(registry), self._patience)
            return _stored(config.get("auths"), registry)
        except BuildError as error:
            self.warnings.append(error.message)
            return Credentials()

    def store(self, registry: str, user: str, password: str) -> str:
        """Keep credentials; where they are now. Raises BuildError."""
        config = self._read(strict=True)
        if helper := self._helper(config, registry):
            secret = {"ServerURL": _key(registry), "Username": user, "Secret": password}
            _run_helper(helper, "store", json.dumps(secret), self._patience)
            return f"docker-credential-{helper}"
        auths = config.setdefault("auths", {})
        if not isinstance(auths, dict):
            raise BuildError(f"{self.path}: auths is not an object")
        auths[_key(registry)] = {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}
        self._write(config)
        return self.path

    def erase(self, registry: str) -> bool:
        """Forget credentials; whether there were any. Raises BuildError."""
        config = self._read(strict=True)
        if helper := self._helper(config, registry):
            found = not _ask(helper, _key(registry), self._patience).anonymous
            _run_helper(helper, "erase", _key(registry), self._patience)
            return found
        auths = config.get("auths")
        names = [name for name in _keys(registry) if isinstance(auths, dict) and name in auths]
        for name in names:
            del config["auths"][name]
        if names:
            self._write(config)
        return bool(names)

    def _helper(self, config: dict[str, Any], registry: str) -> str:
        """The helper that keeps what is of a registry, "" where the file does."""
        helpers = config.get("credHelpers")
        name = helpers.get(registry) if isinstance(helpers, dict) else None
        return str(name or config.get("credsStore") or "")

    def _read(self, strict: bool = False) -> dict[str, Any]:
        try:
            with open(self.path, "rb") as file:
                data = file.read(_LIMIT + 1)
            value = loads(data, self.path, _LIMIT)
            if not isinstance(value, dict):
                raise BuildError(f"{self.path} is not a JSON object")
            return value
        except FileNotFoundError:
            return {}
        except OSError as error:
            failure = BuildError(f"reading {self.path}: {error.strerror}")
        except BuildError as error:
            failure = error
        if strict:
            raise failure
        self.warnings.append(f"{failure.message}: no credentials are used")
        return {}

    def _write(self, config: dict[str, Any]) -> None:
        """Replace the file whole, for its owner's eyes only."""
        target = os.path.realpath(self.path)
        temporary = f"{target}.pybuild-{os.urandom(8).hex()}"
        try:
            os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "w", encoding="utf-8") as file:
                file.write(json.dumps(config, indent="\t") + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except OSError as error:
            raise BuildError(f"writing {self.path}: {error.strerror}") from None
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _key(registry: str) -> str:
    """What docker calls a registry in its files."""
    return _HUB_KEY if registry == _HUB else registry


def _keys(registry: str) -> list[str]:
    """All that it may be called there, the usual first."""
    names = [_key(registry), registry]
    for host in (registry, "index.docker.io") if registry == _HUB else (registry,):
        names += [
            f"{scheme}{host}{path}"
            for scheme in ("https://", "http://")
            for path in ("", "/", "/v1/", "/v2/")
        ]
    return list(dict.fromkeys(names))


def _stored(auths: object, registry: str) -> Credentials:
    """The entry of a registry, in the forms that docker and podman write."""
    if not isinstance(auths, dict):
        return Credentials()
    entry = next((auths[name] for name in _keys(registry) if name in auths), None)
    if not isinstance(entry, dict):
        return Credentials()

    def text(name: str) -> str:
        value = entry.get(name)
        return value if isinstance(value, str) else ""

    user, password = text("username"), text("password")
    if auth := text("auth"):
        try:
            decoded = base64.b64decode(auth, validate=True).decode("utf-8").rstrip("\0")
        except (binascii.Error, UnicodeDecodeError):
            raise BuildError(f"the credentials for {registry} are not base64: none are used") from None
        user, _, password = decoded.partition(":")
    return Credentials(user, password, text("identitytoken"), text("registrytoken"))


def _ask(helper: str, server: str, patience: float) -> Credentials:
    said = _run_helper(helper, "get", server, patience)
    if said is None:
        return Credentials()
    value = loads(said, f"the answer of docker-credential-{helper}", _HELPER_LIMIT)
    user = value.get("Username") if isinstance(value, dict) else None
    secret = value.get("Secret") if isinstance(value, dict) else None
    if not isinstance(user, str) or not isinstance(secret, str):
        raise BuildError(f"docker-credential-{helper} answered no credentials: none are used")
    return Credentials(identity_token=secret) if user == "<token>" else Credentials(user, secret)


def _run_helper(helper: str, action: str, given: str, patience: float) -> bytes | None:
    """What a credential helper answers, None where it has nothing. Raises BuildError, without secrets."""
    name = f"docker-credential-{helper}"
    path = shutil.which(name) if _HELPER_NAME.fullmatch(helper) else None
    if path is None:
        raise BuildError(f"{name}, which the docker configuration names, is not installed")
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
        raise BuildError(f"{name} did not answer in {patience:.0f} seconds") from None
    except OSError as error:
        raise BuildError(f"{name}: {error.strerror}") from None
    if len(out) > _HELPER_LIMIT:
        raise BuildError(f"{name} answered more than {_HELPER_LIMIT} bytes")
    if process.returncode == 0:
        return out
    if b"credentials not found" in out:
        return None
    raise BuildError(f"{name} {action} failed with {process.returncode}")


def _talk(process: subprocess.Popen[bytes], given: bytes, end: float) -> bytes:
    """Tell a helper something and hear what it says, until *end* (monotonic seconds); of too much only so
    much that it can be told. Raises TimeoutExpired.
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
