"""JSON from strangers: I-JSON as the image specification requires, nothing lenient.

Python's own loader keeps the last of duplicate keys, reads NaN, and fails with other
exceptions on deep nesting and long numbers (security.md D10).
"""

from __future__ import annotations

import json

from builder.errors import BuildError


def loads(data: bytes, what: str, limit: int) -> object:
    """Parse *data* of at most *limit* bytes. Raises BuildError naming *what*."""
    if len(data) > limit:
        raise BuildError(f"{what} is larger than {limit} bytes")
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse,
            parse_int=_integer,
        )
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise BuildError(f"{what} is not valid JSON: {reason[:200]}") from None


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
