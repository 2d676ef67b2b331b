"""One store of several builds at once, and stores that are damaged."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from harness import PYBUILD, Pybuild, Tree

pytestmark = pytest.mark.e2e

UUID = "cat /proc/sys/kernel/random/uuid"
SOME: Tree = {"d": {"f": "1", "e": {"x": "2"}, "l": "-> f"}, "other": "y"}


def test_concurrent_equal_builds_run_each_step_once(fresh: Pybuild) -> None:
    context = fresh.context(f"FROM busybox\nRUN sleep 0.5; {UUID} > /u\nRUN sleep 0.2\n")
    args = [PYBUILD, "--network=none", "--progress=plain", str(context)]
    builds = [
        subprocess.Popen(args, env=fresh.environment(), stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    said = [build.communicate(timeout=60)[1] for build in builds]
    assert [build.returncode for build in builds] == [0] * 4, said
    assert sum(text.count(" DONE ") for text in said) == 2
    assert len({line for text in said for line in text.splitlines() if line.startswith("image ")}) == 1


def test_concurrent_different_builds(fresh: Pybuild) -> None:
    contexts = [
        fresh.context(f"FROM busybox\nRUN echo {n} > /f\nCOPY f /g\n", {"f": str(n)}, f"c{n}")
        for n in range(6)
    ]
    builds = [
        subprocess.Popen([PYBUILD, "-t", f"n{n}", context], env=fresh.environment(), stderr=subprocess.PIPE)
        for n, context in enumerate(contexts)
    ]
    said = [build.communicate(timeout=120)[1] for build in builds]
    assert [build.returncode for build in builds] == [0] * 6, said
    for number in range(6):
        out = fresh("run", "--network=none", f"n{number}", "cat", "/f", "/g").ok().out
        assert out == f"{number}\n{number}"


def test_killed_at_random_moments(fresh: Pybuild) -> None:
    """SIGKILL whenever: no later build is wrong, nothing stays."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    moments = random.Random(seed)
    context = fresh.context(
        "FROM busybox\nCOPY d /d\nRUN cp -r /d /e\nRUN rm -r /d\n",
        {"d": {f"f{n}": "x" * 999 for n in range(300)}},
    )
    for _ in range(12):
        build = subprocess.Popen(
            [PYBUILD, "--no-cache", "-t", "x", context], env=fresh.environment(), stderr=subprocess.DEVNULL
        )
        time.sleep(moments.uniform(0.02, 0.5))
        build.send_signal(signal.SIGKILL)
        build.wait()
    image = fresh.export(context)
    assert image.layers[-1].names == [".wh.d"]
    assert sum(path.startswith("e/f") for path in image.tree()) == 300
    assert not list((fresh.store / "tmp").iterdir())


DAMAGES = {
    "garbage": b"garbage" * 999,
    "empty": b"",
    "truncated": b"SQLite format 3\0\x10\0\x01\x01\0",
    "missing": None,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_index(fresh: Pybuild, damage: bytes | None) -> None:
    """The index is only a cache: without it steps run again, and what is built is right."""
    context = fresh.context("FROM busybox\nRUN echo fine > /f\n")
    fresh("--network=none", context).ok()
    for name in ("index.db-wal", "index.db-shm"):
        (fresh.store / name).unlink(missing_ok=True)
    if damage is None:
        (fresh.store / "index.db").unlink()
    else:
        (fresh.store / "index.db").write_bytes(damage)
    done = fresh("-t", "x", "--network=none", context)
    assert "Traceback" not in done.err
    if done.code:
        assert "error: " in done.err and "hint: " in done.err
    else:
        assert fresh("run", "--network=none", "x", "cat", "/f").out == "fine\n"


def test_lost_index_loses_no_image(fresh: Pybuild) -> None:
    """The index can be made anew; images are not in it."""
    fresh("-t", "kept", "--network=none", fresh.context("FROM busybox\nRUN echo fine > /f\n")).ok()
    for path in fresh.store.glob("index.db*"):
        path.unlink()
    assert "kept" in fresh("images").out
    assert fresh("run", "--network=none", "kept", "cat", "/f").out == "fine\n"


@pytest.mark.parametrize(("lost", "executed"), [("snapshots", 2), ("files", 0)])
def test_lost_folders_are_made_again(fresh: Pybuild, lost: str, executed: int) -> None:
    context = fresh.context("FROM scratch\nCOPY d /d\nWORKDIR /w\n", SOME)
    tree = fresh.export(context).tree()
    for path in (fresh.store / lost).iterdir():
        subprocess.run(["rm", "-rf", path], check=True)
    assert fresh("--network=none", context).ok().executed == executed
    assert fresh.export(context).tree() == tree


def test_rubbish_in_the_store(fresh: Pybuild) -> None:
    """What does not belong there is swept or told, and hides nothing else."""
    context = fresh.context("FROM busybox\nRUN echo fine > /f\n")
    fresh("--network=none", "-t", "good", context).ok()
    os.mkfifo(fresh.store / "tmp/fifo")
    (fresh.store / "tmp/link").symlink_to("/nowhere")
    (fresh.store / "tmp/file").write_text("x")
    subprocess.run(["rm", "-rf", fresh.store / "locks"], check=True)
    good = next(p for p in (fresh.store / "refs").iterdir() if "good" in p.read_text())
    (fresh.store / "refs" / ("0" * len(good.name))).write_text("sha256:zz\nbad:latest\n")
    fresh("--no-cache", "--network=none", context).ok()
    listed = fresh("images").ok()
    assert "good" in listed.out and "damaged" in listed.err


def test_corrupt_blob(fresh: Pybuild, tmp_path: Path) -> None:
    """A flipped bit in what an export would hold is found before it leaves."""
    context = fresh.context("FROM busybox\nCOPY f /f\n", {"f": os.urandom(5000)})
    fresh("-t", "x", "-o", f"type=oci,dest={tmp_path}/a.tar", context).ok()
    for path in (fresh.store / "blobs").rglob("*"):
        if path.is_file():
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.chmod(0o600)
            path.write_bytes(data)
    said = fresh("save", "x", "-o", f"{tmp_path}/b.tar").failed().err
    assert "sha256:" in said
    assert not (tmp_path / "b.tar").exists()


def test_store_in_odd_places(busybox: Path, tmp_path: Path) -> None:
    """Names with spaces, colons, commas, backslashes, newlines; relative paths."""
    for name in ("a b", "a:b,c", "a\\b", "a\nb", "ü" * 60):
        odd = Pybuild(tmp_path / name / "store", tmp_path)
        odd("load", busybox).ok()
        odd("-t", "x", "--network=none", odd.context("FROM busybox\nRUN echo 1 > /f\nRUN echo 2 > /g\n")).ok()
    (tmp_path / "here").mkdir()
    relative = Pybuild(Path("here/store"), tmp_path)
    relative("load", busybox).ok()
    relative("--network=none", relative.context("FROM busybox\nRUN true\n")).ok()


def test_half_made_mark_of_owners(fresh: Pybuild) -> None:
    """A store whose maker was killed at the wrong moment is used on."""
    (fresh.store / "owners").write_text("")
    fresh("--network=none", fresh.context("FROM busybox\nRUN true\n")).ok()
    assert (fresh.store / "owners").read_text() == "all\n"
