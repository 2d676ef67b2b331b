"""Roots of stages as plain folders, where overlayfs cannot be mounted: filled once, changed by their steps.

What a step changed is found by scanning: a file that was written to has another ctime, which no
program can set. The changes are moved into a draft as overlayfs would have left them there, so that
``cache.layer.reduce`` makes the same layer of them. A tree whose step failed is thrown away.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections import Counter
from collections.abc import Iterable, Iterator

from builder.rootfs.mount_points import add_points, take_points
from builder.runtime.chroot import skeleton
from cache.fs import image_xattrs, is_opaque, is_whiteout, make_whiteout, remove_tree
from cache.layer.landlock import confined
from cache.layer.merged_tree import Tree
from cache.layer.replicate import replicate
from cache.layer.snapshots import Draft, top_down, tree_of
from cache.store import Store

# An entry as a scan sees it: mode, owner, group, size, mtime, ctime, inode, links, device.
Seen = tuple[int, int, int, int, int, int, int, int, int]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_IDLE = 4  # trees that are kept for later steps
# What the supervisor of a step fills (builder.runtime.chroot.skeleton): its contents are in no layer.
KERNEL_FOLDERS = ("proc", "sys", "dev")


class StageTree:
    """One root: the folder ``root`` holds the layers ``stack``, bottom first, and nothing else."""

    def __init__(self, store: Store, filled: bool) -> None:
        """*filled* is whether /proc, /sys and /dev are filled in it."""
        self._store = store
        self.folder = store.temporary()
        os.mkdir(self.folder, 0o700)
        os.mkdir(self.root)
        os.chmod(self.root, 0o755)
        self.stack: tuple[str, ...] = ()
        self._skipped = KERNEL_FOLDERS if filled else ()
        self._seen: dict[str, Seen] = {}
        self._points: list[str] = []
        self.devices_work = True  # whether device nodes in it can be opened
        self._filled: dict[str, dict[str, Seen]] = {}  # /proc, /sys and /dev, as they were made
        self._own: set[str] = set()  # folders of the kernel's files that are not the image's
        self._taken: dict[str, int] = {}  # files that the last layer took, and the times of their folders

    @property
    def root(self) -> str:
        return os.path.join(self.folder, "fs")

    def advance(self, stack: tuple[str, ...]) -> None:
        """Bring back what the last step's layer took, and apply the layers of *stack* that are above it."""
        layers, taken = stack[len(self.stack) :], self._taken
        if not layers and not taken:
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
        self.stack, self._taken = stack, {}
        if layers:
            self._scan()
        else:
            self._look_again(taken)

    def prepare(self, points: str) -> None:
        """Before a step: make mount points. *points* is a folder with more of those, "" for none."""
        made: list[str] = []

        def make() -> None:
            if points:  # they cover ours
                made.extend(add_points(self.root, points))
            made.extend(add_points(self.root, self._store.path("mounts")))
            if self._skipped and self._kernel_files() != self._filled:
                self._fill_kernel_folders()

        confined([self.folder], make)
        self._own.update(path for path in made if path in self._skipped)
        self._points = [path for path in made if path not in self._skipped]

    def collect(self, draft: Draft) -> None:
        """After a step: move what it changed into *draft*, as the upper directory of an overlay.

        What is moved comes back, by ``advance``, as a copy: most trees are not needed after their last RUN.
        """

        def collect() -> dict[str, int]:
            take_points(self.root, self._points)
            before = self._seen
            self._scan()
            now = self._seen
            changed = [path for path, seen in now.items() if before.get(path) != seen]
            removed = [path for path in before if path not in now]
            work = _Changes(self.root, draft.upper, now, before)
            work.collect(changed, removed)
            return work.taken

        self._taken = confined([self.folder, draft.folder], collect)
        # A layer says nothing of the root itself, so that the next step finds it as it was.
        os.chown(self.root, 0, 0)
        os.chmod(self.root, 0o755)

    def _kernel_files(self) -> dict[str, dict[str, Seen]]:
        """What is in /proc, /sys and /dev."""
        out = {}
        for name in self._skipped:
            with contextlib.suppress(OSError):  # none, or no folder
                out[name] = scan(os.path.join(self.root, name))
        return out

    def _fill_kernel_folders(self) -> None:
        """Make /proc, /sys and /dev anew: the last step may have left anything in them."""
        root = os.open(self.root, _FOLDER)
        try:
            for name in self._skipped:
                try:
                    fd = os.open(name, _FOLDER, dir_fd=root)
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
        """The latest ctime of anything here, in ns: what a step changes has to have a later one."""
        return max((seen[5] for seen in self._seen.values()), default=0)

    def _look_again(self, paths: Iterable[str]) -> None:
        """Take note of how *paths* are now, nothing else having changed since the last scan."""
        top = os.open(self.root, _FOLDER)
        try:
            for path in paths:
                try:
                    found = os.stat(path, dir_fd=top, follow_symlinks=False)
                except FileNotFoundError:
                    self._seen.pop(path, None)
                else:
                    self._seen[path] = _seen(found)
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
        """A tree that holds *stack*, for one step. It is kept if the block is left without an error."""
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
        """The idle tree that has most of *stack*, else a new one."""
        with self._lock:
            fitting = [tree for tree in self._idle if stack[: len(tree.stack)] == tree.stack]
            if fitting:
                best = max(fitting, key=lambda tree: len(tree.stack))
                self._idle.remove(best)
                return best
        return StageTree(self._store, self._filled)


def _seen(found: os.stat_result) -> Seen:
    return (
        found.st_mode, found.st_uid, found.st_gid, found.st_size, found.st_mtime_ns,
        found.st_ctime_ns, found.st_ino, found.st_nlink, found.st_rdev,
    )  # fmt: skip


def scan(root: str, skipped: tuple[str, ...] = ()) -> dict[str, Seen]:
    """Everything below *root* by its path; of the folders *skipped* only themselves. Raises OSError."""
    out: dict[str, Seen] = {}
    top = os.open(root, _FOLDER)
    try:
        folders = [""]
        while folders:
            folder = folders.pop()
            prefix = folder + "/" if folder else ""
            fd = os.open(folder or ".", _FOLDER, dir_fd=top)
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        path = prefix + entry.name
                        found = entry.stat(follow_symlinks=False)
                        out[path] = _seen(found)
                        if stat.S_ISDIR(found.st_mode) and path not in skipped:
                            folders.append(path)
            finally:
                os.close(fd)
    finally:
        os.close(top)
    return out


class _Changes:
    """What a step changed, on its way from the folder *root* to the folder *upper*."""

    def __init__(self, root: str, upper: str, now: dict[str, Seen], before: dict[str, Seen]) -> None:
        self._root, self._upper = root, upper
        self._now, self._before = now, before
        self.taken: dict[str, int] = {}

    def collect(self, changed: list[str], removed: list[str]) -> None:
        """Move files, make folders again, and mark what is gone. Raises OSError."""
        now, before = self._now, self._before
        gone = [path for path in removed if _was_in_folder(path, now, before)]
        folders: set[str] = {path for path in changed if stat.S_ISDIR(now[path][0])}
        for path in (*changed, *gone):
            above = path.rpartition("/")[0]
            while above and above not in folders:
                folders.add(above)
                above = above.rpartition("/")[0]
        files = [path for path in changed if not stat.S_ISDIR(now[path][0])]
        names = Counter(now[path][6] for path in files)
        source, target = os.open(self._root, _FOLDER), os.open(self._upper, _FOLDER)
        try:
            for path in sorted(folders):
                os.mkdir(path, 0o700, dir_fd=target)
            for path in sorted(folders):
                _dress(self._root, path, self._upper, False)
            copied: dict[int, str] = {}
            for path in files:
                inode, links = now[path][6], now[path][7]
                if links <= names[inode]:
                    os.rename(path, path, src_dir_fd=source, dst_dir_fd=target)
                elif inode in copied:
                    os.link(copied[inode], path, src_dir_fd=target, dst_dir_fd=target, follow_symlinks=False)
                else:  # a file of this inode stays elsewhere, as in a cache, and may be written to there
                    found = os.stat(path, dir_fd=source, follow_symlinks=False)
                    replicate(source, path, target, path, found)
                    copied[inode] = path
                self.taken[path] = 0
            for path in gone:
                make_whiteout(path, dir_fd=target)
            for path in sorted(folders, reverse=True):
                _date(path, target, now[path][4])
            for path in {path.rpartition("/")[0] for path in files}:
                if path:
                    _date(path, source, now[path][4])
                    self.taken[path] = now[path][4] or 1  # 0 is said of files
        finally:
            os.close(source)
            os.close(target)


def _added(store: Store, stack: tuple[str, ...]) -> list[str]:
    """What the last layer of *stack* brings: itself, and what says how folders look that it only implies."""
    names = top_down(store, stack)
    return names[names.index(stack[-1]) :: -1]


def _date(path: str, folder: int, time: int) -> None:
    os.utime(path, ns=(time, time), dir_fd=folder, follow_symlinks=False)


def _bring_back(root: str, taken: dict[str, int], merged: Tree) -> None:
    """Copy what the last layer took from *root* to it again, as it is in *merged*. Raises OSError."""
    top = os.open(root, _FOLDER)
    try:
        for path, time in taken.items():
            if time:
                continue
            node = merged.lookup(path, follow=False)
            if node is not None:
                _replace(-1, node.real, top, node.found, path)
        for path, time in taken.items():
            if time:
                _date(path, top, time)
    finally:
        os.close(top)


def _was_in_folder(path: str, now: dict[str, Seen], before: dict[str, Seen]) -> bool:
    """Whether the folder of *path* is still one, so that a layer has to say that *path* is gone."""
    above = path.rpartition("/")[0]
    return not above or (above in now and stat.S_ISDIR(now[above][0]) and stat.S_ISDIR(before[above][0]))


def _dress(root: str, path: str, upper: str, dated: bool = True) -> None:
    """Give the folder *path* of *upper* the looks of that of *root*, its time too if it is *dated*."""
    source, target = os.path.join(root, path), os.path.join(upper, path)
    found = os.lstat(source)
    os.chown(target, found.st_uid, found.st_gid, follow_symlinks=False)
    for name, value in image_xattrs(source):
        os.setxattr(target, name, value, follow_symlinks=False)
    os.chmod(target, stat.S_IMODE(found.st_mode))
    if dated:
        os.utime(target, ns=(found.st_mtime_ns, found.st_mtime_ns))


def apply_layer(layer: str, root: str, skipped: tuple[str, ...] = ()) -> None:
    """Put the folder *layer*, but for its devices, on top of what is in *root*. Raises OSError."""
    source, target = os.open(layer, _FOLDER), os.open(root, _FOLDER)
    folders: list[str] = []
    try:
        if is_opaque(source):
            for name in os.listdir(target):
                if name not in skipped:
                    remove_tree(name, dir_fd=target)
        todo = [""]
        while todo:
            folder = todo.pop()
            prefix = folder + "/" if folder else ""
            fd = os.open(folder or ".", _FOLDER, dir_fd=source)
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        path, found = prefix + entry.name, entry.stat(follow_symlinks=False)
                        if is_whiteout(found):
                            remove_tree(path, dir_fd=target)
                        elif entry.is_dir(follow_symlinks=False):
                            _apply_folder(layer, path, target)
                            folders.append(path)
                            if path not in skipped:
                                todo.append(path)
                        elif not stat.S_ISBLK(found.st_mode) and not stat.S_ISCHR(found.st_mode):
                            _replace(source, path, target, found)
            finally:
                os.close(fd)
    finally:
        os.close(source)
        os.close(target)
    for path in reversed(folders):  # parents last: what is made in them touches them
        _dress(layer, path, root)


def _apply_folder(layer: str, path: str, target: int) -> None:
    """See that *path* is a folder: with what it has, unless the layer hides that."""
    try:
        there = stat.S_ISDIR(os.stat(path, dir_fd=target, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        os.mkdir(path, 0o700, dir_fd=target)
        return
    if not there or is_opaque(os.path.join(layer, path)):
        remove_tree(path, dir_fd=target)
        os.mkdir(path, 0o700, dir_fd=target)


def _replace(source: int, path: str, target: int, found: os.stat_result, name: str = "") -> None:
    """Copy *path* to *name*, the same if it is "", in the place of what is there."""
    try:
        replicate(source, path, target, name or path, found)
    except FileExistsError:
        remove_tree(name or path, dir_fd=target)
        replicate(source, path, target, name or path, found)
