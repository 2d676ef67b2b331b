"""Answer a build in which nothing changed without parsing, planning or solving anything.

A successful build leaves a record under its command line. The record has what the build read (the
Dockerfile, the ignore file, image names, digests of context selections, directories that wildcards listed)
and what came of it (the key and layer of each step, the image). If all of that still holds, a full build
would find every key in the cache and make the same image; so the result is repeated. In any other case the
full build runs.

Most builds in CI end here, so only modules that cost little are imported, and it is measured
(benchmarks/README.md). builder.replay.fields says how each option is treated.
"""

import hashlib
import marshal
import os
import sys

from builder.progress import lines
from builder.support.code_digest import code_digest
from cache.digest import Digest
from cache.errors import CacheError
from cache.store import Store, default_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypedDict

    from builder.copy.filters import ScanFilter, SeenContext, Selector

    class Record(TypedDict):
        """What a build read, and what came of it."""

        files: list[tuple[str, str]]
        refs: list[tuple[str, str]]
        context: str
        context_name: str
        ignore: bytes
        selections: list[tuple[Selector, str]]
        listings: list[tuple[str, str]]
        steps: list[tuple[str, str]]
        names: list[str]
        image: str
        warnings: list[str]
        tags: list[str]
        iidfile: str
        quiet: bool
        silent: bool


_FILE_LIMIT = 16 << 20
# The environment that can change what a build does or where it looks.
_ENVIRONMENT = ("PYBUILD_ROOT", "XDG_DATA_HOME", "HOME", "SOURCE_DATE_EPOCH")


class Replayed:
    """Whether the result was repeated; and the scan of the build context, which a full build goes on from."""

    __slots__ = ("done", "seen")

    def __init__(self, done: bool, seen: "SeenContext | None" = None) -> None:
        self.done = done
        self.seen = seen


def replay(argv: "Sequence[str]") -> Replayed:
    """Repeat the result of the last build with this command line, if everything still holds."""
    try:
        root = _root(argv)
    except CacheError:  # the full build reports it
        root = None
    if root is None or not os.path.exists(os.path.join(root, "version")):
        return Replayed(False)
    try:
        with Store(root) as store:
            data = store.memos.build(record_key(argv))
            if data is None:
                _debug("replay: no record of this command line")
                return Replayed(False)
            record: Record = marshal.loads(data)
            if not _holds(record, store):
                _debug("replay: a file, an image name or a step of the record has changed")
                return Replayed(False)
            context = _same_context(record, store)
            _debug(f"replay: the build context {'is unchanged' if context.done else 'has changed'}")
            if context.done:
                _repeat(record, store)
            return context
    except (CacheError, OSError, ValueError, EOFError, TypeError, KeyError):
        return Replayed(False)  # a damaged record, or an error that the full build explains


def _debug(text: str) -> None:
    if "PYBUILD_DEBUG" in os.environ:  # the module is imported only where it prints
        from builder.support.debug import debug

        debug(text)


def record_key(argv: "Sequence[str]") -> str:
    """Return the key of the record of a command line in this directory and environment."""
    # A bare --build-arg NAME takes its value from the environment.
    bare = [item.rpartition("=")[2] for item in argv]
    environment = [(name, os.environ.get(name)) for name in (*_ENVIRONMENT, *bare)]
    try:
        folder = os.getcwd()
    except OSError:  # it was removed; a command line without relative paths needs none
        folder = ""
    text = repr((code_digest(), folder, list(argv), environment)).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).hexdigest()


def _root(argv: "Sequence[str]") -> "str | None":
    """Return the store that the command line names, without parsing the rest of it."""
    for number, item in enumerate(argv):
        if item == "--root":
            return argv[number + 1] if number + 1 < len(argv) else None
        if item.startswith("--root="):
            return item[7:]
    return default_root()


def _holds(record: "Record", store: Store) -> bool:
    """Return True if everything except the context is unchanged, and the steps are still cached."""
    for path, digest in record["files"]:
        if file_digest(path) != digest:
            return False
    for name, image in record["refs"]:
        if store.resolve(name) != image:
            return False
    if not store.index.unchanged(record["steps"]):
        return False
    store.read_blob(Digest(record["image"]))  # raises when it is damaged or gone
    return True


def file_digest(path: str) -> str:
    """Return the sha256 of a file as hex, "" for a file that does not exist. Raises OSError."""
    from cache.kernel import read_regular

    try:
        data = read_regular(path, _FILE_LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return hashlib.sha256(data).hexdigest()


def listing_digest(path: str) -> str:
    """Return a digest of the names in a directory."""
    names = sorted(os.listdir(path))
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def _same_context(record: "Record", store: Store) -> Replayed:
    """Compare the build context with the record; ``done`` if it is unchanged."""
    if not record["selections"] and not record["listings"]:
        return Replayed(True)
    for path, digest in record["listings"]:
        if listing_digest(os.path.join(record["context"], path)) != digest:
            return Replayed(False)
    from builder.copy.filters import SeenContext, selector_name
    from cache.context_scan import StatIndex, scan

    seen = SeenContext(
        record["context"], record["ignore"], StatIndex(store.path("contexts", record["context_name"]))
    )
    top = os.path.realpath(record["context"])
    root = os.open(record["context"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for selector, digest in record["selections"]:
            path = selector[0]
            if os.path.realpath(os.path.join(top, path)) != os.path.join(top, path).rstrip("/"):
                return Replayed(False, seen)  # a symlink has come into the path
            seen.scanned[selector] = scan(root, path, _filter(record["ignore"], selector))
            if seen.index.known(selector_name(selector), seen.scanned[selector]) != digest:
                return Replayed(False, seen)
    finally:
        os.close(root)
    return Replayed(True, seen)


def _filter(ignore: bytes, selector: "Selector") -> "ScanFilter | None":
    if not ignore and not selector[1] and not selector[2]:
        return None
    from builder.copy.filters import scan_filter
    from grammar.ignore import parse_ignore

    return scan_filter(parse_ignore(ignore), selector)


def _repeat(record: "Record", store: Store) -> None:
    """Show the build as cached, and give the image its names again."""
    image = Digest(record["image"])
    for tag in record["tags"]:
        if store.resolve(tag) != image:
            from builder.images.local import rename

            rename(store, tag, image)
    if record["iidfile"]:
        with open(record["iidfile"], "w", encoding="ascii") as file:
            file.write(image)
    if record["quiet"]:
        sys.stdout.write(image + "\n")
        sys.stdout.flush()
        return
    if record["silent"]:
        return
    shown = [lines.cached(number, name) for number, name in enumerate(record["names"], 1)]
    shown += lines.conclusion(image, record["tags"], record["warnings"])
    sys.stderr.write("\n".join(shown) + "\n")
