"""Errors of the store and its layers.

CacheError              root of all of these
    CorruptError        bytes do not match their digest or size
    MissingError        a blob, snapshot or name that a record points to is absent
    ArchiveError        a tar stream is malformed, hostile or beyond a limit
        UnsupportedMember   a well-formed tar has a member of a kind that is not unpacked
    LayerError          a step left something that no layer can hold
    SpaceError          the file system of the store is full
"""


class CacheError(Exception):
    """The root. ``message`` says what failed and where, ``hint`` what to do about it ("" for nothing)."""

    code = "E-STORE"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class CorruptError(CacheError):
    """Stored or received bytes do not match their digest or size."""

    code = "E-STORE-CORRUPT"


class MissingError(CacheError):
    """A blob, snapshot or name that a record points to is absent."""

    code = "E-STORE-MISSING"


class ArchiveError(CacheError):
    """A tar stream or its compression is malformed, hostile, or exceeds a limit."""

    code = "E-ARCHIVE"


class UnsupportedMember(ArchiveError):
    """A well-formed tar holds a member that cannot be unpacked here."""

    code = "E-ARCHIVE-MEMBER"


class LayerError(CacheError):
    """A step left something that no layer can hold."""

    code = "E-LAYER"


class SpaceError(CacheError):
    """No space (or no inodes, or quota) left where the store lives."""

    code = "E-STORE-FULL"
