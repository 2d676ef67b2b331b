"""The store: layout, blobs, names, sessions, a full disk, and what a killed process leaves."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cache.digest import ImageId, digest_of
from cache.errors import CacheError, CorruptError, MissingError, SpaceError
from cache.store import Store, default_root

IMAGE, OTHER = ImageId(digest_of(b"image")), ImageId(digest_of(b"other"))


def test_the_root_is_private(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o755)
    with Store(str(tmp_path / "s")) as store:
        assert os.stat(store.root).st_mode & 0o777 == 0o700
        assert os.listdir(store.empty) == []


def test_another_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "version").write_text("99\n")
    with pytest.raises(CacheError, match="has layout '99'"):
        Store(str(tmp_path))


def test_blobs(tmp_path: Path) -> None:
    with Store(str(tmp_path)) as store:
        value = store.put_blob(b"content")
        assert store.put_blob(b"content") == value == digest_of(b"content")
        assert store.has_blob(value)
        assert store.read_blob(value) == b"content"
        with pytest.raises(CorruptError):
            store.read_blob(value, limit=3)
        Path(store.blob_path(value)).write_bytes(b"changed")
        with pytest.raises(CorruptError, match="damaged"):
            store.read_blob(value)
        with pytest.raises(MissingError):
            store.read_blob(digest_of(b"none"))


def test_names(tmp_path: Path) -> None:
    long = "registry.example/" + "a" * 300
    with Store(str(tmp_path)) as store:
        assert store.resolve("x") is None
        for name in ("docker.io/library/x:1", "a%2fb", long):
            store.tag(name, IMAGE)
            assert store.resolve(name) == IMAGE
        store.tag(long, OTHER)
        assert store.resolve(long) == OTHER
        assert store.names() == sorted(["docker.io/library/x:1", "a%2fb", long])
        store.untag(long)
        with pytest.raises(MissingError):
            store.untag(long)
        assert store.resolve(long) is None


def test_a_damaged_name_is_shown_and_does_not_resolve(tmp_path: Path) -> None:
    with Store(str(tmp_path)) as store:
        store.tag("a/b", IMAGE)
        Path(store.path("refs", "a%2fb")).write_text("nonsense")
        assert store.names() == ["a/b"]
        with pytest.raises(CorruptError, match="a/b is damaged"):
            store.resolve("a/b")


def test_the_session_goes_with_the_store(tmp_path: Path) -> None:
    with Store(str(tmp_path)) as store:
        assert os.listdir(store.path("tmp")) == []  # not before it is needed
        made = store.temporary()
        assert not os.path.exists(made)
        Path(made).write_text("x")
        assert os.path.dirname(made) == store.session()
    assert os.listdir(tmp_path / "tmp") == []


def test_a_session_sweeps_those_of_dead_processes(tmp_path: Path) -> None:
    with Store(str(tmp_path)) as store:
        for name in ("dead", "alive"):
            os.makedirs(store.path("tmp", name, "inside"))
        Path(store.path("tmp", "a-file")).touch()
        held = os.open(store.path("tmp", "alive"), os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX)
        store.session()
        assert sorted(os.listdir(store.path("tmp"))) == sorted(["alive", os.path.basename(store.session())])
        os.close(held)


def test_a_full_disk_frees_the_reserve_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync
    failures = [errno.ENOSPC]

    def full(fd: int) -> None:
        if failures:
            raise OSError(failures.pop(), "full")
        fsync(fd)

    with Store(str(tmp_path)) as store:
        monkeypatch.setattr(os, "fsync", full)
        store.put_blob(b"fits into the reserve")
        assert not os.path.exists(store.path("reserve"))
        failures.append(errno.EDQUOT)
        with pytest.raises(SpaceError, match="no space left"):
            store.put_blob(b"does not")
        failures.append(errno.EIO)
        with pytest.raises(CacheError, match="writing"):
            store.put_blob(b"does not")
        assert os.listdir(store.session()) == []
    assert os.path.exists(tmp_path / "reserve")  # for the next time


def test_owners_must_be_kept_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache.owners.keeps_owners", lambda: False)
    with Store(str(tmp_path)) as store:
        store.check_owners()
        store.check_owners()
    monkeypatch.setattr("cache.owners.keeps_owners", lambda: True)
    with Store(str(tmp_path)) as store, pytest.raises(CacheError, match="made with one id"):
        store.check_owners()


def test_orphaned_snapshots_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache.owners.keeps_owners", lambda: False)
    with Store(str(tmp_path)) as store:
        os.mkdir(store.path("snapshots", "orphan"))
        with Store(str(tmp_path)) as other:  # while another process has it open, nothing is removed
            other.check_owners()
        assert os.listdir(store.path("snapshots")) == ["orphan"]
        store.check_owners()
        assert os.listdir(store.path("snapshots")) == []


def test_reset(tmp_path: Path) -> None:
    with Store(str(tmp_path / "s")) as store:
        store.put_blob(b"x")
        with Store(store.root) as other, pytest.raises(CacheError, match="another process uses"):
            other.reset()
        store.reset()
        assert os.listdir(store.root) == []
    assert os.listdir(tmp_path / "s") == []


def test_a_killed_process_leaves_a_store_that_works(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from cache.store import Store; s = Store(sys.argv[1]);"
        "open(s.temporary(), 'w').write('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(os.listdir(tmp_path / "tmp")) == 1
    with Store(str(tmp_path)) as store:
        store.session()
        assert os.listdir(store.path("tmp")) == [os.path.basename(store.session())]


def test_default_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYBUILD_ROOT", "/somewhere")
    assert default_root() == "/somewhere"
    monkeypatch.delenv("PYBUILD_ROOT")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_root() == "/data/pybuild"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/u")
    assert default_root() == "/home/u/.local/share/pybuild"
    monkeypatch.setenv("HOME", "nowhere")
    with pytest.raises(CacheError, match="no place for the store"):
        default_root()
