"""The index: results of steps, boots, layers, damage and a full disk."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.digest import BlobDigest, DiffId, SnapshotId, digest_of, hex_of, layer_of
from cache.errors import CorruptError, SpaceError
from cache.index import Index, LayerBlob, LayerTar, StepResult
from cache.memos import Memos

LAYER = DiffId(digest_of(b"layer"))
BLOB = LayerBlob("type", BlobDigest(digest_of(b"blob")), 5)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("snapshots", "layers", "blobs/sha256", "locks"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


@pytest.fixture
def index(root: Path) -> Iterator[Index]:
    made = Index(str(root / "index.db"))
    yield made
    made.close()


def snapshot(root: Path, index: Index, name: str) -> SnapshotId:
    made = SnapshotId(name)
    index.add_snapshot(made)
    (root / "snapshots" / name).mkdir()
    return made


def reopened(root: Path, boot: str | None = None) -> Index:
    made = Index(str(root / "index.db"))
    if boot is not None:
        made.boot = boot
    return made


def test_layers_are_told_apart() -> None:
    assert isinstance(layer_of(str(LAYER)), DiffId)
    assert isinstance(layer_of("0123456789"), SnapshotId)


def test_a_result_counts_while_its_snapshot_is_there(root: Path, index: Index) -> None:
    made = snapshot(root, index, "a")
    assert index.find("key") is None
    index.record("key", StepResult(made, 7, "identity"))
    found = index.find("key")
    assert found is not None
    assert (found.layer, found.created, found.identity) == (made, 7, "identity")
    assert index.unchanged([("key", "a")])
    assert not index.unchanged([("key", "b")])
    (root / "snapshots/a").rmdir()
    assert index.find("key") is None
    assert not index.unchanged([("key", "a")])


def test_a_result_that_is_a_diff_id(root: Path, index: Index) -> None:
    index.record("key", StepResult(LAYER, 7, ""))
    assert index.find("key") is None
    index.add_blob(LAYER, BLOB)
    assert index.find("key") is None  # recorded, and not there
    (root / "blobs/sha256" / hex_of(BLOB.digest)).touch()
    assert index.find("key") is not None
    assert index.unchanged([("key", str(LAYER))])


def test_unsynced_snapshots_count_in_their_boot_only(root: Path, index: Index) -> None:
    lost, kept = snapshot(root, index, "lost"), snapshot(root, index, "kept")
    assert index.unsynced() == [kept, lost]
    index.mark_synced([kept])
    later = reopened(root, "another boot")
    assert index.usable(lost)
    assert not later.usable(lost)
    assert later.usable(kept)
    assert later.orphans() == [lost]
    assert index.orphans() == []
    later.close()


def test_tars(root: Path, index: Index) -> None:
    made = snapshot(root, index, "a")
    assert index.layer_tar(made) is None
    index.set_layer_tar(made, LayerTar(LAYER, 9))
    found = index.layer_tar(made)
    assert found is not None
    assert (found.diff_id, found.size) == (LAYER, 9)
    assert isinstance(found.diff_id, DiffId)


def test_images_outlive_the_index(root: Path, index: Index) -> None:
    made = snapshot(root, index, "a")
    assert index.unpacked(LAYER) is None
    index.set_unpacked(LAYER, made)
    index.mark_synced([made])
    index.close()
    for name in os.listdir(root):
        if name.startswith("index.db"):
            os.unlink(root / name)
    later = reopened(root)
    assert later.orphans() == []
    assert later.unpacked(LAYER) == made
    later.close()


def test_a_stale_link_is_replaced(root: Path, index: Index) -> None:
    os.symlink("../snapshots/gone", root / "layers" / hex_of(LAYER))
    assert index.unpacked(LAYER) is None
    made = snapshot(root, index, "a")
    index.set_unpacked(LAYER, made)
    index.mark_synced([made])
    assert os.readlink(root / "layers" / hex_of(LAYER)) == "../snapshots/a"


@pytest.mark.parametrize("damage", [b"no database", b""])
def test_an_unusable_file_is_put_aside(root: Path, damage: bytes) -> None:
    (root / "index.db").write_bytes(damage)
    made = Index(str(root / "index.db"))
    made.add_blob(LAYER, BLOB)
    assert [form.digest for form in made.blobs(LAYER)] == [BLOB.digest]
    made.close()
    assert (root / "index.db.damaged").read_bytes() == damage
    assert os.listdir(root / "locks") == []


def test_a_full_disk(root: Path) -> None:
    """The index asks for room, then says what to do."""
    asked: list[bool] = []

    def make_room() -> bool:
        asked.append(True)
        return len(asked) == 1

    made = Index(str(root / "index.db"), make_room)

    class Full:
        def execute(self, *_given: object) -> object:
            error = sqlite3.OperationalError("full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error

        def close(self) -> None:
            pass

    real, made._db = made._db, Full()  # type: ignore[assignment]
    with pytest.raises(SpaceError, match="no space left"):
        made.memo("x")
    assert asked == [True]
    real.close()


def test_damage_is_reported_with_a_hint(index: Index) -> None:
    class Damaged:
        def execute(self, *_given: object) -> object:
            raise sqlite3.DatabaseError("malformed")

    real, index._db = index._db, Damaged()  # type: ignore[assignment]
    with pytest.raises(CorruptError, match="is damaged: malformed") as caught:
        index.memo("x")
    assert "images are not" in caught.value.hint
    index._db = real


def test_memos_of_each_kind(root: Path, index: Index) -> None:
    memos, made = Memos(index), snapshot(root, index, "a")
    assert memos.checkout("k") is memos.context("k") is memos.last_copy("k") is None
    memos.set_checkout("k", made)
    assert memos.checkout("k") == made
    assert memos.context("k") is None  # kinds do not mix
    assert memos.implied_directories("k") is None
    memos.set_implied_directories("k", ())
    assert memos.implied_directories("k") == ()
    memos.set_implied_directories("k", (made,))
    assert memos.implied_directories("k") == (made,)
    (root / "snapshots/a").rmdir()
    assert (memos.checkout("k"), memos.implied_directories("k")) == (None, None)
    memos.set_repositories("r", BLOB.digest, ["a", "b"])
    assert memos.repositories("r", BLOB.digest) == ["a", "b"]
    memos.set_fetched_url("k", {"snapshot": "a", "etag": "x"})
    assert memos.fetched_url("k") == {"snapshot": "a", "etag": "x"}
    index.set_memo("fetched:k", b"damaged")
    assert memos.fetched_url("k") is None
    memos.set_syntax_tree("edition", "text", b"tree")
    assert memos.syntax_tree("edition", "text") == b"tree"
    assert memos.syntax_tree("other code", "text") is None
    memos.set_probe_succeeded("p", "u", 1)
    assert memos.probe_succeeded("p", "u", 1)
    assert not memos.probe_succeeded("p", "u", 2)
    index.boot = "another"
    assert not memos.probe_succeeded("p", "u", 1)
