"""The name of a registry, as ``pybuild login`` and ``pybuild logout`` take it."""

from __future__ import annotations

import os

from builder.errors import UsageError
from builder.images.local import reference

_DOCKER_HUB = ("index.docker.io/v1", "index.docker.io", "registry-1.docker.io", "hub.docker.com")


def registry_name(text: str) -> str:
    """Return the ``host[:port]`` of a registry from what users and docker write. Raises UsageError."""
    name = text.removeprefix("https://").removeprefix("http://").rstrip("/")
    if name in _DOCKER_HUB:
        return "docker.io"
    if reference(f"{name}/x").registry != name or os.sep in name:
        raise UsageError(f"{text!r} is not the name of a registry", "for example: registry.example.com:5000")
    return name
