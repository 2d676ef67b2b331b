"""Snapshots: layer directories. A Draft is being written; leaving its block makes a Snapshot."""

from __future__ import annotations

import contextlib
import hashlib
import marshal
import os
from collections.abc import Iterator
from typing import NamedTuple

from cache.diff import normalise
from cache.entries import Entry
from cache.errors import CacheError, MissingError
from cache.store import Store, write_error
from cache.tree import Tree
from cache.trees import remove_tree

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
        lowers = (*(f"snapshots/{name}" for name in top_down(self.parents)), "mounts")
        return Overlay(lowers, f"{relative}/fs", f"{relative}/work")


def top_down(snapshots: tuple[str, ...]) -> list[str]:
    """A stack of layers from the top, equal ones once: the upper hides all that the lower holds,
    and overlayfs refuses a directory that is there twice. Raises MissingError for a layer without a name.
    """
    if "" in snapshots:  # it would be the folder of all snapshots
        raise MissingError("a layer is gone from the store", "build, load or pull the image again")
    return list(dict.fromkeys(reversed(snapshots)))


def tree_of(store: Store, snapshots: tuple[str, ...]) -> Tree:
    """The merged tree of *snapshots*, given from the bottom up."""
    return Tree(tuple(store.path("snapshots", name) for name in top_down(snapshots)))


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
    except OSError as error:
        raise write_error(error, f"a layer in {store.root}") from error
    finally:
        remove_tree(folder)


def commit(made: Draft, entries: list[Entry] | None = None, reduce: bool = False) -> str:
    """Publish a draft as a snapshot and return its id.

    *reduce* is for a draft that a container wrote through an overlay. *entries* is the
    manifest of a COPY's files, kept beside the layer for the next COPY and for tracing. Where it
    fails, nothing of it is left. Raises OSError and CacheError.
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
        if entries is not None:
            body = marshal.dumps([tuple(entry) for entry in entries])
            with open(store.path("files", name), "wb") as file:
                file.write(hashlib.sha256(body).digest() + body)
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
        with contextlib.suppress(FileNotFoundError):
            os.unlink(store.path("files", snapshot))
        store.index.forget_snapshot(snapshot)


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
