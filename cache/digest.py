"""The names of content: digests (image-spec descriptor.md, "Digests") and snapshot ids.

``digest`` is the only way from untrusted text to a Digest, so a path or URL is never made from
anything else. A Digest, an ImageId and a BlobDigest are plain ``str`` at run time and types of
their own to the checker. A DiffId and a SnapshotId are classes at run time too, because a stack
of layers holds both: ``Layer`` is their union, told apart by ``isinstance``. ``marshal`` refuses
them; write ``str(layer)`` there.
"""

import hashlib

from cache.errors import CacheError

TYPE_CHECKING = False
if TYPE_CHECKING:

    class Digest(str):
        """``sha256:`` and 64 hex digits."""

    class ImageId(Digest):
        """The digest of an image's config."""

    class BlobDigest(Digest):
        """The digest of a blob as it is stored, compressed or not."""

else:
    Digest = ImageId = BlobDigest = str


class DiffId(Digest):
    """The digest of a layer's uncompressed tar (image-spec config.md)."""

    __slots__ = ()


class SnapshotId(str):
    """The name of a layer directory in one store: ten hex digits."""

    __slots__ = ()


Layer = SnapshotId | DiffId

_PREFIX = "sha256:"
_HEX = frozenset("0123456789abcdef")


def digest(text: str) -> Digest:
    """Return *text* as a digest. Only sha256 is accepted.

    Raises CacheError for any other algorithm, length or alphabet.
    """
    algorithm, _, encoded = text.partition(":")
    if algorithm != "sha256" or len(encoded) != 64 or not _HEX.issuperset(encoded):
        raise CacheError(f"not a sha256 digest: {text[:100]!r}")
    return Digest(text)


def digest_of(data: bytes) -> Digest:
    """Return the sha256 digest of *data*."""
    return Digest(_PREFIX + hashlib.sha256(data).hexdigest())


def layer_of(text: str) -> Layer:
    """Return the layer that *text*, from a record of this store, names."""
    return DiffId(text) if text.startswith(_PREFIX) else SnapshotId(text)


def hex_of(value: Digest) -> str:
    """Return the 64 hex digits of a digest, for file names."""
    return value[7:]
