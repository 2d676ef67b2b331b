"""The upper directory of a layer, filled without a mount by a COPY, an ADD or a WORKDIR.

A file that the previous layer of the same COPY holds, equal in every respect, is linked instead of
written: layers are immutable, so a build context with one changed file costs one copy.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from builder.copy.files import digest_of_file, files_first, set_metadata, write_file
from builder.copy.pack_process import Packer, Stream
from builder.copy.sources import MADE_TIME
from builder.errors import CopyError
from builder.plan.modes import Mode
from cache.digest import SnapshotId
from cache.entry import (
    BLOCK,
    CHARACTER,
    DIRECTORY,
    FIFO,
    FILE,
    HARDLINK,
    SYMLINK,
    WHITEOUT,
    Entry,
    kind_of,
)
from cache.fs import OPAQUE, image_xattrs, make_whiteout, remove_tree
from cache.kernel import keeps_owners
from cache.layer.blobs import record_packed
from cache.layer.merged_tree import Node, Tree
from cache.layer.reduce import check_name
from cache.layer.same import same_entry, same_metadata
from cache.layer.snapshots import Draft, commit
from grammar.structs import struct


@struct
class NewMetadata:
    """The metadata that a COPY gives: an owner (uid and gid) and a mode instead of those of the source.

    ``epoch`` is the time, in seconds, of directories that the builder itself makes; 0 is the fixed default.
    """

    owner: tuple[int, int] | None = None
    mode: Mode | None = None
    epoch: int = 0


class PreviousLayer(NamedTuple):
    """The directory and the entries of the layer that the same COPY made last."""

    directory: str
    entries: list[Entry]


class Writer:
    """Fills the directory *upper* over the layers *lower*, and knows what it has written."""

    def __init__(
        self,
        upper: str,
        lower: Tree,
        metadata: NewMetadata | None = None,
        previous: PreviousLayer | None = None,
        packer: Packer | None = None,
    ) -> None:
        """*previous* is the layer that the same COPY made last; *packer* packs the layer meanwhile."""
        metadata = metadata or NewMetadata()
        self._upper = upper
        self._lower = lower
        self._ids = metadata.owner
        self._mode = metadata.mode
        self._root = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._entries: dict[str, Entry] = {}
        self._stream = Stream(packer, self._root)
        # The lower directory that each of our directories lies over, None where there is none.
        self._below: dict[str, Node | None] = {"": lower.root}
        # Directories that took the place of what was written there, and what of below they hide.
        self._hides: dict[str, Node] = {}
        self._linked: dict[str, list[str]] = {}
        # What is below as it was to be written, and the name of this layer that links to it have.
        self._kept: dict[str, str] = {}
        self._links = True
        self._replaces = False
        self._owners = keeps_owners()  # else files do not show whose they are
        self._made = metadata.epoch * 10**9 or MADE_TIME  # the time of what is nobody's but ours
        self._old: dict[str, Entry] = {}
        self._old_root = -1
        if previous is not None:
            self._old = {entry.path: entry for entry in previous.entries if entry.kind == FILE}
            self._old_root = os.open(previous.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        self._stream.close()
        os.close(self._root)
        if self._old_root >= 0:
            os.close(self._old_root)

    def resolve(self, path: str) -> str:
        """Return where *path* leads in the merged tree, links followed."""
        return self._merged().resolve(path)[0]

    def resolve_below(self, top: str, path: str) -> str:
        """Return where *path* leads below *top*, which is the root of absolute links."""
        return self._merged().resolve_below(top, path)

    def _merged(self) -> Tree:
        folders = self._lower.root.folders if self._lower.root else ()
        return Tree((self._upper, *folders))

    @contextlib.contextmanager
    def unpacking(self) -> Iterator[None]:
        """Inside, files and directories replace each other, and modes are those of the entries."""
        mode, self._mode, self._replaces = self._mode, None, True
        try:
            yield
        finally:
            self._mode, self._replaces = mode, False

    def free(self) -> int:
        """Return how many bytes the file system of the layer has left."""
        found = os.fstatvfs(self._root)
        return found.f_bavail * found.f_frsize

    def wrote(self, path: str) -> bool:
        return path in self._entries

    def keeps(self, path: str, entry: Entry, under: Node) -> bool:
        """Return whether *path* was left out as equal to *under* and *entry* keeps its metadata."""
        uid, gid = self._ids or (entry.uid, entry.gid)
        return path in self._kept and same_metadata(entry._replace(uid=uid, gid=gid), under)

    def below(self, path: str) -> Node | None:
        """Return the lower node at *path* unless it is a directory: what a hard link may name."""
        node = self._lower.lookup(path, follow=False)
        return node if node is not None and not node.is_dir else None

    def stands(self, path: str) -> str:
        """Return the kind of the file at *path*, "" for none. Its parent is a directory of this layer."""
        if path in self._entries:
            return self._entries[path].kind
        under = self._under(path)
        return kind_of(under.found) if under is not None else ""

    def is_directory(self, path: str) -> bool:
        entry = self._entries.get(path)
        if entry is not None:
            return entry.kind == DIRECTORY
        node = self._lower.lookup(path, follow=False)
        return path == "" or (node is not None and node.is_dir)

    # -- directories -----------------------------------------------------------------------

    def make_parents(self, path: str, time: int | None = None, owned: bool = True) -> None:
        """Make *path* a directory of this layer: copied up where it exists, new otherwise.

        With *time*, in nanoseconds, that is its own. New ones are root's if they are not *owned*.
        """
        wanted, missing = path, []
        while path not in self._below:
            missing.append(path)
            path = path.rpartition("/")[0]
        for folder in reversed(missing):
            self._make_parent(folder, time if folder == wanted else None, owned)
        if time is not None and wanted and not missing:
            self._date(wanted, time)

    def _date(self, path: str, time: int) -> None:
        old = self._entries[path]
        if old.mtime != time:
            self._stream.spoil()
            self._entries[path] = old._replace(mtime=time)

    def _make_parent(self, path: str, time: int | None, owned: bool) -> None:
        under = self._under(path)
        if path in self._entries or (under is not None and not under.is_dir):
            raise CopyError(f"cannot copy to non-directory: /{path}")
        if under is None:
            mode = 0o755 if self._mode is None else self._mode.of_parent
            uid, gid = (self._ids if owned else None) or (0, 0)
            above = self._entries.get(path.rpartition("/")[0])
            if above is not None and above.mode & stat.S_ISGID:  # handed down, as by mkdir(2)
                mode |= stat.S_ISGID if owned else 0
                gid = above.gid if not owned or self._ids is None else gid
            made = self._made if time is None else time
            self._directory(Entry(path, DIRECTORY, mode, uid, gid, mtime=made), None)
        else:
            found = under.found
            mode = found.st_mode & 0o7777
            when = found.st_mtime_ns if time is None else time
            xattrs = image_xattrs(under.real)
            copied = Entry(path, DIRECTORY, mode, found.st_uid, found.st_gid, mtime=when, xattrs=xattrs)
            self._directory(copied, under)

    def _directory(self, entry: Entry, under: Node | None) -> None:
        check_name(entry.path.rpartition("/")[2])
        os.mkdir(entry.path, 0o700, dir_fd=self._root)
        self._record(entry)
        self._below[entry.path] = under

    def _under(self, path: str) -> Node | None:
        """Return the lower node at *path*, whose parent is a directory of this layer."""
        above, _, name = path.rpartition("/")
        parent = self._below[above]
        return self._lower.child(parent, name) if parent is not None else None

    # -- members ---------------------------------------------------------------------------

    def put(self, path: str, entry: Entry, content: Iterator[bytes]) -> None:
        """Write one member at *path*, over whatever the rules allow to be replaced."""
        uid, gid = self._ids or (entry.uid, entry.gid)
        mode = entry.mode
        if self._mode is not None and entry.kind != SYMLINK:
            mode = self._mode.apply(mode, entry.kind == DIRECTORY)
        entry = Entry(path, entry.kind, mode, uid, gid, entry.size, entry.mtime, *entry[7:])
        if entry.kind == DIRECTORY:
            self._put_directory(entry)
            return
        check_name(path.rpartition("/")[2])
        under = self._make_way(path)
        if self._is_below(entry, under):
            self._kept[path] = ""
            return
        if entry.kind == FILE:
            if not self._link_old(entry):
                known = entry.digest
                entry = entry._replace(digest=write_file(self._root, entry, content))
                if not known and self._is_below(entry, under):
                    os.unlink(path, dir_fd=self._root)
                    self._kept[path] = ""
                    return
        elif entry.kind == SYMLINK:
            os.symlink(entry.link, path, dir_fd=self._root)
            set_metadata(self._root, entry)
        elif entry.kind == FIFO:
            os.mkfifo(path, 0o600, dir_fd=self._root)
            set_metadata(self._root, entry)
        elif entry.kind in (CHARACTER, BLOCK):
            if entry.kind == CHARACTER and entry.rdev == 0:
                raise CopyError(f"/{path} is character device 0:0, which in a layer deletes a file")
            kind = stat.S_IFCHR if entry.kind == CHARACTER else stat.S_IFBLK
            try:
                os.mknod(path, kind | 0o600, entry.rdev, dir_fd=self._root)
            except PermissionError:
                return  # only real root can; cache.layer.unpack does without, too
            set_metadata(self._root, entry)
        self._record(entry)

    def put_parent(self, path: str, entry: Entry) -> None:
        """Write a directory that is a parent of selected files: an existing one only gets the mode."""
        if not self.is_directory(path):
            self.put(path, entry, iter(()))
            return
        self.make_parents(path)
        if path and self._entries[path].mode != entry.mode:
            self._stream.spoil()
            self._entries[path] = self._entries[path]._replace(mode=entry.mode)

    def _record(self, entry: Entry) -> None:
        self._entries[entry.path] = entry
        self._stream.add(entry)

    def _is_below(self, entry: Entry, under: Node | None) -> bool:
        """Return whether the lower node equals the entry, so that the layer can leave it out."""
        if under is None or not self._owners:
            return False
        real = under.real
        return same_entry(entry, under, lambda: bool(entry.digest) and digest_of_file(real) == entry.digest)

    def _put_directory(self, entry: Entry) -> None:
        """Write a directory below the top, or give an existing one the metadata of the source (T13)."""
        old = self._entries.get(entry.path)
        if old is None:
            under = self._under(entry.path)
            if under is not None and not under.is_dir:
                if not self._replaces:
                    raise CopyError(f"cannot copy to non-directory: /{entry.path}")
                under = None
            self._directory(entry, under)
        elif old.kind != DIRECTORY:
            if not self._replaces:
                raise CopyError(f"cannot copy to non-directory: /{entry.path}")
            self._clear(entry.path)
            self._directory(entry, None)
            under = self._under(entry.path)
            if under is not None and under.is_dir:  # the file had hidden it
                self._hides[entry.path] = under
                os.setxattr(os.path.join(self._upper, entry.path), OPAQUE, b"y")
        elif old != entry:
            self._stream.spoil()
            self._entries[entry.path] = entry

    def _make_way(self, path: str) -> Node | None:
        """Remove what was written at *path*. Return the lower node there if nothing was."""
        self._kept.pop(path, None)
        old = self._entries.get(path)
        if self._replaces:
            self._clear(path)
            return self._under(path) if old is None else None
        if old is not None:
            if old.kind == DIRECTORY:
                raise CopyError(f"cannot replace to directory /{path} with file")
            os.unlink(path, dir_fd=self._root)
            del self._entries[path]
            self._stream.spoil()
            if path in self._linked:
                self._promote(old, self._linked.pop(path))
            return None
        under = self._under(path)
        if under is not None and under.is_dir:
            raise CopyError(f"cannot replace to directory /{path} with file")
        return under

    def _clear(self, path: str) -> None:
        """Remove what was written at *path*, recursively."""
        old = self._entries.get(path)
        if old is None:
            return
        self._stream.spoil()
        if old.kind != DIRECTORY:
            gone = [path]
        else:
            gone = [name for name in self._entries if name == path or name.startswith(path + "/")]
        remove_tree(path, dir_fd=self._root)
        removed = {name: self._entries.pop(name) for name in gone}
        for name, entry in removed.items():
            self._below.pop(name, None)
            self._hides.pop(name, None)
            self._promote(entry, [other for other in self._linked.pop(name, []) if other not in removed])

    def _promote(self, old: Entry, names: list[str]) -> None:
        """Make the second name of a file the first one, because the first is replaced."""
        names = [name for name in names if self._entries.get(name, old).link == old.path]
        if names:
            first = self._entries[names[0]] = old._replace(path=names[0])
            for name in names[1:]:
                self._entries[name] = self._entries[name]._replace(link=first.path)
            self._linked[first.path] = names[1:]

    def link(self, path: str, target: str, entry: Entry, content: Iterator[bytes]) -> None:
        """Write a hard link to *target*, which was written before (T20).

        If *target* was left out as equal to the lower layer, *path* is written as *entry* with *content*.
        """
        if target in self._kept:
            if not self._kept[target]:
                self.put(path, entry, content)
                self._kept[target] = path if path in self._entries else ""
                return
            target = self._kept[target]
        if target not in self._entries:
            raise CopyError(f"hard link /{path}: its first name /{target} was not copied")
        self._make_way(path)
        if target not in self._entries:
            raise CopyError(f"hard link /{path} takes the place of what it names, /{target}")
        target, first = self._first_name(target)
        os.link(target, path, src_dir_fd=self._root, dst_dir_fd=self._root, follow_symlinks=False)
        self._record(first._replace(path=path, kind=HARDLINK, link=target, size=0))
        self._linked.setdefault(target, []).append(path)

    def retouch(self, path: str, entry: Entry) -> None:
        """Give a written file the owner, mode and time of *entry*, which is another name of it.

        The entries of its other names get them in ``files_first``.
        """
        uid, gid = self._ids or (entry.uid, entry.gid)
        path, old = self._first_name(path)
        new = old._replace(uid=uid, gid=gid)
        if old.kind != SYMLINK:
            new = new._replace(mode=entry.mode, mtime=entry.mtime)
        if new != old:
            self._stream.spoil()
            set_metadata(self._root, new)
            self._entries[path] = new

    def _first_name(self, path: str) -> tuple[str, Entry]:
        """Return the first name of the file at *path*, and its entry."""
        while (entry := self._entries[path]).kind == HARDLINK:
            path = entry.link
        return path, entry

    def _link_old(self, entry: Entry) -> bool:
        """Link the file of the previous layer if it is equal. Return whether it is."""
        old = self._old.get(entry.path)
        if not self._links or not entry.digest or old != entry:
            return False
        try:
            os.link(
                entry.path,
                entry.path,
                src_dir_fd=self._old_root,
                dst_dir_fd=self._root,
                follow_symlinks=False,
            )
        except OSError:
            self._links = False  # too many links, or the old layer is gone: write from here on
            return False
        return True

    def commit(self, draft: Draft, entries: list[Entry]) -> SnapshotId:
        """Make a snapshot of *draft*, which this has written and finished; its id."""
        snapshot = commit(draft, entries)
        if packed := self._stream.finish():
            record_packed(draft.store, snapshot, packed)
        return snapshot

    def _drop_folders(self) -> None:
        """Leave out unchanged directories that were only copied up (T80)."""
        merged = [path for path, under in self._below.items() if path and under is not None]
        inside = Counter(path.rpartition("/")[0] for path in self._entries) if merged else Counter[str]()
        for path in reversed(merged):
            if not inside[path] and self._is_below(self._entries[path], self._below[path]):
                self._stream.spoil()
                os.rmdir(path, dir_fd=self._root)
                del self._entries[path], self._below[path]
                inside[path.rpartition("/")[0]] -= 1

    def _hide(self, path: str, under: Node) -> None:
        """Hide the content of the lower directory *under* at *path* by whiteouts."""
        for name in self._lower.names(under):
            inside, node = f"{path}/{name}", self._lower.child(under, name)
            if inside not in self._entries:
                make_whiteout(inside, dir_fd=self._root)
                self._record(Entry(inside, WHITEOUT))
            elif self._entries[inside].kind == DIRECTORY and node is not None and node.is_dir:
                self._hide(inside, node)

    def finish(self) -> list[Entry]:
        """Set the metadata of directories, children first. Return the entries in tar order."""
        self._drop_folders()
        for path, under in self._hides.items():
            os.removexattr(os.path.join(self._upper, path), OPAQUE)
            self._hide(path, under)
        for entry in reversed(self._entries.values()):
            if entry.kind == DIRECTORY:
                for name, value in entry.xattrs:
                    os.setxattr(os.path.join(self._upper, entry.path), name, value)
                set_metadata(self._root, entry)
        if self._stream.in_order:
            return list(self._entries.values())
        # "/" sorts first, so that this is the order of a lexical walk.
        ordered = sorted(self._entries.values(), key=lambda entry: entry.path.replace("/", "\0"))
        return files_first(ordered) if self._linked else ordered
