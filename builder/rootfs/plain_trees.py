"""Roots of stages as plain directories, where overlayfs is unavailable: filled once, changed by their steps.

The diff of a step is found by a scan: a file that was written to has another ctime, which no program can set.
The changes are moved into a draft as overlayfs would have left them there, so that ``cache.layer.reduce``
makes the same layer of them. A tree whose step failed is removed.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections import Counter
from collections.abc import Iterable, Iterator

from builder.rootfs.mount_points import add_points, take_points
from builder.rootfs.walk import (
    CTIME,
    DIRECTORY,
    INODE,
    LINKS,
    MODE,
    MTIME,
    Seen,
    apply_layer,
    copy_metadata,
    replace,
    scan,
    seen,
)
from builder.runtime.chroot import skeleton
from cache.fs import make_whiteout, remove_tree
from cache.layer.landlock import confined
from cache.layer.merged_tree import Tree
from cache.layer.replicate import replicate
from cache.layer.snapshots import Draft, top_down, tree_of
from cache.store import Store

_MOST_IDLE = 4  # trees that are kept for later steps
# Filled for chrooted steps (builder.runtime.chroot.skeleton): their contents are in no layer.
KERNEL_DIRECTORIES = ("proc", "sys", "dev")


class StageTree:
    """One root: the directory ``root`` holds the layers ``stack``, bottom first, and nothing else."""

    def __init__(self, store: Store, filled: bool) -> None:
        """*filled* is whether /proc, /sys and /dev are filled in it."""
        self._store = store
        self.folder = store.temporary()
        os.mkdir(self.folder, 0o700)
        os.mkdir(self.root)
        os.chmod(self.root, 0o755)
        self.stack: tuple[str, ...] = ()
        self._skipped = KERNEL_DIRECTORIES if filled else ()
        self._seen: dict[str, Seen] = {}
        self._points: list[str] = []
        self.devices_work = True  # whether device nodes in it can be opened
        self._filled: dict[str, dict[str, Seen]] = {}  # /proc, /sys and /dev, as they were made
        self._own: set[str] = set()  # directories of kernel files that are not the image's
        self._taken = _Taken()

    @property
    def root(self) -> str:
        return os.path.join(self.folder, "fs")

    def advance(self, stack: tuple[str, ...]) -> None:
        """Copy back what was moved to the last step's layer, and apply the layers of *stack* above it."""
        layers, taken = stack[len(self.stack) :], self._taken
        if not layers and not taken.files:
            return
        merged = tree_of(self._store, self.stack)
        new = [
            name
            for count in range(len(self.stack), len(stack))
            for name in _added(self._store, stack[: count + 1])
        ]

        def apply() -> None:
            _bring_back(self.root, taken, merged)
            for layer in new:
                apply_layer(self._store.path("snapshots", layer), self.root, self._skipped)

        confined([self.folder], apply)
        self.stack, self._taken = stack, _Taken()
        if layers:
            self._scan()
        else:
            self._look_again((*taken.files, *taken.times))

    def prepare(self, points: str) -> None:
        """Make mount points before a step. *points* is a directory with more of those, "" for none."""
        made: list[str] = []

        def make() -> None:
            if points:  # they cover ours
                made.extend(add_points(self.root, points))
            made.extend(add_points(self.root, self._store.path("mounts")))
            if self._skipped and self._kernel_files() != self._filled:
                self._fill_kernel_directories()

        confined([self.folder], make)
        self._own.update(path for path in made if path in self._skipped)
        self._points = [path for path in made if path not in self._skipped]

    def collect(self, draft: Draft) -> None:
        """Move what a step changed into *draft*, as the upper directory of an overlay.

        ``advance`` copies it back: most trees are not needed after their last RUN.
        """

        def collect() -> _Taken:
            take_points(self.root, self._points)
            before = self._seen
            self._scan()
            now = self._seen
            changed = [path for path, entry in now.items() if before.get(path) != entry]
            removed = [path for path in before if path not in now]
            work = _Changes(self.root, draft.upper, now, before)
            work.collect(changed, removed)
            return work.taken

        self._taken = confined([self.folder, draft.folder], collect)
        # A layer says nothing of the root itself, so that the next step finds it as it was.
        os.chown(self.root, 0, 0)
        os.chmod(self.root, 0o755)

    def _kernel_files(self) -> dict[str, dict[str, Seen]]:
        """Return the contents of /proc, /sys and /dev."""
        out = {}
        for name in self._skipped:
            with contextlib.suppress(OSError):  # missing, or not a directory
                out[name] = scan(os.path.join(self.root, name))
        return out

    def _fill_kernel_directories(self) -> None:
        """Empty and fill /proc, /sys and /dev: the last step may have left anything in them."""
        root = os.open(self.root, DIRECTORY)
        try:
            for name in self._skipped:
                try:
                    fd = os.open(name, DIRECTORY, dir_fd=root)
                except OSError:
                    continue
                try:
                    for entry in os.listdir(fd):
                        remove_tree(entry, dir_fd=fd)
                finally:
                    os.close(fd)
            self.devices_work = skeleton.prepare(root)
        finally:
            os.close(root)
        self._filled = self._kernel_files()

    def newest(self) -> int:
        """Return the latest ctime in the tree, in ns: what a step changes has to have a later one."""
        return max((entry[CTIME] for entry in self._seen.values()), default=0)

    def _look_again(self, paths: Iterable[str]) -> None:
        """Scan *paths* again; nothing else has changed since the last scan."""
        top = os.open(self.root, DIRECTORY)
        try:
            for path in paths:
                try:
                    found = os.stat(path, dir_fd=top, follow_symlinks=False)
                except FileNotFoundError:
                    self._seen.pop(path, None)
                else:
                    self._seen[path] = seen(found)
        finally:
            os.close(top)

    def _scan(self) -> None:
        self._seen = scan(self.root, self._skipped)
        for path in self._own:
            self._seen.pop(path, None)


class StageTrees:
    """The trees of one build, kept from step to step."""

    def __init__(self, store: Store, filled: bool) -> None:
        self._store = store
        self._filled = filled
        self._idle: list[StageTree] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def taken(self, stack: tuple[str, ...]) -> Iterator[StageTree]:
        """Provide a tree that holds *stack*, for one step. It is kept if the block ends without an error."""
        tree = self._take(stack)
        try:
            tree.advance(stack)
            yield tree
        except BaseException:
            remove_tree(tree.folder)
            raise
        with self._lock:
            self._idle.append(tree)
            spare = self._idle.pop(0) if len(self._idle) > _MOST_IDLE else None
        if spare is not None:
            remove_tree(spare.folder)

    def _take(self, stack: tuple[str, ...]) -> StageTree:
        """Return the idle tree that has most of *stack*, or a new one."""
        with self._lock:
            fitting = [tree for tree in self._idle if stack[: len(tree.stack)] == tree.stack]
            if fitting:
                best = max(fitting, key=lambda tree: len(tree.stack))
                self._idle.remove(best)
                return best
        return StageTree(self._store, self._filled)


class _Taken:
    """The files that were moved from a tree to the last layer, and the mtimes (ns) of their directories."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self.times: dict[str, int] = {}


class _Changes:
    """The diff of a step, which is moved from the directory *root* to the directory *upper*."""

    def __init__(self, root: str, upper: str, now: dict[str, Seen], before: dict[str, Seen]) -> None:
        self._root, self._upper = root, upper
        self._now, self._before = now, before
        self.taken = _Taken()

    def collect(self, changed: list[str], removed: list[str]) -> None:
        """Move files, make directories again, and mark what is gone. Raises OSError."""
        now, before = self._now, self._before
        gone = [path for path in removed if _needs_whiteout(path, now, before)]
        directories: set[str] = {path for path in changed if stat.S_ISDIR(now[path][MODE])}
        for path in (*changed, *gone):
            above = path.rpartition("/")[0]
            while above and above not in directories:
                directories.add(above)
                above = above.rpartition("/")[0]
        files = [path for path in changed if not stat.S_ISDIR(now[path][MODE])]
        names = Counter(now[path][INODE] for path in files)
        source, target = os.open(self._root, DIRECTORY), os.open(self._upper, DIRECTORY)
        try:
            for path in sorted(directories):
                os.mkdir(path, 0o700, dir_fd=target)
            for path in sorted(directories):
                copy_metadata(self._root, path, self._upper)
            copied: dict[int, str] = {}
            for path in files:
                inode, links = now[path][INODE], now[path][LINKS]
                if links <= names[inode]:
                    os.rename(path, path, src_dir_fd=source, dst_dir_fd=target)
                elif inode in copied:
                    os.link(copied[inode], path, src_dir_fd=target, dst_dir_fd=target, follow_symlinks=False)
                else:  # a file of this inode stays elsewhere, as in a cache, and may be written to there
                    found = os.stat(path, dir_fd=source, follow_symlinks=False)
                    replicate(source, path, target, path, found)
                    copied[inode] = path
                self.taken.files.append(path)
            for path in gone:
                make_whiteout(path, dir_fd=target)
            for path in sorted(directories, reverse=True):
                _date(path, target, now[path][MTIME])
            for path in {path.rpartition("/")[0] for path in files}:
                if path:
                    _date(path, source, now[path][MTIME])
                    self.taken.times[path] = now[path][MTIME]
        finally:
            os.close(source)
            os.close(target)


def _added(store: Store, stack: tuple[str, ...]) -> list[str]:
    """Return the last layer of *stack*, and the layer with the metadata of directories that it implies."""
    names = top_down(store, stack)
    return names[names.index(stack[-1]) :: -1]


def _date(path: str, folder: int, time: int) -> None:
    os.utime(path, ns=(time, time), dir_fd=folder, follow_symlinks=False)


def _bring_back(root: str, taken: _Taken, merged: Tree) -> None:
    """Copy the files that were moved from *root* back to it, from *merged*. Raises OSError."""
    top = os.open(root, DIRECTORY)
    try:
        for path in taken.files:
            node = merged.lookup(path, follow=False)
            if node is not None:
                replace(-1, node.real, top, path, node.found)
        for path, time in taken.times.items():
            _date(path, top, time)
    finally:
        os.close(top)


def _needs_whiteout(path: str, now: dict[str, Seen], before: dict[str, Seen]) -> bool:
    """Return True if the parent of *path* is still a directory, so that *path* needs a whiteout."""
    above = path.rpartition("/")[0]
    return not above or (
        above in now and stat.S_ISDIR(now[above][MODE]) and stat.S_ISDIR(before[above][MODE])
    )
