"""The index: the result of each step, the forms of each layer, and memos. One SQLite file.

Losing the file loses cached steps only: a symlink in ``layers`` also records which snapshot holds
a layer, from the moment the snapshot is on disk, so images outlive the index.

The record of a snapshot that no sync has covered carries the boot in which it was made, and counts
only in that boot. So a killed build loses nothing, and after a power cut no record points at
half-written files.
"""

import contextlib
import os
import sqlite3
import threading

from cache.digest import BlobDigest, DiffId, Layer, SnapshotId, hex_of, layer_of
from cache.errors import CacheError, CorruptError, SpaceError
from cache.locks import single_flight

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

_HINT = "remove it if this goes on: cached steps are lost, images are not"
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE snapshots (
    id TEXT PRIMARY KEY, boot TEXT NOT NULL, diff_id TEXT NOT NULL DEFAULT '', size INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE steps (
    key TEXT PRIMARY KEY, snapshot TEXT NOT NULL, created INTEGER NOT NULL, identity TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE blobs (
    diff_id TEXT NOT NULL, media_type TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL,
    PRIMARY KEY (diff_id, media_type)
) WITHOUT ROWID;
CREATE TABLE unpacked (diff_id TEXT PRIMARY KEY, snapshot TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE memos (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""


# SQLite's errors when the disk has no space for the journal beside the file.
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)


# NamedTuples would import typing, which a cached build does without.


class StepResult:
    """The recorded result of a step.

    ``layer`` is a snapshot, or a diff ID if a shared cache gave the result. ``created`` is in
    nanoseconds since 1970. ``identity`` is what the key was derived from, kept to explain misses.
    """

    __slots__ = ("created", "identity", "layer")

    def __init__(self, layer: Layer, created: int, identity: str) -> None:
        self.layer = layer
        self.created = created
        self.identity = identity


class LayerTar:
    """The uncompressed tar of a layer: its digest, and its size in bytes."""

    __slots__ = ("diff_id", "size")

    def __init__(self, diff_id: DiffId, size: int) -> None:
        self.diff_id = diff_id
        self.size = size


class LayerBlob:
    """A form in which a layer is stored; ``size`` is in bytes."""

    __slots__ = ("digest", "media_type", "size")

    def __init__(self, media_type: str, digest: BlobDigest, size: int) -> None:
        self.media_type = media_type
        self.digest = digest
        self.size = size


class Index:
    """The records of one store. Threads may share it; other processes may write at any time."""

    def __init__(self, path: str, make_room: "Callable[[], bool]" = lambda: False) -> None:
        """Open the index *path*, making it if needed.

        *make_room* frees the space reserved for a full disk and returns whether there was any. If the
        disk is still too full to open the file, its records are read into memory, so that the store can
        be read and cleaned up; new records are then lost with the process. Raises CacheError.
        """
        self._path = path
        root = os.path.dirname(path)
        self._snapshots = os.path.join(root, "snapshots")
        self._layers = os.path.join(root, "layers")
        self._blobs = os.path.join(root, "blobs", "sha256")
        self._locks = os.path.join(root, "locks")
        self._lock = threading.Lock()
        self._make_room = make_room
        self.boot = _boot_id()
        self.lasting = True  # records outlive this process
        try:
            self._db = self._open_or_make()
        except sqlite3.OperationalError as error:
            if not _is_no_room(error) or not os.path.exists(path):
                raise CacheError(f"the index {path} cannot be opened: {error}") from None
            self._db = self._open_copy()

    def _open_or_make(self) -> sqlite3.Connection:
        """Open the file; make it if it is missing or unusable (no database, damaged, another version).

        An unusable file is renamed to ``*.damaged``: everything in it can be made again. A new file
        appears whole, because its journal mode cannot change while another process has it open. Raises
        sqlite3.OperationalError.
        """
        with contextlib.suppress(_Unusable):
            return self._open()
        with single_flight(self._locks, "index"):
            with contextlib.suppress(_Unusable):
                return self._open()  # another process was faster
            for suffix in ("", "-wal", "-shm"):
                if os.path.exists(self._path + suffix):
                    os.replace(self._path + suffix, f"{self._path}.damaged{suffix}")
            self._make()
            try:
                return self._open()
            except _Unusable as error:
                raise CacheError(f"the index {self._path} cannot be made: {error}") from None

    def _open(self) -> sqlite3.Connection:
        """Raises _Unusable, and sqlite3.OperationalError."""
        if not os.path.exists(self._path):
            raise _Unusable("it does not exist")
        try:
            return self._connect()
        except sqlite3.OperationalError as error:
            if not _is_no_room(error) or not self._make_room():
                raise
        return self._connect()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=60, isolation_level=None, check_same_thread=False)
        try:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version != _SCHEMA_VERSION:
                raise _Unusable(f"its format is {version}")
            db.execute("PRAGMA synchronous=NORMAL")
        except sqlite3.OperationalError:
            db.close()
            raise
        except (sqlite3.DatabaseError, _Unusable) as error:
            db.close()
            raise _Unusable(str(error)) from None
        return db

    def _make(self) -> None:
        """Make an empty index and rename it into place."""
        new = f"{self._path}.new"
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new + suffix)
        db = sqlite3.connect(new, isolation_level=None)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA.split(";")[:-1]:
                db.execute(statement)
            db.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
            db.execute("COMMIT")
        finally:
            db.close()
        os.rename(new, self._path)

    def _open_copy(self) -> sqlite3.Connection:
        """Read the records into memory."""
        self.lasting = False
        path = self._path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
        copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        try:
            file = sqlite3.connect(f"file:{path}?immutable=1", uri=True)
            file.backup(copy)
            file.close()
        except sqlite3.Error as error:
            raise CacheError(f"the index {self._path} cannot be read: {error}") from None
        return copy

    def close(self) -> None:
        self._db.close()

    def _run(self, query: str, *values: object) -> "list[Any]":  # rows of SQLite have no types
        """Return all rows of one statement. Raises CacheError, and SpaceError when the disk is full."""
        with self._lock:
            try:
                try:
                    return self._db.execute(query, values).fetchall()
                except sqlite3.OperationalError as error:
                    if not _is_no_room(error) or not self._make_room():
                        raise
                    return self._db.execute(query, values).fetchall()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                    raise SpaceError(
                        f"no space left while writing the index {self._path}",
                        "free space on that file system, or use another --root",
                    ) from None
                raise CacheError(f"using the index {self._path}: {error}", _HINT) from None
            except sqlite3.Error as error:
                raise CorruptError(f"the index {self._path} is damaged: {error}", _HINT) from None

    def _is_in_place(self, snapshot: SnapshotId) -> bool:
        return os.path.lexists(os.path.join(self._snapshots, snapshot))

    # -- steps -----------------------------------------------------------------------------

    def find(self, key: str) -> StepResult | None:
        """Return the recorded result of the step *key* if its layer is still here, else None."""
        rows = self._run("SELECT snapshot, created, identity FROM steps WHERE key = ?", key)
        if not rows:
            return None
        layer, created, identity = rows[0]
        found = StepResult(layer_of(layer), created, identity)
        return found if self._holds(found.layer) else None

    def _holds(self, layer: Layer) -> bool:
        if isinstance(layer, SnapshotId):
            return self.usable(layer)
        return self.unpacked(layer) is not None or any(map(self._is_stored, self.blobs(layer)))

    def _is_stored(self, blob: LayerBlob) -> bool:
        return os.path.exists(os.path.join(self._blobs, hex_of(blob.digest)))

    def record(self, key: str, result: StepResult) -> None:
        """Record the result of the step *key*, replacing an older one."""
        values = (key, result.layer, result.created, result.identity)
        self._run("INSERT OR REPLACE INTO steps VALUES (?, ?, ?, ?)", *values)

    def unchanged(self, results: "Iterable[tuple[str, str]]") -> bool:
        """Return whether every ``(key, layer)`` pair is still recorded and its layer usable."""
        wanted = dict(results)
        marks = ",".join("?" * len(wanted))
        rows = self._run(
            "SELECT k.key, k.snapshot, s.id FROM steps k LEFT JOIN snapshots s"
            f" ON s.id = k.snapshot AND s.boot IN ('', ?) WHERE k.key IN ({marks})",
            self.boot,
            *wanted,
        )
        if {key: layer for key, layer, _ in rows} != wanted:
            return False
        return all(
            self._is_in_place(snapshot) if snapshot else self._holds(layer_of(layer))
            for _, layer, snapshot in rows
        )

    # -- snapshots -------------------------------------------------------------------------

    def add_snapshot(self, snapshot: SnapshotId) -> None:
        """Record *snapshot* before it is renamed into place; it counts once it is there."""
        self._run("INSERT INTO snapshots (id, boot) VALUES (?, ?)", snapshot, self.boot)

    def usable(self, snapshot: SnapshotId) -> bool:
        """Return whether a snapshot is complete: synced, or made in this boot."""
        rows = self._run("SELECT 1 FROM snapshots WHERE id = ? AND boot IN ('', ?)", snapshot, self.boot)
        return bool(rows) and self._is_in_place(snapshot)

    def unsynced(self) -> list[SnapshotId]:
        """Return the snapshots in place that no sync has covered yet."""
        rows = self._run("SELECT id FROM snapshots WHERE boot = ?", self.boot)
        return [SnapshotId(row[0]) for row in rows if self._is_in_place(SnapshotId(row[0]))]

    def forget_snapshot(self, snapshot: SnapshotId) -> None:
        """Remove the record of a snapshot."""
        self._run("DELETE FROM snapshots WHERE id = ?", snapshot)

    def orphans(self) -> list[SnapshotId]:
        """Return the snapshots in place that nothing can use, sorted.

        They have no record, or were not yet on disk when the machine went down.
        """
        found = set(os.listdir(self._snapshots))
        found -= {row[0] for row in self._run("SELECT id FROM snapshots WHERE boot IN ('', ?)", self.boot)}
        if found:
            for name in os.listdir(self._layers):
                with contextlib.suppress(OSError):
                    found.discard(os.path.basename(os.readlink(os.path.join(self._layers, name))))
        return sorted(map(SnapshotId, found))

    def mark_synced(self, snapshots: list[SnapshotId]) -> None:
        """Record that *snapshots* are on disk, and link the layers they are outside the index.

        Raises CacheError.
        """
        marks = ",".join("?" * len(snapshots))
        for diff_id, snapshot in self._run(
            f"SELECT diff_id, snapshot FROM unpacked WHERE snapshot IN ({marks})", *snapshots
        ):
            try:
                self._link_layer(DiffId(diff_id), snapshot)
            except OSError as error:
                raise CacheError(f"writing in {self._layers}: {error.strerror}") from None
        self._run(f"UPDATE snapshots SET boot = '' WHERE id IN ({marks})", *snapshots)

    def _link_of(self, diff_id: DiffId) -> str:
        return os.path.join(self._layers, hex_of(diff_id))

    def _link_layer(self, diff_id: DiffId, snapshot: str) -> None:
        link, target = self._link_of(diff_id), f"../snapshots/{snapshot}"
        try:
            os.symlink(target, link)
        except FileExistsError:
            if os.path.exists(link):
                return
            os.unlink(link)  # its snapshot is gone
            os.symlink(target, link)

    def layer_tar(self, snapshot: SnapshotId) -> LayerTar | None:
        """Return what is known of the tar of a snapshot; None if it was never packed."""
        rows = self._run("SELECT diff_id, size FROM snapshots WHERE id = ? AND diff_id != ''", snapshot)
        return LayerTar(DiffId(rows[0][0]), rows[0][1]) if rows else None

    def set_layer_tar(self, snapshot: SnapshotId, tar: LayerTar) -> None:
        """Record the tar of a snapshot."""
        query = "UPDATE snapshots SET diff_id = ?, size = ? WHERE id = ?"
        self._run(query, tar.diff_id, tar.size, snapshot)

    # -- layers ----------------------------------------------------------------------------

    def unpacked(self, diff_id: DiffId) -> SnapshotId | None:
        """Return the snapshot that holds a layer unpacked, if there is one."""
        rows = self._run(
            "SELECT s.id FROM unpacked u JOIN snapshots s ON s.id = u.snapshot"
            " WHERE u.diff_id = ? AND s.boot IN ('', ?)",
            diff_id,
            self.boot,
        )
        if not rows:
            return self._unpacked_by_link(diff_id)
        snapshot = SnapshotId(rows[0][0])
        return snapshot if self._is_in_place(snapshot) else None

    def _unpacked_by_link(self, diff_id: DiffId) -> SnapshotId | None:
        """Look a layer up by its link, for an index that was lost, and record it again."""
        try:
            snapshot = SnapshotId(os.path.basename(os.readlink(self._link_of(diff_id))))
        except OSError:
            return None
        if not snapshot or not self._is_in_place(snapshot):
            return None
        self._run("INSERT OR IGNORE INTO snapshots (id, boot, diff_id) VALUES (?, '', ?)", snapshot, diff_id)
        self.set_unpacked(diff_id, snapshot)
        return snapshot

    def set_unpacked(self, diff_id: DiffId, snapshot: SnapshotId) -> None:
        """Record that *snapshot* holds a layer unpacked."""
        self._run("INSERT OR REPLACE INTO unpacked VALUES (?, ?)", diff_id, snapshot)

    def blobs(self, diff_id: DiffId) -> list[LayerBlob]:
        """Return every form in which a layer was stored, by media type."""
        query = "SELECT media_type, digest, size FROM blobs WHERE diff_id = ? ORDER BY media_type"
        return [LayerBlob(media, BlobDigest(name), size) for media, name, size in self._run(query, diff_id)]

    def add_blob(self, diff_id: DiffId, blob: LayerBlob) -> None:
        """Record a form in which a layer is stored."""
        values = (diff_id, blob.media_type, blob.digest, blob.size)
        self._run("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?)", *values)

    # -- memos (cache.memos says which there are) --------------------------------------------

    def memo(self, key: str) -> bytes | None:
        """Return the value of a memo."""
        rows = self._run("SELECT value FROM memos WHERE key = ?", key)
        return bytes(rows[0][0]) if rows and isinstance(rows[0][0], bytes) else None

    def set_memo(self, key: str, value: bytes) -> None:
        """Store a memo, replacing an older value."""
        if self.memo(key) != value:
            self._run("INSERT OR REPLACE INTO memos VALUES (?, ?)", key, value)

    def forget_memos(self, start: str, end: str) -> None:
        """Remove the memos whose keys begin with *start* and end with *end*."""
        found = "key >= ? AND substr(key, 1, length(?)) = ? AND substr(key, -length(?)) = ?"
        self._run(f"DELETE FROM memos WHERE {found}", start, start, start, end, end)


class _Unusable(Exception):
    """The file does not exist or is not an index."""


def _is_no_room(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF in _NO_ROOM


def _boot_id() -> str:
    """Return the id of this boot; if it cannot be read, one of this process."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return os.urandom(16).hex()
