"""Remove the credentials of URLs from all text that is shown or kept."""

from __future__ import annotations

import re

# What is before the last @ of a host; and, as nothing but a port follows a host's colon, what a password with
# an unquoted / or # in it goes on with.
_USERINFO = re.compile(r"(?<=://)(?:[^/?#\s\"']+@|[^/?#\s\"':@]*:(?![0-9]*(?:[/?#\s\"',]|$))[^\s\"']*@)")


def redacted(text: str) -> str:
    """Return *text* with the names and passwords of its URLs replaced by xxxxx."""
    return _USERINFO.sub("xxxxx@", text) if "://" in text else text


def without_credentials(text: str) -> str:
    """Return *text* with the names and passwords of its URLs removed."""
    return _USERINFO.sub("", text)
