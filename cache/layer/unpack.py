"""Layer tar to layer directory, for untrusted archives.

Every path resolves inside the target as it would after chroot (openat2 RESOLVE_IN_ROOT). The last
component is never followed, and an existing entry is unlinked before it is replaced, so no member writes
through another. Whiteouts are applied last, because they concern lower layers only and their order must
not matter (image-spec layer.md). They follow no link, as the entries that they hide are not in this layer.

A directory that no member describes, though a member lies in it, is implied: its metadata is that of the
layers below (``cache.layer.snapshots.top_down``).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat

from cache.digest import DiffId
from cache.errors import ArchiveError, SpaceError
from cache.fs import CAPABILITY, OPAQUE, is_image_xattr, make_whiteout, remove_tree
from cache.kernel import open_in_root, set_owner, write_all
from cache.layer.pack import WHITEOUT_PREFIX
from cache.layer.tar_reader import Member, Read, TarReader

_WHITEOUT = os.fsencode(WHITEOUT_PREFIX)
_OPAQUE_MARK = b".wh..wh..opq"
_MAX_MEMBERS = 5_000_000
_MAX_ID = (1 << 31) - 1  # the ids a step can map: builder.runtime.spec.ID_COUNT
_MAX_LINKS = 40
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def unpack_layer(
    read: Read,
    root: int,
    limit: int = 1 << 42,
    base: bool = False,
    owners: bool = True,
    implied: list[str] | None = None,
) -> DiffId:
    """Unpack the uncompressed tar that *read* delivers into the empty directory *root*.

    *limit* is the most bytes of file content. With *base* the tar is a whole root file system, not a layer:
    it has no whiteouts, and as no digest shows whether it is complete, it must have its end marker. Without
    *owners* all entries get this process's owner. The paths of implied directories are added to *implied*,
    parents first. Returns the diff ID: the digest of the whole stream, with all that follows the end marker.
    Raises ArchiveError for a malformed or hostile archive and SpaceError when the disk is full; the caller
    then removes the directory.
    """
    sha = hashlib.sha256()

    def hashed(count: int) -> bytes:
        data = read(count)
        sha.update(data)
        return data

    reader = TarReader(hashed, blank=True)
    writer = _Writer(root, limit, base, owners)
    name = b""
    try:
        for count, member in enumerate(reader):
            if count >= _MAX_MEMBERS:
                raise ArchiveError(f"more than {_MAX_MEMBERS} members in one layer")
            name = member.name
            writer.add(member, reader)
        name = b""
        if base and not reader.ended:
            raise ArchiveError("the archive ends too early: it has no end marker")
        folders = writer.finish()
        if implied is not None:
            implied += folders
        reader.drain()
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise SpaceError(f"no space left while unpacking: {error.strerror}") from None
        where = f"{os.fsdecode(name)!r}: " if name else ""
        raise ArchiveError(f"unpacking {where}{error.strerror or error}") from None
    finally:
        writer.close()
    return DiffId("sha256:" + sha.hexdigest())


class _Writer:
    """The directory being filled, with the parent of the last member kept open."""

    def __init__(self, root: int, limit: int, base: bool, owners: bool) -> None:
        self._root = root
        self._owners = owners
        self._base = base
        self._left = limit
        self._parent_path: bytes | None = None
        self._parent = -1
        self._whiteouts: list[tuple[bytes, bytes]] = []
        self._times: dict[bytes, int] = {}
        self._implied: dict[
            int, bytes
        ] = {}  # directories that no member describes yet: inode, path without links

    def close(self) -> None:
        self._forget_parent()

    def add(self, member: Member, reader: TarReader) -> None:
        """Create one member."""
        parent_path, name = _split(member)
        if not name:
            self._root_directory(member)
            return
        if name.startswith(_WHITEOUT):
            self._whiteout(parent_path, name)
            return
        parent = self._open_parent(parent_path)
        if member.kind == "d":
            self._directory(parent, name, member)
            self._times[parent_path + b"/" + name] = member.mtime
            return
        try:
            self._create(parent, name, member, reader)
        except FileExistsError:
            remove_tree(os.fsdecode(name), dir_fd=parent)
            self._create(parent, name, member, reader)

    def _root_directory(self, member: Member) -> None:
        """Accept a "./" member, which must be a directory; all snapshots have the same root."""
        if member.kind != "d":
            raise ArchiveError(f"the root of a layer must be a directory, not a {member.kind!r}")

    # -- parents ---------------------------------------------------------------------------

    def _open_parent(self, path: bytes) -> int:
        if path != self._parent_path:
            self._forget_parent()
            self._parent = self._open_or_make(path)
            self._parent_path = path
        return self._parent

    def _forget_parent(self) -> None:
        if self._parent >= 0:
            os.close(self._parent)
        self._parent_path, self._parent = None, -1

    def _open_or_make(self, path: bytes) -> int:
        """Open a directory inside the root; make missing parents, also those that a link leads to."""
        with contextlib.suppress(FileNotFoundError):
            return open_in_root(self._root, path, os.O_RDONLY | os.O_DIRECTORY)
        fd = self._walk(path, True)
        assert fd >= 0
        return fd

    def _walk(self, path: bytes, follow: bool) -> int:
        """Open the directory *path*, making missing ones. Return -1 if a component is no directory.

        With *follow*, links are followed, and a component that is no directory is an error.
        """
        todo, links = path.split(b"/")[::-1], 0
        names: list[bytes] = []  # of the real directory that is open
        fd = os.dup(self._root)
        try:
            while todo:
                name = todo.pop()
                if name in (b"", b"."):
                    continue
                if name == b"..":
                    fd = self._go_back(fd, names, len(names) - 1)
                    continue
                try:
                    following = os.open(name, _FOLDER, dir_fd=fd)
                except FileNotFoundError:
                    following = self._imply(fd, name, b"/".join([*names, name]))
                except NotADirectoryError:  # or a link
                    if not follow:
                        return -1
                    target = _link_text(fd, name)
                    links += 1
                    if links > _MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
                    todo += target.split(b"/")[::-1]
                    if target.startswith(b"/"):
                        fd = self._go_back(fd, names, 0)
                    continue
                names.append(name)
                os.close(fd)
                fd = following
            return os.dup(fd)
        finally:
            os.close(fd)

    def _go_back(self, fd: int, names: list[bytes], count: int) -> int:
        """Keep *count* of the *names* of real directories, and open the last in place of *fd*."""
        del names[max(count, 0) :]
        above = open_in_root(self._root, b"/".join(names), _FOLDER)
        os.close(fd)
        return above

    def _imply(self, parent: int, name: bytes, path: bytes) -> int:
        """Make an implied directory: 0755 and root's, as it stays if no lower layer has one."""
        os.mkdir(name, 0o755, dir_fd=parent)
        fd = os.open(name, _FOLDER, dir_fd=parent)
        os.fchmod(fd, 0o755)
        self._implied[os.fstat(fd).st_ino] = path
        return fd

    # -- members ---------------------------------------------------------------------------

    def _directory(self, parent: int, name: bytes, member: Member) -> None:
        hides = False
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                os.unlink(name, dir_fd=parent)
                os.mkdir(name, 0o700, dir_fd=parent)
                hides = not self._base  # the file replaced the directory of lower layers
        fd = os.open(name, _FOLDER, dir_fd=parent)
        try:
            if hides:
                os.setxattr(fd, OPAQUE, b"y")
            if self._implied:
                self._implied.pop(os.fstat(fd).st_ino, None)
            self._own(fd, member)
        finally:
            os.close(fd)

    def _create(self, parent: int, name: bytes, member: Member, reader: TarReader) -> None:
        """Create anything but a directory; FileExistsError before anything is written."""
        if member.kind == "f":
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=parent)
            try:
                self._left -= member.size
                if self._left < 0:
                    raise SpaceError(
                        "the layer's files need more space than there is", "free space, or use another --root"
                    )
                for data in reader.chunks():
                    write_all(fd, data)
                self._own(fd, member)
                os.utime(fd, ns=(member.mtime * 10**9,) * 2)
            finally:
                os.close(fd)
            return
        if member.kind == "h":
            self._hard_link(parent, name, member)
            return
        if member.kind == "l":
            os.symlink(member.link, name, dir_fd=parent)
        elif member.kind == "p":
            os.mkfifo(name, 0o600, dir_fd=parent)
        elif not self._device(parent, name, member):
            return
        if self._owners:
            set_owner(name, *_ids(member), dir_fd=parent)
        if member.kind != "l":
            os.chmod(name, member.mode, dir_fd=parent)
        os.utime(name, ns=(member.mtime * 10**9,) * 2, dir_fd=parent, follow_symlinks=False)

    def _device(self, parent: int, name: bytes, member: Member) -> bool:
        """Make a device. Return False if only real root could: steps cannot open devices anyway."""
        kind = stat.S_IFCHR if member.kind == "c" else stat.S_IFBLK
        if member.kind == "c" and member.rdev == 0:
            raise ArchiveError(f"{os.fsdecode(member.name)!r}: a device that overlayfs reads as a deletion")
        try:
            os.mknod(name, kind | 0o600, member.rdev, dir_fd=parent)
        except PermissionError:
            return False
        return True

    def _hard_link(self, parent: int, name: bytes, member: Member) -> None:
        """Link to a member of this layer. All of its target but the last component resolves like any path."""
        above, _, last = member.link.rstrip(b"/").rpartition(b"/")
        if last in (b"", b".", b".."):
            raise ArchiveError(f"{os.fsdecode(member.name)!r}: a hard link to {os.fsdecode(member.link)!r}")
        try:
            source = open_in_root(self._root, above, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            source = -1
        try:
            if source < 0:
                raise FileNotFoundError
            os.link(last, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            raise ArchiveError(
                f"{os.fsdecode(member.name)!r}: hard link to {os.fsdecode(member.link)!r}, "
                "which this layer does not hold"
            ) from None
        finally:
            if source >= 0:
                os.close(source)

    def _own(self, fd: int, member: Member) -> None:
        """Set owner, attributes, then mode: chown clears setuid bits and capabilities."""
        if self._owners:
            set_owner(fd, *_ids(member))
        for key, value in member.xattrs.items():
            if is_image_xattr(key):
                try:
                    os.setxattr(fd, key, value)
                except OSError as error:
                    if key == CAPABILITY or error.errno not in (errno.ENOTSUP, errno.EPERM, errno.ENOSPC):
                        raise ArchiveError(
                            f"{os.fsdecode(member.name)!r}: extended attribute {key}: {error.strerror}"
                        ) from None
        os.fchmod(fd, member.mode)

    # -- whiteouts -------------------------------------------------------------------------

    def _whiteout(self, parent_path: bytes, name: bytes) -> None:
        if self._base:
            return
        if name == _OPAQUE_MARK:
            self._whiteouts.append((parent_path, b""))
            return
        if name.startswith(b".wh..wh."):
            return  # AUFS bookkeeping
        hidden = name[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise ArchiveError(f"{os.fsdecode(name)!r} is not a whiteout of anything")
        self._whiteouts.append((parent_path, hidden))

    def finish(self) -> list[str]:
        """Apply whiteouts, then directory times, which children changed. Return the implied directories."""
        self._forget_parent()
        parent, parent_path = -1, None
        try:
            for path, name in self._whiteouts:
                if path != parent_path:
                    if parent >= 0:
                        os.close(parent)
                    parent, parent_path = self._walk(path, False), path
                if parent >= 0:  # else an entry of this layer hides the lower directory anyway
                    self._hide(parent, name)
        finally:
            if parent >= 0:
                os.close(parent)
        implied = sorted((path, inode) for inode, path in self._implied.items())
        left = [os.fsdecode(path) for path, inode in implied if self._date(path, 0, inode)]
        for path, mtime in self._times.items():
            self._date(path, mtime)
        return left

    def _date(self, path: bytes, mtime: int, inode: int = 0) -> bool:
        """Set the time of a directory. Return False if it is gone, or another one than that with *inode*."""
        try:
            fd = open_in_root(self._root, path, _FOLDER)
        except OSError:
            return False  # replaced by a later member
        found = not inode or os.fstat(fd).st_ino == inode
        if found:
            os.utime(fd, ns=(mtime * 10**9,) * 2)
        os.close(fd)
        return found

    def _hide(self, parent: int, name: bytes) -> None:
        """Hide *name* of lower layers in *parent*; "" hides all entries of lower layers in it."""
        if not name:
            os.setxattr(parent, OPAQUE, b"y")
            return
        try:
            make_whiteout(name, dir_fd=parent)
        except FileExistsError:
            # The layer has its own entry: a file hides the lower one, a directory must not merge with it.
            try:
                fd = os.open(name, _FOLDER, dir_fd=parent)
            except OSError:
                return
            os.setxattr(fd, OPAQUE, b"y")
            os.close(fd)


def _link_text(parent: int, name: bytes) -> bytes:
    """Return the text of a link. Raises NotADirectoryError for anything else."""
    try:
        return os.readlink(name, dir_fd=parent)
    except OSError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None


def _split(member: Member) -> tuple[bytes, bytes]:
    """Return the parent path and last component of a member, without dots; ("", "") for the root."""
    parts: list[bytes] = []
    for part in member.name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts[:-1]), parts[-1] if parts else b""


def _ids(member: Member) -> tuple[int, int]:
    if member.uid >= _MAX_ID or member.gid >= _MAX_ID:
        raise ArchiveError(
            f"{os.fsdecode(member.name)!r}: owner {member.uid}:{member.gid} is beyond {_MAX_ID - 1}"
        )
    return member.uid, member.gid
