"""The file that a command reads: named, or standard input."""

from __future__ import annotations

from typing import BinaryIO

from builder.errors import BuildError
from builder.support.paths import why_missing


def open_input(path: str) -> BinaryIO:
    """Open *path*, or standard input for "-". Raises BuildError."""
    try:
        return open(0 if path == "-" else path, "rb")
    except OSError as error:
        raise BuildError(f"reading {path}: {error.strerror}{why_missing(path)}") from None
