"""Cache keys: hashes of all that the result of a step depends on.

A key is the sha256 of canonical JSON of ``[version, kind, identity, inputs]``. The identity
is an explicit list of what matters (builder.plan.identity writes it), never a record with
fields blanked out. Golden files in tests/unit/cache/keys pin the bytes: change them knowingly,
and raise KEY_VERSION when a meaning changes.
"""

import hashlib
import json

KEY_VERSION = 1

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NewType

    CacheKey = NewType("CacheKey", str)
else:
    CacheKey = str


def derive(kind: str, identity: "Mapping[str, object]", inputs: "Sequence[str]" = ()) -> CacheKey:
    """Return the key of a step of *kind* with *identity*, on top of the keys or digests *inputs*.

    Texts may hold surrogate escapes (names that are not UTF-8); they hash as themselves.
    """
    body = [KEY_VERSION, kind, identity, list(inputs)]
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return CacheKey(hashlib.sha256(text.encode("ascii")).hexdigest())
