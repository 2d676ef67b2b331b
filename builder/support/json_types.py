"""Types of decoded JSON."""

from typing import Any

# A stranger wrote the value, so its type is unknown: the code that uses it checks it.
Json = Any
JsonObject = dict[str, Any]
