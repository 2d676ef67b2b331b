"""Errors of the store.

CacheError              root of all of these
    CorruptError        stored bytes are not what their name promises
    MissingError        something a record names is not there
    BusyError           another process holds what we need
    ArchiveError        a tar stream is malformed, hostile or beyond a limit
        UnsupportedMember   it is a tar, with a member of a kind that is not unpacked
    LayerError          a file system holds what no layer can say
    SpaceError          the file system of the store is full
"""


class CacheError(Exception):
    """Something the store could not do; the message says what and where."""

    code = "E-STORE"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class CorruptError(CacheError):
    """Stored or received bytes do not match their digest or size."""


class MissingError(CacheError):
    """A blob, snapshot or name that a record points to is absent."""


class BusyError(CacheError):
    """A lock is held by another process."""


class ArchiveError(CacheError):
    """A tar stream or its compression is malformed, hostile, or exceeds a limit."""


class UnsupportedMember(ArchiveError):
    """A tar is well made, but holds what cannot be unpacked here."""


class LayerError(CacheError):
    """What a step left cannot be said in a layer."""


class SpaceError(CacheError):
    """No space (or no inodes, or quota) left where the store lives."""
