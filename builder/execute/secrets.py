"""Secrets of the command line, read when a step wants them; kept nowhere."""

from __future__ import annotations

import os
from collections.abc import Mapping

from builder.errors import BuildError
from builder.plan.ops import SecretMount
from builder.request import Secret

_LIMIT = 500 << 10


def read_secret(secrets: Mapping[str, Secret], mount: SecretMount) -> bytes | None:
    """The content of a secret, None when it was not given and is not required.

    Raises BuildError, which never says anything of the content.
    """
    given = secrets.get(mount.id)
    if given is None:
        if not mount.required:
            return None
        raise BuildError(
            f"secret {mount.id}: not found",
            f"give it with --secret id={mount.id},src=FILE or --secret id={mount.id},env=VARIABLE",
        )
    if given.env:
        return os.environb.get(os.fsencode(given.env), b"")
    try:
        with open(given.file, "rb") as file:
            data = file.read(_LIMIT + 1)
    except OSError as error:
        raise BuildError(f"secret {mount.id}: reading {given.file}: {error.strerror}") from None
    if len(data) > _LIMIT:
        raise BuildError(f"secret {mount.id}: {given.file} is larger than {_LIMIT >> 10} KiB")
    return data
