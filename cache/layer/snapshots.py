"""Snapshots: layer directories. A Draft is being written; leaving its block makes a Snapshot."""

from __future__ import annotations

import contextlib
import hashlib
import marshal
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

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
        self.snapshot = ""

    @property
    def upper(self) -> str:
        return os.path.join(self.folder, "fs")

    def lower(self) -> Tree:
        """The merged tree below this draft."""
        return tree_of(self.store, self.parents)

    def overlay(self) -> Overlay:
        """The draft as the upper of a container; its snapshots and the mount points below it."""
        relative = os.path.relpath(self.folder, self.store.root)
        lowers = (*(f"snapshots/{name}" for name in top_down(self.store, self.parents)), "mounts")
        return Overlay(lowers, f"{relative}/fs", f"{relative}/work")


def top_down(store: Store, snapshots: tuple[str, ...]) -> list[str]:
    """A stack of layers from the top, equal ones once: the upper hides all that the lower holds,
    and overlayfs refuses a directory that is there twice.

    Above a layer that holds folders without saying what they are like stands one more, which says it
    for this stack. Raises MissingError for a layer without a name.
    """
    if "" in snapshots:  # it would be the folder of all snapshots
        raise MissingError("a layer is gone from the store", "build, load or pull the image again")
    last = {name: place for place, name in enumerate(snapshots)}
    out: list[str] = []
    for place, name in enumerate(snapshots):
        if last[name] == place:
            if is_opaque(store.path("snapshots", name)):  # overlayfs does not look at that of a root
                out.clear()
            out.insert(0, name)
            if (folders := _implied(store, name)) and (looks := _looks(store, out, folders)):
                out.insert(0, looks)
    return out


def tree_of(store: Store, snapshots: tuple[str, ...]) -> Tree:
    """The merged tree of *snapshots*, given from the bottom up."""
    return _tree(store, top_down(store, snapshots))


def _tree(store: Store, names: list[str]) -> Tree:
    return Tree(tuple(store.path("snapshots", name) for name in names))


def _implied(store: Store, snapshot: str) -> list[str]:
    """The folders of a layer that it only implies, parents first."""
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


def _looks(store: Store, names: list[str], folders: list[str]) -> str:
    """A snapshot of the *folders* that the first of *names*, layers from the top, implies, as they are in
    those below it; "" where those have none of them.
    """
    memo = "looks-" + hashlib.sha256(" ".join(names).encode()).hexdigest()

    def known() -> str | None:
        found = store.index.memo(memo)
        if found is None or (found and not store.index.usable(found.decode())):
            return None
        return found.decode()

    if (before := known()) is not None:
        return before
    with store.making(memo):
        if (before := known()) is not None:
            return before
        below, own = _tree(store, names[1:]), _tree(store, names[:1])
        shown = {path: node for path in folders if (node := _folder_below(below, own, path)) is not None}
        made = ""
        if shown:
            with draft(store, ()) as empty:
                _imitate(empty.upper, shown, own)
                made = commit(empty)
        store.index.set_memo(memo, made.encode())
        return made


def _folder_below(below: Tree, own: Tree, path: str) -> Node | None:
    """What the folder *path* of the layer *own* merges with, if it does with anything."""
    node = own.root
    for name in path.split("/"):
        assert node is not None
        node = own.child(node, name)
        if node is None or is_opaque(node.real):
            return None
    found = below.lookup(path) if below.root is not None else None
    return found if found is not None and found.is_dir else None


def _imitate(target: str, shown: dict[str, Node], own: Tree) -> None:
    """Make the folders *shown* in *target*, as they are, and those they are in as *own* has them."""
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
    """A draft on top of *parents* (bottom first). Leaving the block by an error discards it;
    otherwise it is discarded too unless ``commit`` has made it a snapshot.
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
        with contextlib.suppress(OSError):  # a cancelled step may still write to it; it goes with the session
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
) -> str:
    """Publish a draft as a snapshot and return its id.

    *reduce* is for a draft that a container wrote through an overlay. *entries* is the
    manifest of a COPY's files, kept beside the layer for the next COPY and for tracing. *implied* are
    folders that it holds without saying what they are like, parents first. Where it fails, nothing of it is
    left. Raises OSError and CacheError.
    """
    if reduce:
        normalise(made.upper, made.lower())
    # A layer's tar does not hold the root directory itself, so it must be the same in all:
    # two snapshots that pack to one diff ID have to be one tree.
    os.chown(made.upper, 0, 0)
    os.chmod(made.upper, _ROOT_MODE)
    name, store = os.urandom(5).hex(), made.store
    store.index.add_snapshot(name)  # first: what is in place is known, whatever happens then
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
    made.snapshot = name
    return name


def withdraw(store: Store, snapshot: str) -> None:
    """Take back a snapshot that nothing names yet, as far as that can be done."""
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
    """The files of a COPY layer as they were written, or None when it keeps no such list."""
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
