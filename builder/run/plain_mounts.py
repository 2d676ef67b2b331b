"""Emulate a step's mounts where mount(2) is unavailable: place files at the targets, remove them afterwards.

The image's own entry at a target is set aside meanwhile. The entries of a cache are moved into the root and
back. A journal in the session's directory names their location, so that the sweep after a kill moves them
back. A read-only mount is a copy, and is compared afterwards: root of a step can write to it.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import stat
from collections.abc import Iterator, Sequence

from builder.errors import BuildError
from builder.rootfs.plain_trees import StageTree
from builder.rootfs.walk import apply_layer, scan
from builder.runtime.spec import MountSpec
from cache.fs import move_entries, remove_tree
from cache.kernel import open_in_root, set_owner, write_all
from cache.store import Store

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def placed(
    store: Store, tree: StageTree, mounts: Sequence[MountSpec], files: dict[bytes, bytes]
) -> Iterator[None]:
    """Place *mounts* and *files* in *tree* while the block runs. Raises BuildError and OSError."""
    aside = os.path.join(tree.folder, "aside")
    os.mkdir(aside, 0o700)
    with contextlib.ExitStack() as stack:
        stack.callback(remove_tree, aside)
        root = os.open(tree.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, root)
        for path, content in files.items():
            spec = MountSpec(kind="file", target=path, content=content, mode=0o644, uid=0, gid=0)
            stack.enter_context(_at(store, root, aside, spec))
        for mount in mounts:
            stack.enter_context(_at(store, root, aside, mount))
        yield


@contextlib.contextmanager
def _at(store: Store, root: int, aside: str, mount: MountSpec) -> Iterator[None]:
    """Place one mount at its target. Symlinks are resolved inside the root."""
    is_folder = mount["kind"] != "file" and not _is_file(store, mount)
    with contextlib.ExitStack() as stack:
        folder, name, is_there = _target(root, mount["target"], is_folder, stack)
        spare = os.path.join(aside, os.urandom(4).hex())
        with _undated(folder):
            if is_there:
                os.rename(name, spare, src_dir_fd=folder)
            kept = _MAKERS[mount["kind"]](store, folder, name, mount)
        try:
            yield
            kept.check()
        finally:
            with _undated(folder):
                kept.take_back()
                remove_tree(os.fsdecode(name), dir_fd=folder)
                if is_there:
                    with contextlib.suppress(FileNotFoundError):  # the step has removed its directory
                        os.rename(spare, name, dst_dir_fd=folder)


class _Placed:
    """An entry at a target: checks that the step left it in place, and removes it."""

    def __init__(self, folder: int, name: bytes, mount: MountSpec) -> None:
        self.fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        self._folder, self._name = folder, name
        self._shown = os.fsdecode(mount["target"])
        self._before = self._state() if mount.get("read_only") else None

    def is_there(self) -> bool:
        """Return whether what was placed is still where it was placed."""
        try:
            found = os.stat(self._name, dir_fd=self._folder, follow_symlinks=False)
        except OSError:
            return False
        own = os.fstat(self.fd)
        return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)

    def check(self) -> None:
        """Raise BuildError if the step did what a mount would not have let it do."""
        if not self.is_there() and os.fstat(self.fd).st_nlink:
            raise BuildError(f"the step moved the mount at {self._shown}", "a mount cannot be moved: copy it")
        if self._before is not None and self._state() != self._before:
            raise BuildError(
                f"the step changed what is mounted read-only at {self._shown}",
                "mount it with rw, or write elsewhere",
            )

    def take_back(self) -> None:
        os.close(self.fd)

    def _state(self) -> object:
        found = os.fstat(self.fd)
        own = found.st_mode, found.st_uid, found.st_gid, found.st_size, found.st_mtime_ns
        return own, scan(f"/proc/self/fd/{self.fd}/.") if stat.S_ISDIR(found.st_mode) else None


class _Moved(_Placed):
    """The entries of a directory of the store, moved to a target while a step uses them."""

    def __init__(self, folder: int, name: bytes, mount: MountSpec, store: Store, home: str) -> None:
        super().__init__(folder, name, mount)
        self._home = os.open(home, _FOLDER)
        journal = os.path.join(store.session(), "borrowed")
        os.makedirs(journal, 0o700, exist_ok=True)
        self._journal = os.path.join(journal, os.urandom(4).hex())
        here, found = os.readlink(f"/proc/self/fd/{self.fd}"), os.fstat(self.fd)
        paths = [os.path.relpath(path, store.root) for path in (here, home)]
        with open(self._journal, "xb") as file:
            file.write(marshal.dumps((*paths, found.st_dev, found.st_ino)))
        with _opened(self._folder, self._name) as place:
            move_entries(self._home, place)

    def take_back(self) -> None:
        if self.is_there():
            with _opened(self._folder, self._name) as place:
                move_entries(place, self._home)
            found = os.fstat(self.fd)
            os.chown(self._home, found.st_uid, found.st_gid)
            os.chmod(self._home, stat.S_IMODE(found.st_mode))
        os.unlink(self._journal)
        os.close(self._home)
        super().take_back()


def _file(store: Store, folder: int, name: bytes, mount: MountSpec) -> _Placed:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        write_all(fd, mount["content"])
        set_owner(fd, mount["uid"], mount["gid"])
        os.fchmod(fd, mount["mode"])
    finally:
        os.close(fd)
    return _Replaceable(folder, name, MountSpec(target=mount["target"]))


class _Replaceable(_Placed):
    """A small file that is discarded: a step may change or move it."""

    def check(self) -> None:
        pass


def _made_folder(store: Store, folder: int, name: bytes, mount: MountSpec) -> _Placed:
    os.mkdir(name, 0o700, dir_fd=folder)
    os.chmod(name, 0o1777, dir_fd=folder)
    return _Placed(folder, name, mount)


def _of_store(store: Store, folder: int, name: bytes, mount: MountSpec) -> _Placed:
    home = _source(store, mount)
    found = os.lstat(home)
    if not mount["path"].startswith(b"caches/"):
        os.rename(home, name, dst_dir_fd=folder)
        return _Placed(folder, name, mount)
    os.mkdir(name, 0o700, dir_fd=folder)
    os.chown(name, found.st_uid, found.st_gid, dir_fd=folder)
    os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=folder)
    if mount["read_only"]:  # a copy, as root of a step can write to it
        with _opened(folder, name) as place:
            apply_layer(home, f"/proc/self/fd/{place}/.")
        return _Placed(folder, name, mount)
    return _Moved(folder, name, mount, store, home)


@contextlib.contextmanager
def _opened(folder: int, name: bytes) -> Iterator[int]:
    fd = os.open(name, _FOLDER, dir_fd=folder)
    try:
        yield fd
    finally:
        os.close(fd)


_MAKERS = {"file": _file, "tmpfs": _made_folder, "store": _of_store}


def _source(store: Store, mount: MountSpec) -> str:
    """Return the file or directory of the store that *mount* shows. Symlinks in it are resolved inside."""
    top = os.open(store.path(os.fsdecode(mount["path"])), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        place = open_in_root(top, mount["source"], os.O_PATH)
    except OSError as error:
        raise BuildError(f"the source {os.fsdecode(mount['source'])} of a mount: {error.strerror}") from None
    finally:
        os.close(top)
    try:
        return os.readlink(f"/proc/self/fd/{place}")
    finally:
        os.close(place)


def _is_file(store: Store, mount: MountSpec) -> bool:
    return mount["kind"] == "store" and not os.path.isdir(_source(store, mount))


def _target(root: int, path: bytes, is_folder: bool, stack: contextlib.ExitStack) -> tuple[int, bytes, bool]:
    """Resolve *path*: return a descriptor of the directory, the name in it, and True if that exists.

    Missing directories are made; *stack* removes them if they are empty at its end.
    """
    try:
        place = open_in_root(root, path, os.O_PATH)
    except FileNotFoundError:
        above, _, name = path.rstrip(b"/").rpartition(b"/")
        folder = _open_or_make(root, above, stack)
        try:  # the target can be a dangling symlink
            os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return folder, name, False
        return folder, name, True
    try:
        top, real = os.readlink(f"/proc/self/fd/{root}"), os.readlink(f"/proc/self/fd/{place}")
        if stat.S_ISDIR(os.fstat(place).st_mode) != is_folder:
            kinds = ("directory", "file") if is_folder else ("file", "directory")
            shown = os.fsdecode(path)
            raise BuildError(
                f"mounting at {shown}: the image has a {kinds[1]} there, what is mounted is a {kinds[0]}"
            )
    finally:
        os.close(place)
    if real == top:
        raise BuildError("a mount cannot take the place of the whole root")
    folder = os.open(os.path.dirname(real), _FOLDER)
    stack.callback(os.close, folder)
    return folder, os.fsencode(os.path.basename(real)), True


def _open_or_make(root: int, path: bytes, stack: contextlib.ExitStack) -> int:
    """Return a descriptor of the directory *path*. Symlinks are resolved inside the root."""
    try:
        folder = open_in_root(root, path or b"/", os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        above, _, name = path.rpartition(b"/")
        parent = _open_or_make(root, above, stack)
        with _undated(parent):
            os.mkdir(name, 0o755, dir_fd=parent)
        stack.callback(_remove_empty, parent, name)
        folder = os.open(name, _FOLDER, dir_fd=parent)
    stack.callback(os.close, folder)
    return folder


def _remove_empty(folder: int, name: bytes) -> None:
    with contextlib.suppress(OSError), _undated(folder):
        os.rmdir(name, dir_fd=folder)


@contextlib.contextmanager
def _undated(folder: int) -> Iterator[None]:
    """Restore the times of the directory after the block."""
    before = os.fstat(folder)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
