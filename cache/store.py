"""The store: one directory that holds everything pybuild keeps.

    ROOT/                0700, whatever the umask
      version            the layout's number
      lock               flock: shared by every process that uses the store
      index.db           SQLite (cache.index); losing it loses cached steps, nothing else
      blobs/sha256/HEX   configs, manifests and layer blobs, each named by its digest
      snapshots/ID/      layer directories, immutable once here
      layers/HEX         a link to the snapshot that a layer, by its diff ID, is unpacked as
      implied/ID         folders of a layer of others that it holds without saying what they are like
      files/ID           the manifest of the files of a COPY layer (marshal, checksummed)
      refs/NAME          image names, each a file holding an image ID (the config's digest)
      contexts/HEX       stat indexes of build contexts
      caches/HEX         directories of RUN --mount=type=cache, each flocked while a step uses it
      owners             "all", or "one" where files cannot belong to others (docs/rootless.md)
      mounts/            empty mount points, the bottom of every container's overlay
      locks/KEY          held while a step is made, gone afterwards
      tmp/SESSION/       what a running process has not published; swept when its flock is free

Publishing is: write below tmp, fsync, rename, fsync the folder. Snapshots are renamed into
place at once and made durable together, by one syncfs when the build is complete
(``Store.sync``); until then their records count only in this boot. Lock order: lock, tmp,
locks/KEY (one key at a time, but for the making of a cache, or of a layer of looks, which wait for
nobody), caches by name.
"""

import contextlib
import errno
import fcntl
import marshal
import os
import threading
import time

from cache.digest import Digest, digest, digest_of, hex_of
from cache.errors import BusyError, CacheError, CorruptError, MissingError, SpaceError
from cache.fs import kill_inside, move_entries, real_folder, remove_tree
from cache.index import Index
from cache.kernel import keeps_owners
from cache.locks import single_flight, try_lock
from cache.memos import Memos

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    from cache.entry import Entry

    _Result = TypeVar("_Result")

LAYOUT_VERSION = 1
_LONGEST_NAME = 240  # of a file, in bytes
_FOLDERS = (
    *("blobs", "blobs/sha256", "snapshots", "layers", "implied", "files"),
    *("refs", "contexts", "caches", "mounts", "locks", "tmp"),
)
_FILES = ("lock", "index.db", "reserve", "somebody", "owners", "version")
_SOMEBODY = 1  # an id that no user has for his own
_RESET = "use another --root, or remove what the store holds by: pybuild reset"
_MOUNT_POINTS = ("proc", "sys", "dev", "etc")
_MOUNT_FILES = ("etc/resolv.conf", "etc/hosts")
_CHUNK = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
_RESERVE = 512 << 10  # bytes: what a command writes that reads, removes or is cached, many times over
_TRIES, _PAUSE = 20, 0.05  # to remove a session, and seconds between two of them


def default_root() -> str:
    """Where the store is without ``--root``: PYBUILD_ROOT, else by who runs it.

    Raises CacheError for a user of whom no home directory is known.
    """
    if root := os.environ.get("PYBUILD_ROOT"):
        return root
    if os.geteuid() == 0:
        return "/var/lib/pybuild"
    data = os.environ.get("XDG_DATA_HOME", "")
    if not data.startswith("/"):  # relative ones are ignored, as their specification wants
        data = os.path.expanduser("~/.local/share")
    if not data.startswith("/"):
        raise CacheError(
            f"there is no place for the store: HOME is no absolute path, and uid {os.geteuid()} has no home "
            "directory",
            "say where the store is to be with --root or PYBUILD_ROOT",
        )
    return os.path.join(data, "pybuild")


class Store:
    """One store, open. A context manager; any number of processes may have it open."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        self._session = ""
        self._session_fd = -1
        self._opening = threading.Lock()
        self._owners = ""
        self._emptied = False
        self.overlays = True  # whether containers can have overlays of its folders: else copies
        self.manifests: dict[str, list[Entry]] = {}  # of the COPY layers this process made
        self.implied: dict[str, list[str]] = {}  # what is in the folder of that name, as far as it was read
        try:
            self._prepare()
        except OSError as error:
            raise CacheError(
                f"the store {self.root} cannot be used: {error.strerror}: {error.filename}",
                "use another --root or PYBUILD_ROOT, in a container a volume",
            ) from None
        self.index = Index(self.path("index.db"), self._make_room)
        self.memos = Memos(self.index)
        self._keep_reserve()

    @property
    def empty(self) -> str:
        """A directory with nothing in it: the root of a stage from scratch."""
        return self.path("mounts", "proc")

    def path(self, *parts: str) -> str:
        return os.path.join(self.root, *parts)

    def _prepare(self) -> None:
        """Open or make the layout; a root that others could enter is closed to them."""
        version = f"{LAYOUT_VERSION}\n"
        try:
            with open(self.path("version"), encoding="ascii", errors="replace") as file:
                found = file.read(100)
        except FileNotFoundError:
            found = ""
        if found and found != version:
            raise CacheError(
                f"the store {self.root} has layout {found.strip()[:20]!r}, not {LAYOUT_VERSION}",
                "use another --root, or remove the old store",
            )
        if not found:
            os.makedirs(self.root, mode=0o700, exist_ok=True)
        info = os.stat(self.root)
        if info.st_uid != os.geteuid():
            raise CacheError(f"the store {self.root} belongs to uid {info.st_uid}, not to you")
        if info.st_mode & 0o077:
            os.chmod(self.root, 0o700)
        self._make_layout()
        if not found:
            with open(self.path("version"), "w", encoding="ascii") as file:
                file.write(version)
        self._lock = os.open(self.path("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_SH)

    def _make_layout(self) -> None:
        """Make what is missing; in a store in use that is nothing."""
        for folder in _FOLDERS:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.path(folder), 0o700)
        # The root of a container's overlay and its mount points: 0755 as in any image.
        for folder in ("", *_MOUNT_POINTS):
            place = self.path("mounts", folder)
            with contextlib.suppress(FileExistsError):
                os.mkdir(place)
            os.chmod(place, 0o755)
        for name in _MOUNT_FILES:
            fd = os.open(self.path("mounts", name), os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)
            os.close(fd)

    def _keep_reserve(self) -> None:
        """See that there is a reserve, if there is room for one."""
        path = self.path("reserve")
        if os.path.exists(path):
            return
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, _RESERVE)
            except OSError:
                os.unlink(path)
            finally:
                os.close(fd)

    def _make_room(self) -> bool:
        """Give the reserve up; whether there was one."""
        try:
            os.unlink(self.path("reserve"))
        except OSError:
            return False
        return True

    def _with_room(self, work: "Callable[[], _Result]") -> "_Result":
        """What *work* returns; where the disk is full it has the reserve. Raises OSError."""
        try:
            return work()
        except OSError as error:
            if error.errno not in _FULL or not self._make_room():
                raise
        return work()

    def check_owners(self) -> None:
        """See that files here belong to whom their images say, or in none of the layers they do.

        Who builds comes by here first, and removes what nobody knows of. Raises CacheError where the store
        was made otherwise than this process could go on with it.
        """
        if self._owners:
            return
        mark, here = self.path("owners"), "all" if keeps_owners() else "one"
        try:
            with open(mark, encoding="ascii", errors="replace") as file:
                self._owners = file.read(100).strip()
        except FileNotFoundError:
            pass
        if not self._owners:
            self.write_file(mark, f"{here}\n".encode())
            self._owners = here
        if self._owners != here:
            had, has = ("one id", "are more") if here == "all" else ("more ids", "is one")
            raise CacheError(
                f"the store {self.root} was made with {had}, and now there {has}: owners would be wrong",
                _RESET,
            )
        if here == "all":
            self._check_somebody()
        self._remove_unknown()

    def _check_somebody(self) -> None:
        """See that the store was not copied without the owners of its files. Raises CacheError."""
        path = self.path("somebody")
        try:
            found = os.stat(path)
        except FileNotFoundError:
            made = self.temporary()
            try:
                os.close(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                os.chown(made, _SOMEBODY, _SOMEBODY)
                os.rename(made, path)
            except OSError as error:
                raise write_error(error, path) from None
            return
        if found.st_uid != _SOMEBODY:
            raise CacheError(
                f"the files of the store {self.root} have lost their owners: it was copied without them",
                "copy it as root with cp -a; or " + _RESET,
            )

    def reset(self) -> None:
        """Remove all that the store holds; it can only be closed then.

        Raises BusyError while another process uses it, and CacheError.
        """
        if not try_lock(self._lock):
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            raise BusyError(f"another process uses the store {self.root}", "wait until it has ended")
        self.index.close()
        self._emptied = True
        folders = [name for name in _FOLDERS if "/" not in name]
        others = [name for name in os.listdir(self.root) if name.startswith("index.db")]
        try:
            for name in (*folders, *others, *_FILES):
                remove_tree(self.path(name))
        except OSError as error:
            raise CacheError(
                f"removing what the store {self.root} holds: {error.strerror}: {error.filename}",
                f"as root: rm -rf {self.root}",
            ) from None

    def _remove_unknown(self) -> None:
        """Remove snapshots that no record names, if no other process uses the store.

        To be called before this process publishes anything: for a moment it may not hold the store.
        """
        if not self.index.lasting or not self.index.orphans():
            return
        moved = []
        if try_lock(self._lock):
            for name in self.index.orphans():
                moved.append(self.temporary())
                with contextlib.suppress(OSError):
                    os.rename(self.path("snapshots", name), moved[-1])
                for folder in ("files", "implied"):
                    with contextlib.suppress(OSError):
                        os.unlink(self.path(folder, name))
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        for place in moved:
            with contextlib.suppress(OSError):
                remove_tree(place)

    def close(self) -> None:
        self.index.close()
        if self._session:
            self._remove_session()
            os.close(self._session_fd)
            self._session = ""
        if not self._emptied:
            self._keep_reserve()
        os.close(self._lock)

    def _remove_session(self) -> None:
        """Remove what was not published. After a cancel some thread may still be writing to it, or removing
        it too; what is left in the end is swept by the next session.
        """
        for _ in range(_TRIES):
            try:
                remove_tree(self._session)
                return
            except OSError:
                time.sleep(_PAUSE)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- unpublished work ------------------------------------------------------------------

    def temporary(self) -> str:
        """A new path (nothing there yet) below this process's session folder."""
        return os.path.join(self.session(), os.urandom(4).hex())

    def session(self) -> str:
        """The folder of what this process has not published.

        ``borrowed`` in it names, for each cache whose entries are elsewhere, where they are and whose they
        are, both relative to the store, and the device and inode of the folder that they are in (marshal).
        """
        with self._opening:
            if not self._session:
                try:
                    self._with_room(self._open_session)
                except OSError as error:
                    raise write_error(error, self.path("tmp")) from None
        return self._session

    def _open_session(self) -> None:
        """Make the session folder and sweep those of processes that are gone."""
        guard = os.open(self.path("tmp"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(guard, fcntl.LOCK_EX)
            for name in os.listdir(guard):
                with contextlib.suppress(OSError):  # what cannot be removed is no reason not to build
                    self._sweep(guard, name)
            name = os.urandom(4).hex()
            os.mkdir(name, 0o700, dir_fd=guard)
            self._session = self.path("tmp", name)
            self._session_fd = os.open(self._session, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._session_fd, fcntl.LOCK_EX)
        finally:
            os.close(guard)

    def _sweep(self, folder: int, name: str) -> None:
        """Remove a session of a process that is gone, or whatever else lies in its place."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
        except NotADirectoryError:
            os.unlink(name, dir_fd=folder)
            return
        try:
            if try_lock(fd):
                kill_inside(self.path("tmp", name))
                if self._return_borrowed(self.path("tmp", name)):
                    remove_tree(name, dir_fd=folder)
        finally:
            os.close(fd)

    def _return_borrowed(self, session: str) -> bool:
        """Bring the entries of caches home that a session had when it was killed; whether all are home.

        A cache that another process has taken meanwhile is left for the next sweep.
        """
        journal, done = os.path.join(session, "borrowed"), True
        if not os.path.isdir(journal):
            return True
        for entry in list(os.scandir(journal)):
            try:
                with open(entry.path, "rb") as file:
                    here, home, device, inode = marshal.loads(file.read())
                # A step may have put a link in the place of the folder, or of one on the way to it.
                with real_folder(self.root, home) as target:
                    if not try_lock(target):
                        done = False
                        continue
                    with real_folder(self.root, here) as source:
                        found = os.fstat(source)
                        if (found.st_dev, found.st_ino) == (device, inode):
                            move_entries(source, target)
            except (OSError, ValueError, EOFError, TypeError):
                pass  # nothing to bring home, or no way to
            os.unlink(entry.path)
        return done

    def publish(self, temporary: str, final: str) -> None:
        """Move a finished, fsynced temporary file to its place, durably."""
        os.rename(temporary, final)
        _sync_folder(os.path.dirname(final))

    def write_file(self, final: str, data: bytes) -> None:
        """Write a small file atomically and durably. Raises CacheError, SpaceError where the disk is full."""
        temporary = self.temporary()

        def write() -> None:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self.publish(temporary, final)

        try:
            self._with_room(write)
        except OSError as error:
            raise write_error(error, final) from None

    @contextlib.contextmanager
    def making(self, key: str) -> "Iterator[None]":
        """Hold *key* while its result is made, so that equal builds do the work once."""
        with single_flight(self.path("locks"), key):
            yield

    # -- blobs -----------------------------------------------------------------------------

    def blob_path(self, value: Digest) -> str:
        return self.path("blobs", "sha256", hex_of(value))

    def has_blob(self, value: Digest) -> bool:
        return os.path.exists(self.blob_path(value))

    def put_blob(self, data: bytes) -> Digest:
        """Store a small blob; storing what is there already is free."""
        value = digest_of(data)
        if not self.has_blob(value):
            self.write_file(self.blob_path(value), data)
        return value

    def read_blob(self, value: Digest, limit: int = 64 << 20) -> bytes:
        """A small blob's bytes, verified. Raises MissingError and CorruptError."""
        try:
            with open(self.blob_path(value), "rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            raise MissingError(f"blob {value} is not in the store") from None
        if len(data) > limit or digest_of(data) != value:
            raise CorruptError(
                f"blob {value} in {self.root} is damaged",
                f"remove {self.blob_path(value)} and build or pull again",
            )
        return data

    # -- image names -----------------------------------------------------------------------

    def tag(self, name: str, image: Digest) -> None:
        """Make *name* (a canonical reference) mean the image whose config is *image*."""
        if self.resolve(name) != image:
            self.write_file(self._ref_path(name), f"{image}\n{name}\n".encode())

    def untag(self, name: str) -> None:
        """Take a name away; what it meant stays. Raises MissingError."""
        try:
            os.unlink(self._ref_path(name))
        except FileNotFoundError:
            raise MissingError(f"there is no image named {name} in the store") from None
        _sync_folder(self.path("refs"))

    def resolve(self, name: str) -> Digest | None:
        """The image ID that *name* means here, or None."""
        try:
            image, said = self._read_ref(self._ref_path(name))
            if said == name:
                return digest(image)
        except FileNotFoundError:
            return None
        except (OSError, CacheError):
            pass
        raise CorruptError(
            f"the record of the image name {name} is damaged", f"remove {self._ref_path(name)}"
        )

    def names(self) -> list[str]:
        """Every image name, sorted. A damaged record goes by its file's name; it does not resolve."""
        found = []
        for entry in os.listdir(self.path("refs")):
            name = ""
            with contextlib.suppress(OSError):
                _image, name = self._read_ref(self.path("refs", entry))
            if os.path.basename(self._ref_path(name)) != entry:
                name = entry.replace("%2f", "/").replace("%25", "%")
            found.append(name)
        return sorted(found)

    @staticmethod
    def _read_ref(path: str) -> tuple[str, str]:
        """``(image ID, name)`` as a record says."""
        with open(path, "rb") as file:
            image, _, name = file.read(2000).decode("utf-8", "replace").partition("\n")
        return image, name.removesuffix("\n")

    def _ref_path(self, name: str) -> str:
        """The file of a name: the name itself, but for "/" and for what is too long."""
        encoded = name.replace("%", "%25").replace("/", "%2f")
        if len(encoded) > _LONGEST_NAME:
            encoded = "%" + hex_of(digest_of(name.encode()))
        return self.path("refs", encoded)

    # -- durability ------------------------------------------------------------------------

    def sync(self) -> None:
        """Make every published snapshot durable, then say so in the index."""
        waiting = self.index.unsynced()
        if waiting and self._outlives_us():
            from cache.kernel import sync_file_system  # not on the path of a cached build

            sync_file_system(self.root)
        if waiting:
            self.index.mark_synced(waiting)

    def _outlives_us(self) -> bool:
        """Return whether the store is on more than a container's own overlay, which ends with the container.

        To sync that would wait for all that the machine's other containers have written.
        """
        device = os.stat(self.root).st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        with (
            contextlib.suppress(OSError),
            open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file,
        ):
            for line in file:
                fields, _, rest = line.partition(" - ")
                if fields.split()[2] == wanted:
                    return rest.split()[0] != "overlay"
        return True


def write_error(error: OSError, what: str) -> CacheError:
    """The store's words for a failed write."""
    if error.errno in _FULL:
        return SpaceError(
            f"no space left while writing {what}", "free space on that file system, or use another --root"
        )
    return CacheError(f"writing {what}: {error.strerror}")


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
