"""Secrets of the command line, read when a step wants them; kept nowhere."""

from __future__ import annotations

import os
from collections.abc import Mapping

from builder.errors import SecretError
from builder.plan.ops import SecretMount
from builder.request import Secret

_LIMIT = 500 << 10


def read_secret(secrets: Mapping[str, Secret], mount: SecretMount) -> bytes | None:
    """The content of a secret, None when it was not given and is not required.

    Raises BuildError, which never says anything of the content.
    """
    given = secrets.get(mount.id)
    if given is not None:
        return _content(mount.id, given)
    if not mount.required:
        return None
    raise SecretError(
        f"secret {mount.id}: not found",
        f"give it with --secret id={mount.id},src=FILE or --secret id={mount.id},env=VARIABLE",
    )


def find_secret(secrets: Mapping[str, Secret], name: str) -> str:
    """The text of a secret that is used where it was given, "" where it was not. Raises BuildError."""
    given = secrets.get(name)
    return _content(name, given).decode("utf-8", "replace").strip() if given is not None else ""


def one_line(value: str, name: str) -> str:
    """*value*, which is to be a header. Raises BuildError where it cannot be one, without saying it."""
    if not value.isascii() or not value.isprintable():
        raise SecretError(f"secret {name}: it cannot be sent as a header", "give it as one line of ASCII")
    return value


def _content(name: str, given: Secret) -> bytes:
    if given.env:
        return os.environb.get(os.fsencode(given.env), b"")
    try:
        with open(given.file, "rb") as file:
            data = file.read(_LIMIT + 1)
    except OSError as error:
        raise SecretError(f"secret {name}: reading {given.file}: {error.strerror}") from None
    if len(data) > _LIMIT:
        raise SecretError(f"secret {name}: {given.file} is larger than {_LIMIT >> 10} KiB")
    return data
