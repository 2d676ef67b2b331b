"""A digest of this program's own code: what other code derived and remembered is not believed.

A version number would not do: a checkout changes under the same one, and so may an installed wheel. The
digest covers the files' names, sizes and times: to stat 300 files takes 1.3 ms, to read them would take ten
times that. The digests that an installer records would cost less, but miss a file that was edited in place.
Every build asks, so nothing heavy is imported.
"""

import hashlib
import marshal
import os

_PACKAGES = ("builder", "cache", "grammar")
_WITHOUT_REFERENCES = 2  # the version of marshal's format that is the same for equal values
_known: list[str] = []


def code_digest() -> str:
    """Return the digest of this program's files; a random one where it is no directory of files."""
    if not _known:
        _known.append(
            digest_of_files(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
        )
    return _known[0]


def digest_of_files(top: str) -> str:
    """Return a digest of the names, sizes and times of the files of our packages in *top*."""
    seen: list[tuple[str, int, int, int]] = []
    todo = [os.path.join(top, name) for name in _PACKAGES]
    try:
        while todo:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    if entry.is_file():
                        found = entry.stat()
                        seen.append((entry.path, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
                    elif entry.name != "__pycache__":
                        todo.append(entry.path)
    except OSError:  # in an archive: nothing is remembered
        return os.urandom(16).hex()
    seen.sort()
    return hashlib.sha256(marshal.dumps(seen, _WITHOUT_REFERENCES)).hexdigest()
