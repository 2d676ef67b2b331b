"""Untrusted JSON, read strictly as I-JSON, which the image specification requires.

Python's own loader keeps the last of duplicate keys, reads NaN, and fails with other
exceptions on deep nesting and long numbers.
"""

from __future__ import annotations

import json
import re

from builder.errors import BuildError
from builder.support.json_types import Json

_SURROGATE = re.compile("[\ud800-\udfff]")


def loads(data: bytes, what: str, limit: int) -> object:
    """Parse *data* of at most *limit* bytes. Raises BuildError naming *what*."""
    if len(data) > limit:
        raise BuildError(f"{what} is larger than {limit} bytes")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse,
            parse_int=_integer,
        )
        return _valid(value) if b"\\u" in data else value
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise BuildError(f"{what} is not valid JSON: {reason[:200]}") from None


def valid_text(text: str) -> str:
    """Return *text* with each lone surrogate replaced by U+FFFD, as Go reads and writes JSON."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def _valid(value: Json) -> Json:
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, list):
        return [_valid(item) for item in value]
    if isinstance(value, dict):
        return {valid_text(key): _valid(item) for key, item in value.items()}
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object names a key twice")
    return value


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not a JSON value")


def _integer(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError("a number has too many digits")
    return int(digits)
