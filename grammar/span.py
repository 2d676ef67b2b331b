"""Places in a Dockerfile."""

from __future__ import annotations

from grammar.structs import struct


@struct
class Span:
    """A run of physical lines, and optionally the columns of one thing on the first of them.

    Lines and columns count from 1. ``column`` 0 means "the whole line"; ``width`` is in
    characters and only meaningful with a column.
    """

    first: int
    last: int
    column: int = 0
    width: int = 0
