"""Texts without the credentials of the URLs in them: for all that is shown or kept."""

from __future__ import annotations

import re

# What is before the last @ of a host; and, as nothing but a port follows a host's colon, what a password with
# an unquoted / or # in it goes on with.
_USERINFO = re.compile(r"(?<=://)(?:[^/?#\s\"']+@|[^/?#\s\"':@]*:(?![0-9]*(?:[/?#\s\"',]|$))[^\s\"']*@)")


def redacted(text: str) -> str:
    """*text* without the names and passwords of its URLs."""
    return _USERINFO.sub("xxxxx@", text) if "://" in text else text


def without_credentials(text: str) -> str:
    """*text* with its URLs as if they held none."""
    return _USERINFO.sub("", text)
