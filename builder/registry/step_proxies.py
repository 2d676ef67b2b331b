"""The proxies for containers in docker's configuration. Every build reads it, so few imports."""

from __future__ import annotations

import os
from collections.abc import Mapping

from builder.errors import BuildError
from builder.support.paths import in_home

_LIMIT = 1 << 20
# What docker calls them in its file, and the variables that it sets.
_OF_CONTAINERS = {
    "httpProxy": "HTTP_PROXY",
    "httpsProxy": "HTTPS_PROXY",
    "ftpProxy": "FTP_PROXY",
    "noProxy": "NO_PROXY",
    "allProxy": "ALL_PROXY",
}


def for_containers(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that ``proxies.default`` of docker's config.json gives containers; none if the
    file cannot be read.
    """
    folder = environ.get("DOCKER_CONFIG") or in_home(".docker")
    try:
        with open(os.path.join(folder, "config.json"), "rb") as file:
            data = file.read(_LIMIT + 1)
        if b'"proxies"' not in data:
            return {}
        from builder.support.json_strict import loads

        value = loads(data, "config.json", _LIMIT)
        given = value["proxies"]["default"].items()  # type: ignore[index]
        return {_OF_CONTAINERS[key]: text for key, text in given if key in _OF_CONTAINERS and _is_plain(text)}
    except (OSError, BuildError, LookupError, TypeError, AttributeError):
        return {}


def _is_plain(text: object) -> bool:
    return isinstance(text, str) and bool(text) and text.isprintable()
