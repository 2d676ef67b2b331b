"""The index: which key has which result. SQLite, one file; losing it loses cached steps only.

That a layer is unpacked in a snapshot is also said by a link in the folder ``layers``, made
once the snapshot is on disk, so that images outlive the index.

Records of snapshots whose data has not been synced to disk carry the boot they were made
in, and count only in that boot: a killed build loses nothing, a power cut cannot leave a
record that points at half-written files.
"""

import contextlib
import os
import sqlite3
import threading

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


# What SQLite says where it gets no space for what it keeps beside the file.
_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)


class Index:
    """Records of one store. Safe to share between threads; other processes may write at any time."""

    def __init__(self, path: str, make_room: "Callable[[], bool]" = lambda: False) -> None:
        """*make_room* gives up what is kept for a full disk; it returns whether there was anything.

        Where even then nothing can be written beside the file, its records are read into memory, and what
        is recorded is lost at the end: so what is here can still be read and removed. Raises CacheError.
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
        self.lasting = True  # whether what is recorded outlives this process
        try:
            self._db = self._open_or_make()
        except sqlite3.OperationalError as error:
            if not _is_no_room(error) or not os.path.exists(path):
                raise CacheError(f"the index {path} cannot be opened: {error}") from None
            self._db = self._open_copy()

    def _open_or_make(self) -> sqlite3.Connection:
        """The file, opened; made where there is none, and where it is not one that can be used.

        Such a file (no database, damaged, of another version) is put aside rather than trusted or lost:
        everything in it can be made again. A new one appears whole, as its journal cannot be changed while
        another process has it open. Raises sqlite3.OperationalError.
        """
        with contextlib.suppress(_Unusable):
            return self._open()
        with single_flight(self._locks, "index"):
            with contextlib.suppress(_Unusable):
                return self._open()  # somebody else was faster
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
            raise _Unusable("there is none")
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
        """Make an empty index, and put it in place."""
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
        """The records as they are in the file, in memory."""
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

    def _run(self, query: str, *values: object) -> "list[Any]":
        """All rows of one statement. Raises CacheError, SpaceError where the disk is full."""
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

    def _there(self, snapshot: str) -> bool:
        return os.path.lexists(os.path.join(self._snapshots, snapshot))

    # -- steps -----------------------------------------------------------------------------

    def find(self, key: str) -> "tuple[str, int, str] | None":
        """``(layer, created, identity)`` of a step's result, or None: never done, or lost with a boot.

        The layer is a snapshot; or a diff ID, where a shared cache gave the result, of a layer that is
        here as a blob or unpacked.
        """
        rows = self._run("SELECT snapshot, created, identity FROM steps WHERE key = ?", key)
        return rows[0] if rows and self._holds(rows[0][0]) else None

    def _holds(self, layer: str) -> bool:
        if not layer.startswith("sha256:"):
            return self.usable(layer)
        return bool(self.unpacked(layer)) or any(map(self._stored, self.blobs(layer)))

    def _stored(self, blob: "tuple[str, str, int]") -> bool:
        return os.path.exists(os.path.join(self._blobs, blob[1].partition(":")[2]))

    def record(self, key: str, layer: str, created: int, identity: str) -> None:
        """Say that the step *key* gave *layer*, see ``find``; *identity* is kept to explain later misses."""
        self._run("INSERT OR REPLACE INTO steps VALUES (?, ?, ?, ?)", key, layer, created, identity)

    def unchanged(self, results: "Iterable[tuple[str, str]]") -> bool:
        """Whether every ``(key, layer)`` pair is still the recorded and usable result."""
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
        return all(self._there(snapshot) if snapshot else self._holds(layer) for _, layer, snapshot in rows)

    # -- snapshots -------------------------------------------------------------------------

    def add_snapshot(self, snapshot: str) -> None:
        """Say that *snapshot* is about to be put into place; it counts once it is there."""
        self._run("INSERT INTO snapshots (id, boot) VALUES (?, ?)", snapshot, self.boot)

    def usable(self, snapshot: str) -> bool:
        """Whether a snapshot is complete: synced, or made since this machine was started."""
        rows = self._run("SELECT 1 FROM snapshots WHERE id = ? AND boot IN ('', ?)", snapshot, self.boot)
        return bool(rows) and self._there(snapshot)

    def unsynced(self) -> list[str]:
        """Snapshots of this boot, in their places, that no sync has covered yet."""
        rows = self._run("SELECT id FROM snapshots WHERE boot = ?", self.boot)
        return [row[0] for row in rows if self._there(row[0])]

    def forget_snapshot(self, snapshot: str) -> None:
        self._run("DELETE FROM snapshots WHERE id = ?", snapshot)

    def unknown(self) -> "list[str]":
        """Snapshots in their places of which nothing is known, or that were not on disk when the machine went
        down: nobody will use them.
        """
        there = set(os.listdir(self._snapshots))
        there -= {row[0] for row in self._run("SELECT id FROM snapshots WHERE boot IN ('', ?)", self.boot)}
        if there:
            for name in os.listdir(self._layers):
                with contextlib.suppress(OSError):
                    there.discard(os.path.basename(os.readlink(os.path.join(self._layers, name))))
        return sorted(there)

    def mark_synced(self, snapshots: list[str]) -> None:
        """Say that *snapshots* are on disk, and which layers they are outside the index too.

        Raises CacheError.
        """
        marks = ",".join("?" * len(snapshots))
        for diff_id, snapshot in self._run(
            f"SELECT diff_id, snapshot FROM unpacked WHERE snapshot IN ({marks})", *snapshots
        ):
            try:
                self._link_layer(diff_id, snapshot)
            except OSError as error:
                raise CacheError(f"writing in {self._layers}: {error.strerror}") from None
        self._run(f"UPDATE snapshots SET boot = '' WHERE id IN ({marks})", *snapshots)

    def _link_layer(self, diff_id: str, snapshot: str) -> None:
        link = os.path.join(self._layers, diff_id.partition(":")[2])
        target = f"../snapshots/{snapshot}"
        try:
            os.symlink(target, link)
        except FileExistsError:
            if os.path.exists(link):
                return
            os.unlink(link)  # what it named is gone
            os.symlink(target, link)

    def diff_id(self, snapshot: str) -> "tuple[str, int]":
        """The diff ID and tar size of a snapshot that was packed before, else ("", 0)."""
        rows = self._run("SELECT diff_id, size FROM snapshots WHERE id = ?", snapshot)
        return rows[0] if rows else ("", 0)

    def set_diff_id(self, snapshot: str, diff_id: str, size: int) -> None:
        self._run("UPDATE snapshots SET diff_id = ?, size = ? WHERE id = ?", diff_id, size, snapshot)

    # -- layers ----------------------------------------------------------------------------

    def unpacked(self, diff_id: str) -> str:
        """The snapshot a layer was unpacked to, or ""."""
        rows = self._run(
            "SELECT s.id FROM unpacked u JOIN snapshots s ON s.id = u.snapshot"
            " WHERE u.diff_id = ? AND s.boot IN ('', ?)",
            diff_id,
            self.boot,
        )
        if rows:
            return rows[0][0] if self._there(rows[0][0]) else ""
        return self._unpacked_before(diff_id)

    def _unpacked_before(self, diff_id: str) -> str:
        """The same by the links, for an index that was lost; it learns it anew."""
        link = os.path.join(self._layers, diff_id.partition(":")[2])
        try:
            snapshot = os.path.basename(os.readlink(link))
        except OSError:
            return ""
        if not snapshot or not self._there(snapshot):
            return ""
        self._run("INSERT OR IGNORE INTO snapshots (id, boot, diff_id) VALUES (?, '', ?)", snapshot, diff_id)
        self.set_unpacked(diff_id, snapshot)
        return snapshot

    def set_unpacked(self, diff_id: str, snapshot: str) -> None:
        self._run("INSERT OR REPLACE INTO unpacked VALUES (?, ?)", diff_id, snapshot)

    def blobs(self, diff_id: str) -> "list[tuple[str, str, int]]":
        """``(media type, digest, size)`` of every form a layer is stored in."""
        query = "SELECT media_type, digest, size FROM blobs WHERE diff_id = ? ORDER BY media_type"
        return self._run(query, diff_id)

    def add_blob(self, diff_id: str, media_type: str, digest: str, size: int) -> None:
        self._run("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?)", diff_id, media_type, digest, size)

    # -- memos -----------------------------------------------------------------------------

    def memo(self, key: str) -> "bytes | None":
        rows = self._run("SELECT value FROM memos WHERE key = ?", key)
        return bytes(rows[0][0]) if rows and isinstance(rows[0][0], bytes) else None

    def remembered(self, key: str) -> str:
        """The snapshot that a memo names; "" where there is none, or it is not usable."""
        snapshot = (self.memo(key) or b"").decode()
        return snapshot if snapshot and self.usable(snapshot) else ""

    def set_memo(self, key: str, value: bytes) -> None:
        """Remember a small value under *key*, in place of what was there."""
        if self.memo(key) != value:
            self._run("INSERT OR REPLACE INTO memos VALUES (?, ?)", key, value)

    def forget_memos(self, start: str, end: str) -> None:
        """Forget what is remembered under keys that start and end so."""
        found = "key >= ? AND substr(key, 1, length(?)) = ? AND substr(key, -length(?)) = ?"
        self._run(f"DELETE FROM memos WHERE {found}", start, start, start, end, end)


class _Unusable(Exception):
    """The file is not there, or not an index."""


def _is_no_room(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF in _NO_ROOM


def _boot_id() -> str:
    """What tells this boot from others; where that cannot be read, this process from others."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return os.urandom(16).hex()
