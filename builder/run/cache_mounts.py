"""Cache mounts (RUN --mount=type=cache): directories of the store, each locked while a step uses it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Sequence

from builder.copy.place import copy_tree
from builder.environment import Environment
from builder.events import Notice
from builder.plan.ops import CacheMount, Mount
from builder.runtime.isolation import NAMESPACES
from cache.fs import remove_devices, remove_tree
from cache.kernel import set_owner
from cache.layer.snapshots import tree_of
from cache.locks import try_lock
from grammar.structs import struct

_POLL = 0.05  # seconds between two tries to lock a cache

# Snapshots, bottom first.
_Stack = tuple[str, ...]


@struct
class _Wanted:
    """A cache mount of a step: its name, and the snapshots of the files that a new one begins with."""

    name: str
    mount: CacheMount
    layers: _Stack


class CacheMounts:
    """The cache mounts of one build."""

    def __init__(self, environment: Environment, fill: Callable[[str, str], bool] | None) -> None:
        """*fill* puts the content that a shared cache has for a cache, by its name, into a new directory.

        It returns True if there was some.
        """
        self._store = environment.store
        self._sink = environment.sink
        self._cancellation = environment.cancellation
        self._isolation = environment.isolation
        self._fill = fill
        self._emptied: set[str] = set()  # names of the caches that --no-cache has emptied

    def take(
        self, mounts: Sequence[Mount], sources: Sequence[_Stack], held: contextlib.ExitStack
    ) -> dict[int, str]:
        """Return the directory of each cache mount, by its place in *mounts*, relative to the store.

        *sources* are the snapshots of the step's sources. The caches are locked until *held* is left, always
        in one order: otherwise two steps with two locked caches could wait for each other.
        """
        wanted = {
            number: _Wanted(cache_name(mount, layers), mount, layers)
            for number, mount in enumerate(mounts)
            if isinstance(mount, CacheMount)
            for layers in [sources[mount.origin] if mount.origin >= 0 else ()]
        }
        taken: dict[str, str] = {}
        for _number, one in sorted(wanted.items(), key=lambda item: (item[1].name, item[0])):
            if one.name not in taken:
                taken[one.name] = self._take(one, held)
        return {number: taken[one.name] for number, one in wanted.items()}

    def empty(self, mounts: Sequence[Mount], sources: Sequence[_Stack] | None) -> None:
        """Remove what is in the caches of a RUN that is not to come from the build cache, once in a build.

        The name of a cache that begins with files depends on their layers: *sources*, None while they are
        not known.
        """
        for mount in mounts:
            if isinstance(mount, CacheMount) and (mount.origin < 0) == (sources is None):
                name = cache_name(mount, sources[mount.origin] if sources else ())
                with self._store.making(f"empty-{name}"):
                    if name not in self._emptied:
                        self._emptied.add(name)
                        self._empty(name, mount.sharing)

    def _take(self, wanted: _Wanted, held: contextlib.ExitStack) -> str:
        """Lock a cache; of a private one the first instance that is not in use."""
        sharing, instance = wanted.mount.sharing, 0
        while True:
            relative = f"caches/{wanted.name}" + (f".{instance}" if instance else "")
            self._ensure(relative, wanted)
            try:
                fd = self._open(relative)
            except FileNotFoundError:
                continue  # it was emptied a moment ago
            # Where nothing can be mounted, the entries of a cache can be in one root only.
            used = not try_lock(fd, shared=sharing == "shared" and self._isolation == NAMESPACES)
            if not used and self._is_still(fd, relative):
                held.callback(os.close, fd)
                return relative
            os.close(fd)
            if sharing == "private" and used:
                instance += 1
            else:
                self._cancellation.check()
                time.sleep(_POLL)

    def _open(self, relative: str) -> int:
        return os.open(self._store.path(relative), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _is_still(self, fd: int, relative: str) -> bool:
        """Return False if a cache was emptied, and so replaced, before it was locked."""
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self._store.path(relative)))
        except FileNotFoundError:
            return False

    def _empty(self, name: str, sharing: str) -> None:
        """Remove every instance of a cache, each once nobody uses it; a private one in use stays."""
        folder = self._store.path("caches")
        for found in [item for item in os.listdir(folder) if item.partition(".")[0] == name]:
            relative, reported = f"caches/{found}", False
            while True:
                try:
                    fd = self._open(relative)
                except FileNotFoundError:
                    break
                try:
                    if try_lock(fd):
                        aside = self._store.temporary()
                        os.rename(os.path.join(folder, found), aside)
                        remove_tree(aside)
                        break
                finally:
                    os.close(fd)
                if sharing == "private":
                    break
                if not reported:
                    self._sink(Notice("waiting for a cache mount that is to be emptied and is in use"))
                    reported = True
                self._cancellation.check()
                time.sleep(_POLL)

    def _ensure(self, relative: str, wanted: _Wanted) -> None:
        """Make a cache that is missing; it is complete before it has its name."""
        store, mount = self._store, wanted.mount
        final = store.path(relative)
        if os.path.isdir(final):
            return
        with store.making(relative.replace("/", "-")):  # a rename would replace an empty one that is in use
            if os.path.isdir(final):
                return
            made = store.temporary()
            os.mkdir(made, 0o700)
            if not self._filled(wanted.name, made) and wanted.layers:
                copy_tree(tree_of(store, wanted.layers), made)
                remove_devices(made)
            set_owner(made, mount.uid, mount.gid)
            os.chmod(made, mount.mode)
            os.rename(made, final)

    def _filled(self, name: str, made: str) -> bool:
        """Fill a new cache from a shared cache. Return True if that had content for it."""
        return self._fill is not None and name not in self._emptied and self._fill(name, made)


def cache_name(mount: CacheMount, layers: _Stack) -> str:
    """Return the name of a cache: a digest of its id, the layers it begins with, its mode and owner."""
    text = repr((mount.id, layers, mount.mode, mount.uid, mount.gid))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
