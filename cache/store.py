"""The store: one directory that holds everything pybuild keeps.

    ROOT/                0700, whatever the umask
      version            the number of this layout
      lock               flock: shared by every process that has the store open
      index.db           SQLite (cache.index); losing it loses cached steps, nothing else
      blobs/sha256/HEX   configs, manifests and layer blobs, each named by its digest
      snapshots/ID/      layer directories, immutable once here
      layers/HEX         a symlink to the snapshot that holds a layer, named by its diff ID
      implied/ID         directories of a snapshot that no member of its layer describes
      files/ID           the members of a COPY layer (marshal, checksummed)
      refs/NAME          image names, each a file with an image ID (the config's digest)
      contexts/HEX       stat indexes of build contexts (cache.context_scan)
      caches/HEX         directories of RUN --mount=type=cache, each flocked while a step uses it
      owners             "all", or "one" where files cannot belong to others (cache.owners)
      somebody           an empty file of another owner: shows whether a copy lost owners
      reserve            space to free when the disk is full
      mounts/            empty mount points, the bottom of every container's overlay
      locks/KEY          held while a step is made, gone afterwards
      tmp/SESSION/       what a running process has not published (cache.session)

To publish a file: write it below tmp, fsync it, rename it, fsync the directory. Snapshots are renamed into
place at once, and one syncfs makes all of them durable when the build is complete (``Store.sync``); until
then their records count only in this boot.

Locks are taken in this order: lock, tmp, locks/KEY, then the locks of caches by name. A process holds one
KEY at a time. Two kinds of keys, for making a cache and for implied directories, may be held besides: whoever
holds one waits for no other lock.
"""

import contextlib
import errno
import fcntl
import os

from cache.digest import Digest, ImageId, digest, digest_of, hex_of
from cache.errors import CacheError, CorruptError, MissingError, SpaceError
from cache.fs import atomic_file, remove_tree, sync_directory
from cache.index import Index
from cache.locks import single_flight, try_lock
from cache.memos import Memos
from cache.owners import check_owners
from cache.session import Session

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
_MOUNT_POINTS = ("proc", "sys", "dev", "etc")
_MOUNT_FILES = ("etc/resolv.conf", "etc/hosts")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_RESERVE = 512 << 10  # bytes: many times what a command that reads, removes or is cached writes


def default_root() -> str:
    """Return where the store is without ``--root``: PYBUILD_ROOT, else a directory of the user.

    Raises CacheError if the user's home directory is not known.
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
    """One open store. A context manager; any number of processes may have it open."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        self._session = Session(self.root)
        self._owners_checked = False
        self._is_reset = False
        self.overlays = True  # containers can have overlays of its directories, else copies
        self.manifests: dict[str, list[Entry]] = {}  # members of the COPY layers that this process made
        self.implied: dict[str, list[str]] = {}  # the files of that directory that were read, by snapshot
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
        """An empty directory: the root of a stage from scratch."""
        return self.path("mounts", "proc")

    def path(self, *parts: str) -> str:
        return os.path.join(self.root, *parts)

    def _prepare(self) -> None:
        """Open or make the layout; close the root to other users."""
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
        """Make the directories and files that are missing."""
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
        """Make the reserve if it is missing and there is room for it."""
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
        """Remove the reserve. Return whether there was one."""
        try:
            os.unlink(self.path("reserve"))
        except OSError:
            return False
        return True

    def _with_room(self, work: "Callable[[], _Result]") -> "_Result":
        """Return what *work* returns; if the disk is full, free the reserve and try again. Raises OSError."""
        try:
            return work()
        except OSError as error:
            if error.errno not in _FULL or not self._make_room():
                raise
        return work()

    def check_owners(self) -> None:
        """Prepare the store for a build: check owners (cache.owners), and remove orphaned snapshots.

        Raises CacheError.
        """
        if not self._owners_checked:
            check_owners(self.root, self.write_file)
            self._owners_checked = True
            self._remove_orphans()

    def reset(self) -> None:
        """Remove all that the store holds; afterwards it can only be closed.

        Raises CacheError, also while another process uses the store.
        """
        if not try_lock(self._lock):
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            raise CacheError(f"another process uses the store {self.root}", "wait until it has ended")
        self.index.close()
        self._is_reset = True
        folders = [name for name in _FOLDERS if "/" not in name]
        others = [name for name in os.listdir(self.root) if name.startswith("index.db")]
        try:
            for name in (*folders, *others, *_FILES):
                remove_tree(self.path(name))
        except OSError as error:
            raise CacheError(
                f"removing what the store {self.root} holds: {error.strerror}: {error.filename}",
                f"run as root: rm -rf {self.root}",
            ) from None

    def _remove_orphans(self) -> None:
        """Remove snapshots that nothing can use, if no other process has the store open.

        Call it before this process publishes anything: its shared lock is free for a moment.
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
        """Close the index, and remove what this process has not published."""
        self.index.close()
        self._session.close()
        if not self._is_reset:
            self._keep_reserve()
        os.close(self._lock)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- unpublished work ------------------------------------------------------------------

    def temporary(self) -> str:
        """Return a new path below this process's session; nothing is there yet. Raises CacheError."""
        return os.path.join(self.session(), os.urandom(4).hex())

    def session(self) -> str:
        """Return the directory of what this process has not published (cache.session). Raises CacheError."""
        try:
            return self._with_room(self._session.path)
        except OSError as error:
            raise write_error(error, self.path("tmp")) from None

    def publish(self, temporary: str, final: str) -> None:
        """Rename a finished, synced temporary file to *final*, durably. Raises OSError."""
        os.rename(temporary, final)
        sync_directory(os.path.dirname(final))

    def write_file(self, final: str, data: bytes, owner: int | None = None) -> None:
        """Write a small file atomically and durably.

        Raises CacheError, and SpaceError when the disk is full.
        """
        temporary = self.temporary()

        def write() -> None:
            with atomic_file(final, temporary) as file:
                file.write(data)
                if owner is not None:
                    os.fchown(file.fileno(), owner, owner)
            sync_directory(os.path.dirname(final))

        try:
            self._with_room(write)
        except OSError as error:
            raise write_error(error, final) from None

    @contextlib.contextmanager
    def making(self, key: str) -> "Iterator[None]":
        """Hold the lock of *key* while its result is made, so that equal builds do the work once."""
        with single_flight(self.path("locks"), key):
            yield

    # -- blobs -----------------------------------------------------------------------------

    def blob_path(self, value: Digest) -> str:
        return self.path("blobs", "sha256", hex_of(value))

    def has_blob(self, value: Digest) -> bool:
        return os.path.exists(self.blob_path(value))

    def put_blob(self, data: bytes) -> Digest:
        """Store a small blob, unless it is stored already."""
        value = digest_of(data)
        if not self.has_blob(value):
            self.write_file(self.blob_path(value), data)
        return value

    def read_blob(self, value: Digest, limit: int = 64 << 20) -> bytes:
        """Return the bytes of a small blob, verified. Raises MissingError and CorruptError."""
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
        """Give the image *image* the name *name*, a canonical reference."""
        if self.resolve(name) != image:
            self.write_file(self._ref_path(name), f"{image}\n{name}\n".encode())

    def untag(self, name: str) -> None:
        """Remove a name; its image stays. Raises MissingError."""
        try:
            os.unlink(self._ref_path(name))
        except FileNotFoundError:
            raise MissingError(f"there is no image named {name} in the store") from None
        sync_directory(self.path("refs"))

    def resolve(self, name: str) -> ImageId | None:
        """Return the image that *name* names, or None. Raises CorruptError."""
        try:
            image, said = self._read_ref(self._ref_path(name))
            if said == name:
                return ImageId(digest(image))
        except FileNotFoundError:
            return None
        except (OSError, CacheError):
            pass
        raise CorruptError(
            f"the record of the image name {name} is damaged", f"remove {self._ref_path(name)}"
        )

    def names(self) -> list[str]:
        """Return every image name, sorted. A damaged record shows its file's name; it does not resolve."""
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
        """Return the two lines of a record: image ID, name."""
        with open(path, "rb") as file:
            image, _, name = file.read(2000).decode("utf-8", "replace").partition("\n")
        return image, name.removesuffix("\n")

    def _ref_path(self, name: str) -> str:
        """Return the file of a name: the name with "/" escaped, or its digest if that is too long."""
        encoded = name.replace("%", "%25").replace("/", "%2f")
        if len(encoded) > _LONGEST_NAME:
            encoded = "%" + hex_of(digest_of(name.encode()))
        return self.path("refs", encoded)

    # -- durability ------------------------------------------------------------------------

    def sync(self) -> None:
        """Make every published snapshot durable, then record it in the index."""
        waiting = self.index.unsynced()
        if waiting and self._outlives_container():
            from cache.kernel import sync_file_system  # not on the path of a cached build

            sync_file_system(self.root)
        if waiting:
            self.index.mark_synced(waiting)

    def _outlives_container(self) -> bool:
        """Return False if the store is on a container's own overlay, which ends with the container.

        A sync there would wait for all that the machine's other containers have written.
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
    """Return the CacheError for a failed write of *what*."""
    if error.errno in _FULL:
        return SpaceError(
            f"no space left while writing {what}", "free space on that file system, or use another --root"
        )
    return CacheError(f"writing {what}: {error.strerror}")
