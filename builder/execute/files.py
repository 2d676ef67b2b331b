"""CopyFiles and MakeDir: write files into a layer without mounting it.

The rules of where things land are BuildKit's (dockerfile.md T1 to T28). A file that a
previous COPY of the same place already holds, equal in every respect, is linked instead of
written: layers are immutable, so sharing is safe, and a context in which one file of twenty
thousand changed costs one copy.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable

from builder.errors import BuildError
from builder.execute.packer import Packer, Stream
from builder.execute.sources import Selected, Source
from builder.execute.users import owner, owner_or_root
from builder.plan.ops import CopyFiles, MakeDir
from cache.diff import check_name
from cache.entries import BLOCK, CHARACTER, DIRECTORY, FIFO, FILE, HARDLINK, SYMLINK, Entry
from cache.errors import CacheError
from cache.layers import record_packed
from cache.snapshots import Draft, commit
from cache.tree import Node, Tree

# The time of directories that the builder itself makes (missing parents, WORKDIR): fixed, so
# that equal builds give equal layers, and in 1980 because zip files cannot say less.
MADE_TIME = 315_619_200 * 1_000_000_000

_CHUNK = 1 << 20


def copy_files(
    op: CopyFiles,
    draft: Draft,
    source: Source,
    chosen: list[list[Selected]],
    previous: tuple[str, list[Entry]] | None,
    packer: Packer | None,
) -> str:
    """Execute a COPY into *draft* and commit it; *chosen* holds what each source selected.

    *previous* is the directory and manifest of the last layer made by this COPY. Returns the
    snapshot's id. Raises BuildError.
    """
    lower = draft.lower()
    ids = owner(lower, op.chown, "COPY --chown") if op.chown else None
    mode = int(op.chmod, 8) if op.chmod else None
    writer = _Writer(draft.upper, lower, ids, mode, previous, packer)
    try:
        for selection in chosen:
            for selected in selection:
                _copy_one(writer, source, selected, op.dest)
        return writer.commit(draft)
    finally:
        writer.close()


def make_dir(op: MakeDir, draft: Draft) -> str:
    """Execute a WORKDIR into *draft* and commit it; an empty layer when the directory is there."""
    lower = draft.lower()
    path, node = lower.resolve(op.path)
    ids = owner_or_root(lower, op.user, "WORKDIR") if op.user and node is None else None
    writer = _Writer(draft.upper, lower, ids, None, None, None)
    try:
        if node is None:
            writer.make_parents(path)
        elif not node.is_dir:
            raise BuildError(f"WORKDIR {op.path}: the image has a file there")
        return writer.commit(draft)
    finally:
        writer.close()


def _copy_one(writer: _Writer, source: Source, selected: Selected, dest: str) -> None:
    """Copy one selected path to *dest*, as BuildKit's copier decides where (T1, T3, T13)."""
    entries = iter(source.entries(selected))
    top, handle = next(entries)
    if dest.endswith("/"):
        writer.make_parents(writer.resolve(dest))
    else:
        writer.make_parents(writer.resolve(os.path.dirname(dest)))
    target = writer.resolve(dest)
    if top.kind != DIRECTORY:
        if writer.is_directory(target):
            target = f"{target}/{selected.name}" if target else selected.name
        writer.make_parents(os.path.dirname(target))
        writer.put(target, top, source, handle)
        return
    writer.make_parents(target)  # a directory's contents are copied, never itself
    for entry, handle in entries:
        path = f"{target}/{entry.path}" if target else entry.path
        if entry.link and entry.kind == FILE:
            link = f"{target}/{entry.link}" if target else entry.link
            writer.link(path, entry, link)
        else:
            writer.put(path, entry, source, handle)


class _Writer:
    """An upper directory being filled over *lower*. Knows everything it has written."""

    def __init__(
        self,
        upper: str,
        lower: Tree,
        ids: tuple[int, int] | None,
        mode: int | None,
        previous: tuple[str, list[Entry]] | None,
        packer: Packer | None,
    ) -> None:
        self._upper = upper
        self._lower = lower
        self._ids = ids
        self._mode = mode
        self._root = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._entries: dict[str, Entry] = {}
        self._stream = Stream(packer, self._root)
        # The lower directory that each of our directories lies over, None where there is none.
        self._below: dict[str, Node | None] = {"": lower.root}
        self._linked: dict[str, list[str]] = {}
        self._links = True
        self._old: dict[str, Entry] = {}
        self._old_root = -1
        if previous is not None:
            self._old = {entry.path: entry for entry in previous[1] if entry.kind == FILE}
            self._old_root = os.open(previous[0], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        self._stream.close()
        os.close(self._root)
        if self._old_root >= 0:
            os.close(self._old_root)

    def resolve(self, path: str) -> str:
        """Where *path* leads in what is below and what was written, links followed."""
        folders = self._lower.root.folders if self._lower.root else ()
        return Tree((self._upper, *folders)).resolve(path)[0]

    def is_directory(self, path: str) -> bool:
        entry = self._entries.get(path)
        if entry is not None:
            return entry.kind == DIRECTORY
        node = self._lower.lookup(path, follow=False)
        return path == "" or (node is not None and node.is_dir)

    # -- directories -----------------------------------------------------------------------

    def make_parents(self, path: str) -> None:
        """Make *path* a directory of this layer: copied up where it exists, new otherwise."""
        missing = []
        while path not in self._below:
            missing.append(path)
            path = path.rpartition("/")[0]
        for folder in reversed(missing):
            self._make_parent(folder)

    def _make_parent(self, path: str) -> None:
        under = self._under(path)
        if path in self._entries or (under is not None and not under.is_dir):
            raise BuildError(f"cannot copy to non-directory: /{path}")
        if under is None:
            uid, gid = self._ids or (0, 0)
            mode = 0o755 if self._mode is None else self._mode
            self._directory(Entry(path, DIRECTORY, mode, uid, gid, mtime=MADE_TIME), None)
        else:
            found = under.found
            mode = found.st_mode & 0o7777
            copied = Entry(path, DIRECTORY, mode, found.st_uid, found.st_gid, mtime=found.st_mtime_ns)
            self._directory(copied, under)

    def _directory(self, entry: Entry, under: Node | None) -> None:
        check_name(entry.path.rpartition("/")[2])
        os.mkdir(entry.path, 0o700, dir_fd=self._root)
        self._record(entry)
        self._below[entry.path] = under

    def _under(self, path: str) -> Node | None:
        """What lies below *path*, whose parent is a directory of ours."""
        above, _, name = path.rpartition("/")
        parent = self._below[above]
        return self._lower.child(parent, name) if parent is not None else None

    # -- members ---------------------------------------------------------------------------

    def put(self, path: str, entry: Entry, source: Source, handle: object) -> None:
        """Write one member at *path*, over whatever the rules allow to be replaced."""
        uid, gid = self._ids or (entry.uid, entry.gid)
        mode = entry.mode if self._mode is None or entry.kind == SYMLINK else self._mode
        entry = Entry(path, entry.kind, mode, uid, gid, *entry[5:])
        if entry.kind == DIRECTORY:
            self._put_directory(entry)
            return
        check_name(path.rpartition("/")[2])
        self._make_way(path)
        if entry.kind == FILE:
            if not self._link_old(entry):
                digest = self._write(entry, source, handle)
                entry = entry._replace(digest=digest)
        elif entry.kind == SYMLINK:
            os.symlink(entry.link, path, dir_fd=self._root)
            self._set_metadata(entry)
        elif entry.kind == FIFO:
            os.mkfifo(path, 0o600, dir_fd=self._root)
            self._set_metadata(entry)
        elif entry.kind in (CHARACTER, BLOCK):
            if entry.kind == CHARACTER and entry.rdev == 0:
                raise BuildError(f"/{path} is character device 0:0, which in a layer deletes a file")
            kind = stat.S_IFCHR if entry.kind == CHARACTER else stat.S_IFBLK
            os.mknod(path, kind | 0o600, entry.rdev, dir_fd=self._root)
            self._set_metadata(entry)
        self._record(entry)

    def _record(self, entry: Entry) -> None:
        self._entries[entry.path] = entry
        self._stream.add(entry)

    def _put_directory(self, entry: Entry) -> None:
        """A directory below the top: made, or given the source's metadata where it exists (T13)."""
        old = self._entries.get(entry.path)
        if old is None:
            under = self._under(entry.path)
            if under is not None and not under.is_dir:
                raise BuildError(f"cannot copy to non-directory: /{entry.path}")
            self._directory(entry, under)
        elif old.kind != DIRECTORY:
            raise BuildError(f"cannot copy to non-directory: /{entry.path}")
        elif old != entry:
            self._stream.spoil()
            self._entries[entry.path] = entry

    def _make_way(self, path: str) -> None:
        old = self._entries.get(path)
        if old is not None:
            if old.kind == DIRECTORY:
                raise BuildError(f"cannot replace to directory /{path} with file")
            os.unlink(path, dir_fd=self._root)
            del self._entries[path]
            self._stream.spoil()
            if path in self._linked:
                self._promote(old, self._linked.pop(path))
            return
        under = self._under(path)
        if under is not None and under.is_dir:
            raise BuildError(f"cannot replace to directory /{path} with file")

    def _promote(self, old: Entry, names: list[str]) -> None:
        """The file that hard links pointed at is replaced: its second name becomes the first."""
        names = [name for name in names if self._entries.get(name, old).link == old.path]
        if names:
            first = self._entries[names[0]] = old._replace(path=names[0])
            for name in names[1:]:
                self._entries[name] = self._entries[name]._replace(link=first.path)
            self._linked[first.path] = names[1:]

    def link(self, path: str, entry: Entry, target: str) -> None:
        """A second name of a file copied before (T20)."""
        first = self._entries.get(target)
        if first is None:
            raise BuildError(f"hard link /{path}: its first name /{target} was not copied")
        self._make_way(path)
        os.link(target, path, src_dir_fd=self._root, dst_dir_fd=self._root, follow_symlinks=False)
        self._record(first._replace(path=path, kind=HARDLINK, link=target, size=0))
        self._linked.setdefault(target, []).append(path)

    def _link_old(self, entry: Entry) -> bool:
        """Share the file of the previous layer if it is this very file."""
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

    def _write(self, entry: Entry, source: Source, handle: object) -> str:
        """Copy a file's bytes; they must be the bytes that were digested for the key."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(entry.path, flags, 0o600, dir_fd=self._root)
        try:
            sha = hashlib.sha256()
            if entry.size:
                origin = source.open(handle)
                try:
                    _copy_bytes(origin, target, entry.size, sha.update)
                finally:
                    os.close(origin)
            digest = sha.hexdigest()
            if entry.digest and digest != entry.digest:
                raise CacheError(f"/{entry.path} changed while the build was reading it", "build again")
            self._finish_file(target, entry)
            return digest
        finally:
            os.close(target)

    def _finish_file(self, fd: int, entry: Entry) -> None:
        """Owner, then attributes, then mode: a chown clears setuid bits and capabilities."""
        if entry.uid or entry.gid:
            os.fchown(fd, entry.uid, entry.gid)
        for name, value in entry.xattrs:
            os.setxattr(fd, name, value)
        os.fchmod(fd, entry.mode)
        os.utime(fd, ns=(entry.mtime, entry.mtime))

    def _set_metadata(self, entry: Entry) -> None:
        os.chown(entry.path, entry.uid, entry.gid, dir_fd=self._root, follow_symlinks=False)
        if entry.kind != SYMLINK:
            os.chmod(entry.path, entry.mode, dir_fd=self._root)
        os.utime(entry.path, ns=(entry.mtime, entry.mtime), dir_fd=self._root, follow_symlinks=False)

    def commit(self, draft: Draft) -> str:
        """Make a snapshot of *draft*, which this has written; its id."""
        snapshot = commit(draft, self._finish())
        if packed := self._stream.finish():
            record_packed(draft.store, snapshot, *packed)
        return snapshot

    def _finish(self) -> list[Entry]:
        """Give directories their metadata, children first; the manifest in tar order."""
        for entry in reversed(self._entries.values()):
            if entry.kind == DIRECTORY:
                for name, value in entry.xattrs:
                    os.setxattr(os.path.join(self._upper, entry.path), name, value)
                self._set_metadata(entry)
        if self._stream.in_order:
            return list(self._entries.values())
        # "/" sorts first, so that this is the order of a lexical walk.
        return sorted(self._entries.values(), key=lambda entry: entry.path.replace("/", "\0"))


def _copy_bytes(origin: int, target: int, size: int, update: Callable[[bytes], object]) -> None:
    left = size
    while left:
        data = os.read(origin, min(left, _CHUNK))
        if not data:
            raise CacheError("a file became shorter while the build was reading it", "build again")
        update(data)
        left -= len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]
