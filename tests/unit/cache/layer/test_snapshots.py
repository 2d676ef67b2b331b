"""Drafts, snapshots, stacks and the blobs of layers, in a store of one id: no root is needed."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cache.descriptor import Descriptor
from cache.digest import DiffId, SnapshotId, digest_of
from cache.entry import FILE, Entry
from cache.errors import ArchiveError, CacheError, CorruptError, MissingError, SpaceError
from cache.layer import blobs
from cache.layer.compression import GZIP, NONE, ZSTD, media_type
from cache.layer.snapshots import commit, draft, manifest, top_down, tree_of, withdraw
from cache.store import Store

NOWHERE = DiffId(digest_of(b"nowhere"))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    for module in ("cache.owners", "cache.kernel"):
        monkeypatch.setattr(f"{module}.keeps_owners", lambda: False)
    monkeypatch.setattr(os, "chown", lambda *_given, **_named: None)
    with Store(str(tmp_path / "store")) as made:
        yield made


def snapshot(store: Store, **files: str) -> SnapshotId:
    with draft(store, ()) as made:
        for name, text in files.items():
            path = Path(made.upper, name)
            path.write_text(text)
            os.utime(path, ns=(10**9, 10**9))
        return commit(made)


def test_a_draft_becomes_a_snapshot(store: Store) -> None:
    made = snapshot(store, a="x")
    assert store.index.usable(made)
    assert os.listdir(store.path("snapshots", made)) == ["a"]
    assert os.listdir(store.session()) == []
    assert store.index.unsynced() == [made]
    store.sync()
    assert store.index.unsynced() == []


def test_an_error_discards_a_draft(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), draft(store, ()) as made:
        Path(made.upper, "a").touch()
        raise ZeroDivisionError
    with pytest.raises(CacheError, match="writing a layer"), draft(store, ()):
        raise OSError(5, "broken")
    assert os.listdir(store.path("snapshots")) == os.listdir(store.session()) == []


def test_a_failed_commit_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, failures = os.rename, [OSError(28, "full")]

    def refuse_once(source: str, target: str, **folders: int) -> None:
        if "/snapshots/" in target and failures:
            raise failures.pop()
        rename(source, target, **folders)

    monkeypatch.setattr(os, "rename", refuse_once)
    with pytest.raises(SpaceError), draft(store, ()) as made:
        commit(made, [Entry("a", FILE)], implied=["d"])
    for folder in ("snapshots", "files", "implied"):
        assert os.listdir(store.path(folder)) == []
    assert store.index.orphans() == []


def test_manifests(store: Store) -> None:
    entries = [Entry("a", FILE, 0o644, digest="0" * 64)]
    with draft(store, ()) as made:
        Path(made.upper, "a").touch()
        name = commit(made, entries)
    store.manifests.clear()
    assert manifest(store, name) == entries
    Path(store.path("files", name)).write_bytes(b"damaged")
    assert manifest(store, name) is None
    assert manifest(store, snapshot(store)) is None
    withdraw(store, name)
    assert not store.index.usable(name)
    assert not os.path.exists(store.path("files", name))


def test_stacks(store: Store) -> None:
    one, two = snapshot(store, a="1", b="1"), snapshot(store, a="2")
    assert top_down(store, (one, two)) == [two, one]
    assert top_down(store, (one, two, one)) == [one, two]
    found = tree_of(store, (one, two)).lookup("a")
    assert found is not None
    assert Path(found.real).read_text() == "2"
    with pytest.raises(MissingError, match="gone from the store"):
        top_down(store, (one, ""))


def test_implied_directories_take_the_metadata_of_lower_layers(store: Store) -> None:
    with draft(store, ()) as made:
        os.mkdir(os.path.join(made.upper, "d"))
        os.chmod(os.path.join(made.upper, "d"), 0o711)
        below = commit(made)
    with draft(store, ()) as made:
        os.mkdir(os.path.join(made.upper, "d"))
        Path(made.upper, "d/f").touch()
        above = commit(made, implied=["d"])
    names = top_down(store, (below, above))
    assert names[1:] == [above, below]
    assert top_down(store, (below, above)) == names  # remembered
    found = tree_of(store, (below, above)).lookup("d")
    assert found is not None
    assert found.found.st_mode & 0o777 == 0o711
    assert top_down(store, (above,)) == [above]  # there is nothing below


# -- blobs -----------------------------------------------------------------------------------


def test_equal_trees_are_one_layer(store: Store) -> None:
    first, second = snapshot(store, a="x"), snapshot(store, a="x")
    tar = blobs.layer_tar(store, first)
    assert blobs.layer_tar(store, second).diff_id == tar.diff_id
    assert tar.size == 2048  # header, content, two blocks of zeros
    assert store.index.unpacked(tar.diff_id) == first
    assert blobs.snapshot_of(store, tar.diff_id) == first


@pytest.mark.parametrize("compression", [GZIP, ZSTD, NONE])
def test_a_blob_unpacks_to_its_layer(store: Store, compression: str) -> None:
    made = snapshot(store, a="x" * 5000)
    layer = blobs.layer_tar(store, made).diff_id
    assert blobs.stored(store, layer) is None
    packed: list[int] = []
    blob = blobs.blob(store, layer, blobs.Packing(compression), packed.append)
    assert blob.media_type == media_type(compression)
    assert sum(packed) == blobs.layer_tar(store, made).size
    assert blobs.blob(store, layer, blobs.Packing(GZIP)) == blob  # any form will do
    assert blobs.blob(store, layer, blobs.Packing(NONE), exact=True).media_type == media_type(NONE)
    withdraw(store, made)
    blobs.check_blob(store, blob, layer)
    again = blobs.snapshot_of(store, layer)
    assert Path(store.path("snapshots", again, "a")).read_text() == "x" * 5000


def test_damage_is_found(store: Store) -> None:
    made = snapshot(store, a="x")
    layer = blobs.layer_tar(store, made).diff_id
    blob = blobs.blob(store, layer)
    with pytest.raises(CorruptError, match="but it should be"):
        blobs.check_blob(store, blob, NOWHERE)
    path = store.blob_path(blob.digest)
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises((CorruptError, ArchiveError)):
        blobs.check_blob(store, blob, layer)
    Path(store.path("snapshots", made, "a")).write_text("y")
    os.unlink(path)
    with pytest.raises(CorruptError, match="has changed on disk"):
        blobs.blob(store, layer)
    with pytest.raises(MissingError, match="gone from the store"):
        blobs.snapshot_of(store, NOWHERE)


def test_what_is_no_layer(store: Store) -> None:
    value = store.put_blob(b"{}")
    with pytest.raises(ArchiveError, match="are not supported"):
        blobs.check_blob(store, Descriptor("application/json", value, 2), NOWHERE)


def test_clamped_times(store: Store) -> None:
    made = snapshot(store, a="x")
    layer = blobs.layer_tar(store, made).diff_id
    assert blobs.clamped(store, layer, 2) == layer
    earlier = blobs.clamped(store, layer, 0)
    assert earlier != layer
    assert blobs.stored(store, earlier) is not None
    assert blobs.clamped(store, layer, 0) == earlier


def test_a_tar_of_files_is_packed_anew(store: Store) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("./a")
        info.size = 1
        info.mtime = 1
        tar.addfile(info, io.BytesIO(b"x"))
    buffer.seek(0)
    layer = blobs.add_tar(store, buffer.read)
    assert layer == blobs.layer_tar(store, snapshot(store, a="x")).diff_id
