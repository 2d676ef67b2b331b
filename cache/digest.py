"""Content digests, as the OCI image specification writes them: ``sha256:<64 hex digits>``.

A digest is a plain ``str`` at run time and its own type to the checker. ``digest`` is the
only way from untrusted text to a Digest, so a path or URL is never made from anything else.
"""

import hashlib

from cache.errors import CacheError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NewType

    Digest = NewType("Digest", str)
else:
    Digest = str

_HEX = frozenset("0123456789abcdef")


def digest(text: str) -> Digest:
    """Check *text* against the digest grammar; only sha256 is accepted.

    Raises CacheError for any other algorithm, length or alphabet.
    """
    algorithm, _, encoded = text.partition(":")
    if algorithm != "sha256" or len(encoded) != 64 or not _HEX.issuperset(encoded):
        raise CacheError(f"not a sha256 digest: {text[:100]!r}")
    return Digest(text)


def digest_of(data: bytes) -> Digest:
    """The sha256 digest of *data*."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def hex_of(value: Digest) -> str:
    """The 64 hex digits of a digest, for file names."""
    return value[7:]
