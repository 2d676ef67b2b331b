"""Snapshots: layer directories. A Draft is written in a ``draft`` block; ``commit`` makes it a snapshot."""

from __future__ import annotations

import contextlib
import hashlib
import marshal
import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cache.digest import SnapshotId
from cache.entry import Entry
from cache.errors import CacheError, CorruptError, MissingError
from cache.fs import image_xattrs, is_opaque, remove_tree
from cache.kernel import set_owner
from cache.layer.merged_tree import Node, Tree
from cache.layer.reduce import normalise
from cache.store import Store, write_error

_ROOT_MODE = 0o755


class Overlay(NamedTuple):
    """How to mount a container's root, as paths relative to the store."""

    lowers: tuple[str, ...]
    upper: str
    work: str


class Draft:
    """A layer directory being written; ``upper`` is its absolute path."""

    def __init__(self, store: Store, parents: tuple[str, ...], folder: str) -> None:
        self.store = store
        self.parents = parents
        self.folder = folder

    @property
    def upper(self) -> str:
        return os.path.join(self.folder, "fs")

    def lower(self) -> Tree:
        """Return the merged tree below this draft."""
        return tree_of(self.store, self.parents)

    def overlay(self) -> Overlay:
        """Return the draft as a container's upper directory, above its parents and the mount points."""
        relative = os.path.relpath(self.folder, self.store.root)
        lowers = (*(f"snapshots/{name}" for name in top_down(self.store, self.parents)), "mounts")
        return Overlay(lowers, f"{relative}/fs", f"{relative}/work")


def top_down(store: Store, snapshots: Sequence[str]) -> list[str]:
    """Return the stack *snapshots* (bottom first) from the top down, as overlayfs takes it.

    A snapshot that is there twice stands at its upper place only: overlayfs refuses a directory twice,
    and the upper one hides the lower. Above a layer that implies directories stands a snapshot with
    their metadata, made for this stack. Raises MissingError for a layer without a name.
    """
    if "" in snapshots:  # it would be the directory of all snapshots
        raise MissingError("a layer is gone from the store", "build, load or pull the image again")
    last = {name: place for place, name in enumerate(snapshots)}
    out: list[str] = []
    for place, name in enumerate(snapshots):
        if last[name] == place:
            if is_opaque(store.path("snapshots", name)):  # overlayfs ignores the mark on a root
                out.clear()
            out.insert(0, name)
            if directories := _implied(store, name):
                out[:0] = _completed(store, out, directories)
    return out


def tree_of(store: Store, snapshots: Sequence[str]) -> Tree:
    """Return the merged tree of the stack *snapshots* (bottom first)."""
    return _tree(store, top_down(store, snapshots))


def _tree(store: Store, names: list[str]) -> Tree:
    return Tree(tuple(store.path("snapshots", name) for name in names))


def _implied(store: Store, snapshot: str) -> list[str]:
    """Return the directories that a layer implies (cache.layer.unpack), parents first."""
    if snapshot not in store.implied:
        try:
            with open(store.path("implied", snapshot), "rb") as file:
                check, body = file.read(32), file.read()
        except FileNotFoundError:
            store.implied[snapshot] = []
        else:
            if hashlib.sha256(body).digest() != check:
                raise CorruptError(
                    f"what is known of the layer {snapshot} in {store.root} is damaged",
                    "use another --root, or remove the old store",
                )
            store.implied[snapshot] = marshal.loads(body)
    return store.implied[snapshot]


def _completed(store: Store, names: list[str], directories: list[str]) -> tuple[SnapshotId, ...]:
    """Return a snapshot that gives the *directories* the metadata they have in lower layers.

    The first of *names*, layers from the top down, implies them. Returns none if no lower layer has any.
    """
    key = hashlib.sha256(" ".join(names).encode()).hexdigest()
    if (known := store.memos.implied_directories(key)) is not None:
        return known
    with store.making(f"implied-{key}"):
        if (known := store.memos.implied_directories(key)) is not None:
            return known
        below, own = _tree(store, names[1:]), _tree(store, names[:1])
        shown = {path: node for path in directories if (node := _merged_with(below, own, path)) is not None}
        made: tuple[SnapshotId, ...] = ()
        if shown:
            with draft(store, ()) as empty:
                _copy_directories(empty.upper, shown, own)
                made = (commit(empty),)
        store.memos.set_implied_directories(key, made)
        return made


def _merged_with(below: Tree, own: Tree, path: str) -> Node | None:
    """Return the directory of *below* that the directory *path* of the layer *own* merges with, if any."""
    node = own.root
    for name in path.split("/"):
        assert node is not None
        node = own.child(node, name)
        if node is None or is_opaque(node.real):
            return None
    found = below.lookup(path) if below.root is not None else None
    return found if found is not None and found.is_dir else None


def _copy_directories(target: str, shown: dict[str, Node], own: Tree) -> None:
    """Make the directories *shown* in *target* with their metadata, and their parents with that of *own*."""
    made: dict[str, Node] = {}
    for path, node in shown.items():
        parts = path.split("/")
        for depth in range(1, len(parts)):
            above = "/".join(parts[:depth])
            if above not in made and above not in shown:
                holder = own.lookup(above, follow=False)
                assert holder is not None
                made[above] = holder
                os.mkdir(os.path.join(target, above))
        made[path] = node
        os.mkdir(os.path.join(target, path))
    for path, node in reversed(made.items()):
        folder, found = os.path.join(target, path), node.found
        set_owner(folder, found.st_uid, found.st_gid)
        for key, value in image_xattrs(node.real):
            os.setxattr(folder, key, value)
        os.chmod(folder, stat.S_IMODE(found.st_mode))
        os.utime(folder, ns=(found.st_mtime_ns, found.st_mtime_ns))


@contextlib.contextmanager
def draft(store: Store, parents: tuple[str, ...]) -> Iterator[Draft]:
    """Provide a draft on top of the stack *parents* (bottom first).

    At the end of the block a draft that ``commit`` has not made a snapshot is discarded. An OSError inside
    becomes a CacheError.
    """
    store.check_owners()
    folder = store.temporary()
    made = Draft(store, parents, folder)
    try:
        os.mkdir(folder, 0o700)
        os.mkdir(made.upper)
        os.chmod(made.upper, _ROOT_MODE)
        os.mkdir(os.path.join(folder, "work"), 0o700)
        yield made
    except BaseException as error:
        with contextlib.suppress(OSError):  # a cancelled step may still write; the session removes it
            remove_tree(folder)
        if isinstance(error, OSError):
            raise write_error(error, f"a layer in {store.root}") from error
        raise
    remove_tree(folder)


def commit(
    made: Draft,
    entries: list[Entry] | None = None,
    reduce: bool = False,
    implied: list[str] | None = None,
) -> SnapshotId:
    """Publish a draft as a snapshot and return its id.

    *reduce* is for a draft that a container wrote through an overlay. *entries* are the members of a COPY
    layer, kept beside it for the next COPY and for tracing. *implied* are the directories that no member
    of the layer describes, parents first. After a failure nothing is left. Raises OSError and CacheError.
    """
    if reduce:
        normalise(made.upper, made.lower())
    # A layer's tar does not hold the root directory itself, so it must be the same in all:
    # two snapshots that pack to one diff ID have to be one tree.
    os.chown(made.upper, 0, 0)
    os.chmod(made.upper, _ROOT_MODE)
    name, store = SnapshotId(os.urandom(5).hex()), made.store
    store.index.add_snapshot(name)  # first, so that a snapshot in place always has a record
    try:
        if implied:
            _write_list(store.path("implied", name), implied)
        if entries is not None:
            _write_list(store.path("files", name), [tuple(entry) for entry in entries])
            store.manifests[name] = entries
        os.rename(made.upper, store.path("snapshots", name))
    except BaseException:
        withdraw(store, name)
        raise
    return name


def withdraw(store: Store, snapshot: SnapshotId) -> None:
    """Remove a snapshot that nothing names yet. Errors are ignored: the next build removes it."""
    store.manifests.pop(snapshot, None)
    with contextlib.suppress(OSError, CacheError):
        place = store.temporary()
        with contextlib.suppress(FileNotFoundError):
            os.rename(store.path("snapshots", snapshot), place)
            remove_tree(place)
        for folder in ("files", "implied"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(store.path(folder, snapshot))
        store.index.forget_snapshot(snapshot)


def _write_list(path: str, items: list[str] | list[tuple[object, ...]]) -> None:
    body = marshal.dumps(items)
    with open(path, "wb") as file:
        file.write(hashlib.sha256(body).digest() + body)


def manifest(store: Store, snapshot: str) -> list[Entry] | None:
    """Return the members of a COPY layer as they were written; None for a layer without such a list."""
    if snapshot in store.manifests:
        return store.manifests[snapshot]
    try:
        with open(store.path("files", snapshot), "rb") as file:
            check, body = file.read(32), file.read()
    except FileNotFoundError:
        return None
    if hashlib.sha256(body).digest() != check:
        return None
    return list(map(Entry._make, marshal.loads(body)))
