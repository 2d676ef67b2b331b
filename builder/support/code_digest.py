"""Which code this is: what is remembered of the conclusions of other code is not believed.

A version number does not say it: a checkout changes under the same one, and so may a wheel. Imports
nothing heavy: every build asks.
"""

import hashlib
import os

_PACKAGES = ("builder", "cache", "grammar")
_known: list[str] = []


def edition() -> str:
    """A digest of the names, sizes and times of this program's own files; random where they have none."""
    if not _known:
        _known.append(_digest(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))))
    return _known[0]


def _digest(top: str) -> str:
    seen: list[tuple[str, int, int, int]] = []
    todo = [os.path.join(top, name) for name in _PACKAGES]
    try:
        while todo:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    if not entry.is_dir():
                        found = entry.stat()
                        seen.append((entry.path, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
                    elif entry.name != "__pycache__":
                        todo.append(entry.path)
    except OSError:  # in an archive: nothing is remembered
        return os.urandom(16).hex()
    return hashlib.sha256(repr(sorted(seen)).encode("utf-8", "surrogateescape")).hexdigest()
