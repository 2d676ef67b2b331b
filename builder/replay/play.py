"""Answer a build in which nothing changed without parsing, planning or solving anything.

A successful build leaves a memo under its command line: what it read (the Dockerfile, the
ignore file, image names, context selections with their digests, directories that wildcards
listed) and what it concluded (each step's key and snapshot, the image). If all of that still
holds, a full build would derive the same keys, hit on every one and make the same image; so
its conclusion is repeated. On any doubt this module steps aside.

Only modules that cost little are imported: this is the path of most builds in CI, and it is
measured (benchmarks/README.md).
"""

import hashlib
import marshal
import os
import sys

from builder.progress import lines
from builder.support import debug
from builder.support.code_digest import edition
from cache.digest import Digest
from cache.errors import CacheError
from cache.store import Store, default_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypedDict

    from builder.copy.filters import ScanFilter, SeenContext, Selector

    class Memo(TypedDict):
        """What a build read and concluded; see ``holds``."""

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


def replay(argv: "Sequence[str]") -> "tuple[bool, SeenContext | None]":
    """Repeat the conclusion of the last build with this command line, if everything still holds.

    Returns whether it did, and if not what it had seen of the context by then.
    """
    try:
        root = _root(argv)
    except CacheError:  # the full build says it
        root = None
    if root is None or not os.path.exists(os.path.join(root, "version")):
        return False, None
    try:
        with Store(root) as store:
            data = store.memos.build(memo_key(argv))
            if data is None:
                debug.debug("replay: no record of this command line")
                return False, None
            memo: Memo = marshal.loads(data)
            if not _holds(memo, store):
                debug.debug("replay: a file, an image name or a step of the record has changed")
                return False, None
            same, look = _same_context(memo, store)
            debug.debug(f"replay: the build context {'is unchanged' if same else 'has changed'}")
            if same:
                _conclude(memo, store)
            return same, look
    except (CacheError, OSError, ValueError, EOFError, TypeError, KeyError):
        return False, None  # a damaged memo, or something the full build says better


def memo_key(argv: "Sequence[str]") -> str:
    """The name of the memo of a command line in this folder and environment."""
    # A bare --build-arg NAME takes its value from the environment.
    bare = [item.rpartition("=")[2] for item in argv]
    environment = [(name, os.environ.get(name)) for name in (*_ENVIRONMENT, *bare)]
    try:
        folder = os.getcwd()
    except OSError:  # it has been removed: who names nothing in it can do without
        folder = ""
    text = repr((edition(), folder, list(argv), environment)).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).hexdigest()


def _root(argv: "Sequence[str]") -> "str | None":
    """The store that the command line names, without parsing the rest of it."""
    for number, item in enumerate(argv):
        if item == "--root":
            return argv[number + 1] if number + 1 < len(argv) else None
        if item.startswith("--root="):
            return item[7:]
    return default_root()


def _holds(memo: "Memo", store: Store) -> bool:
    """Whether all but the context is as it was, and the steps are still cached."""
    for path, digest in memo["files"]:
        if file_digest(path) != digest:
            return False
    for name, image in memo["refs"]:
        if store.resolve(name) != image:
            return False
    if not store.index.unchanged(memo["steps"]):
        return False
    store.read_blob(Digest(memo["image"]))  # raises when it is damaged or gone
    return True


def file_digest(path: str) -> str:
    """The sha256 hex of a file that steers a build, "" when there is none. Raises OSError."""
    from cache.kernel import read_regular

    try:
        data = read_regular(path, _FILE_LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return hashlib.sha256(data).hexdigest()


def listing_digest(path: str) -> str:
    """A digest of the names in a directory."""
    names = sorted(os.listdir(path))
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def _same_context(memo: "Memo", store: Store) -> "tuple[bool, SeenContext | None]":
    """Whether the context holds what it held."""
    if not memo["selections"] and not memo["listings"]:
        return True, None
    for path, digest in memo["listings"]:
        if listing_digest(os.path.join(memo["context"], path)) != digest:
            return False, None
    from builder.copy.filters import SeenContext, selector_name
    from cache.context_scan import StatIndex, scan

    look = SeenContext(
        memo["context"], memo["ignore"], StatIndex(store.path("contexts", memo["context_name"]))
    )
    top = os.path.realpath(memo["context"])
    root = os.open(memo["context"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for selector, digest in memo["selections"]:
            path = selector[0]
            if os.path.realpath(os.path.join(top, path)) != os.path.join(top, path).rstrip("/"):
                return False, look  # a link has come into the path
            look.scanned[selector] = scan(root, path, _filter(memo["ignore"], selector))
            if look.index.known(selector_name(selector), look.scanned[selector]) != digest:
                return False, look
    finally:
        os.close(root)
    return True, look


def _filter(ignore: bytes, selector: "Selector") -> "ScanFilter | None":
    if not ignore and not selector[1] and not selector[2]:
        return None
    from builder.copy.filters import scan_filter
    from grammar.ignore import parse_ignore

    return scan_filter(parse_ignore(ignore), selector)


def _conclude(memo: "Memo", store: Store) -> None:
    """Show the build as cached and give the image its names again."""
    image = Digest(memo["image"])
    for tag in memo["tags"]:
        if store.resolve(tag) != image:
            from builder.images.local import rename

            rename(store, tag, image)
    if memo["iidfile"]:
        with open(memo["iidfile"], "w", encoding="ascii") as file:
            file.write(image)
    if memo["quiet"]:
        sys.stdout.write(image + "\n")
        sys.stdout.flush()
        return
    if memo["silent"]:
        return
    shown = [lines.cached(number, name) for number, name in enumerate(memo["names"], 1)]
    shown += lines.conclusion(image, memo["tags"], memo["warnings"])
    sys.stderr.write("\n".join(shown) + "\n")
