"""The index: which key has which result. SQLite, one file, always rebuildable by building.

Records of snapshots whose data has not been synced to disk carry the boot they were made
in, and count only in that boot: a killed build loses nothing, a power cut cannot leave a
record that points at half-written files.
"""

import os
import sqlite3
import threading

from cache.errors import CacheError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

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


class Index:
    """Records of one store. Safe to share between threads; other processes may write at any time."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._boot = _boot_id()
        try:
            self._db = self._open()
        except sqlite3.DatabaseError:
            # Not a database, damaged, or of another version: everything in it can be made
            # again, so it is put aside rather than trusted or lost.
            for suffix in ("", "-wal", "-shm"):
                if os.path.exists(path + suffix):
                    os.replace(path + suffix, f"{path}.damaged{suffix}")
            self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=60, isolation_level=None, check_same_thread=False)
        try:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version != _SCHEMA_VERSION:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("BEGIN IMMEDIATE")
                (version,) = db.execute("PRAGMA user_version").fetchone()
                if version == 0:
                    for statement in _SCHEMA.split(";")[:-1]:
                        db.execute(statement)
                    db.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
                elif version != _SCHEMA_VERSION:
                    raise sqlite3.DatabaseError(f"index format {version}")
                db.execute("COMMIT")
            db.execute("PRAGMA synchronous=NORMAL")
        except sqlite3.OperationalError as error:
            db.close()
            raise CacheError(f"the index {self._path} cannot be opened: {error}") from None
        except sqlite3.DatabaseError:
            db.close()
            raise
        return db

    def close(self) -> None:
        self._db.close()

    def _one(self, query: str, *values: object) -> "tuple[object, ...] | None":
        with self._lock:
            try:
                row: tuple[object, ...] | None = self._db.execute(query, values).fetchone()
            except sqlite3.Error as error:
                raise CacheError(f"reading the index {self._path}: {error}") from None
            return row

    def _write(self, query: str, *values: object) -> None:
        with self._lock:
            try:
                self._db.execute(query, values)
            except sqlite3.Error as error:
                raise CacheError(f"writing the index {self._path}: {error}") from None

    # -- steps -----------------------------------------------------------------------------

    def find(self, key: str) -> "tuple[str, int] | None":
        """``(snapshot, created)`` of a step's result, or None: never done, or lost with a boot."""
        row = self._one(
            "SELECT s.id, k.created FROM steps k JOIN snapshots s ON s.id = k.snapshot"
            " WHERE k.key = ? AND s.boot IN ('', ?)",
            key,
            self._boot,
        )
        return (str(row[0]), int(str(row[1]))) if row else None

    def record(self, key: str, snapshot: str, created: int, identity: str) -> None:
        """Say that the step *key* gave *snapshot*; *identity* is kept to explain later misses."""
        self._write("INSERT OR REPLACE INTO steps VALUES (?, ?, ?, ?)", key, snapshot, created, identity)

    def unchanged(self, results: "Iterable[tuple[str, str]]") -> bool:
        """Whether every ``(key, snapshot)`` pair is still the recorded and usable result."""
        wanted = dict(results)
        marks = ",".join("?" * len(wanted))
        with self._lock:
            try:
                rows = self._db.execute(
                    "SELECT k.key, s.id FROM steps k JOIN snapshots s ON s.id = k.snapshot"
                    f" WHERE k.key IN ({marks}) AND s.boot IN ('', ?)",
                    (*wanted, self._boot),
                ).fetchall()
            except sqlite3.Error:
                return False
        return dict(rows) == wanted

    # -- snapshots -------------------------------------------------------------------------

    def add_snapshot(self, snapshot: str) -> None:
        self._write("INSERT INTO snapshots (id, boot) VALUES (?, ?)", snapshot, self._boot)

    def usable(self, snapshot: str) -> bool:
        """Whether a snapshot is complete: synced, or made since this machine was started."""
        row = self._one("SELECT 1 FROM snapshots WHERE id = ? AND boot IN ('', ?)", snapshot, self._boot)
        return row is not None

    def unsynced(self) -> list[str]:
        """Snapshots of this boot that no sync has covered yet."""
        with self._lock:
            rows = self._db.execute("SELECT id FROM snapshots WHERE boot = ?", (self._boot,)).fetchall()
        return [row[0] for row in rows]

    def mark_synced(self, snapshots: list[str]) -> None:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("UPDATE snapshots SET boot = '' WHERE id = ?", [(s,) for s in snapshots])
            self._db.execute("COMMIT")

    def diff_id(self, snapshot: str) -> "tuple[str, int]":
        """The diff ID and tar size of a snapshot that was packed before, else ("", 0)."""
        row = self._one("SELECT diff_id, size FROM snapshots WHERE id = ?", snapshot)
        return (str(row[0]), int(str(row[1]))) if row else ("", 0)

    def set_diff_id(self, snapshot: str, diff_id: str, size: int) -> None:
        self._write("UPDATE snapshots SET diff_id = ?, size = ? WHERE id = ?", diff_id, size, snapshot)

    # -- layers ----------------------------------------------------------------------------

    def unpacked(self, diff_id: str) -> str:
        """The snapshot a layer was unpacked to, or ""."""
        row = self._one(
            "SELECT s.id FROM unpacked u JOIN snapshots s ON s.id = u.snapshot"
            " WHERE u.diff_id = ? AND s.boot IN ('', ?)",
            diff_id,
            self._boot,
        )
        return str(row[0]) if row else ""

    def set_unpacked(self, diff_id: str, snapshot: str) -> None:
        self._write("INSERT OR REPLACE INTO unpacked VALUES (?, ?)", diff_id, snapshot)

    def blob(self, diff_id: str, media_type: str) -> "tuple[str, int] | None":
        """Digest and size of the blob that holds a layer in this form."""
        row = self._one(
            "SELECT digest, size FROM blobs WHERE diff_id = ? AND media_type = ?", diff_id, media_type
        )
        return (str(row[0]), int(str(row[1]))) if row else None

    def blobs(self, diff_id: str) -> "list[tuple[str, str, int]]":
        """``(media type, digest, size)`` of every form a layer is stored in."""
        with self._lock:
            return self._db.execute(
                "SELECT media_type, digest, size FROM blobs WHERE diff_id = ? ORDER BY media_type", (diff_id,)
            ).fetchall()

    def add_blob(self, diff_id: str, media_type: str, digest: str, size: int) -> None:
        self._write("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?)", diff_id, media_type, digest, size)

    # -- memos -----------------------------------------------------------------------------

    def memo(self, key: str) -> "bytes | None":
        row = self._one("SELECT value FROM memos WHERE key = ?", key)
        return bytes(row[0]) if row and isinstance(row[0], bytes) else None

    def set_memo(self, key: str, value: bytes) -> None:
        """Remember a small value under *key*, in place of what was there."""
        if self.memo(key) != value:
            self._write("INSERT OR REPLACE INTO memos VALUES (?, ?)", key, value)


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
