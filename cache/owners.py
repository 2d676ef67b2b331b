"""Whose files a store holds: those of many ids, or of one where files cannot belong to others.

``owners`` in the store says "all" or "one" (docs/rootless.md). ``somebody`` belongs to an id that no user
has for his own: a copy of the store that lost the owners of its files shows there.
"""

import os

from cache.errors import CacheError
from cache.kernel import keeps_owners

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Write(Protocol):
        """Write a file atomically and durably, for *owner* if that is given."""

        def __call__(self, final: str, data: bytes, owner: int | None = None) -> None: ...


_SOMEBODY = 1
RESET = "use another --root, or remove what the store holds by: pybuild reset"


def check_owners(root: str, write: "Write") -> None:
    """Check that the store at *root* keeps owners as this process does. Raises CacheError.

    A store without marks gets those of this process.
    """
    mark, here = os.path.join(root, "owners"), "all" if keeps_owners() else "one"
    found = ""
    try:
        with open(mark, encoding="ascii", errors="replace") as file:
            found = file.read(100).strip()
    except FileNotFoundError:
        pass
    if not found:
        write(mark, f"{here}\n".encode())
    elif found != here:
        had, has = ("one id", "are more") if here == "all" else ("more ids", "is one")
        raise CacheError(
            f"the store {root} was made with {had}, and now there {has}: owners would be wrong", RESET
        )
    if here == "all":
        _check_somebody(root, write)


def _check_somebody(root: str, write: "Write") -> None:
    """Check that the store was not copied without the owners of its files."""
    path = os.path.join(root, "somebody")
    try:
        owner = os.stat(path).st_uid
    except FileNotFoundError:
        write(path, b"", owner=_SOMEBODY)
        return
    if owner != _SOMEBODY:
        raise CacheError(
            f"the files of the store {root} have lost their owners: it was copied without them",
            "copy it as root with cp -a; or " + RESET,
        )
