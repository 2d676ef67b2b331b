"""What a step changed in a plain tree becomes the layer that an overlay would have given."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.rootfs.plain_trees import StageTrees
from cache.fs import is_whiteout, make_whiteout
from cache.layer.pack import walk
from cache.layer.snapshots import commit, draft
from cache.store import Store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: layers have owners")

BELOW = """
mkdir -p dir/sub keep etc && echo one > dir/one && echo two > dir/sub/two && echo same > same
ln -s dir link && chmod 700 keep && echo x > keep/x && mkfifo pipe
ln dir/one dir/other && touch -d '2020-01-01 00:00:00.5' same
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(str(tmp_path / "store")) as made:
        yield made


def layer(store: Store, parents: tuple[str, ...], script: str) -> str:
    """A snapshot of what *script* leaves in an empty folder."""
    with draft(store, parents) as made:
        subprocess.run(["sh", "-ec", script], cwd=made.upper, check=True)
        return commit(made)


def step(store: Store, trees: StageTrees, stack: tuple[str, ...], script: str) -> str:
    """A snapshot of what *script* changes in a tree of *stack*."""
    with trees.taken(stack) as tree, draft(store, stack) as made:
        tree.prepare("")
        subprocess.run(["sh", "-ec", script], cwd=tree.root, check=True)
        tree.collect(made)
        snapshot = commit(made, reduce=True)
        tree.stack = (*stack, snapshot)
        return snapshot


def entries(store: Store, snapshot: str) -> list[str]:
    """A layer as words: kind and path, with the mode of folders and what files hold."""
    root = store.path("snapshots", snapshot)
    out = []
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for entry in walk(fd):
            words = [entry.kind, entry.path]
            if entry.link:
                words.append(f"-> {entry.link}")
            elif stat.S_ISREG(os.lstat(f"{root}/{entry.path}").st_mode):
                words.append(Path(root, entry.path).read_text().strip())
            out.append(" ".join(words))
    finally:
        os.close(fd)
    return out


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("true", []),
        ("echo new > new", ["f new new"]),
        ("echo more >> dir/one", ["d dir", "f dir/one one\nmore"]),
        ("rm -r dir/sub", ["d dir", "w dir/sub"]),
        ("rm -r dir && mkdir dir", ["d dir", "w dir/one", "w dir/other", "w dir/sub"]),
        ("rm -r dir && echo f > dir", ["f dir f"]),
        ("rm link && mkdir link && echo f > link/f", ["d link", "f link/f f"]),
        ("chmod 755 keep", ["d keep"]),
        ("touch keep", []),
        ("chmod 600 same && chmod 644 same", []),
        ("cp -p same s && mv s same", []),
        ("ln same again", ["f again same"]),
        ("touch a && ln a b", ["f a ", "h b -> a"]),
        ("rm pipe; mkfifo dir/pipe", ["d dir", "p dir/pipe", "w pipe"]),
        ("mv dir/sub sub", ["d dir", "w dir/sub", "d sub", "f sub/two two"]),
        # Content alone differs: size and time are those of before.
        ("echo SAME > n; touch -r same n; cat n > same; touch -r n same; rm n", ["f same SAME"]),
    ],
)  # fmt: skip
def test_changes(store: Store, script: str, expected: list[str]) -> None:
    base = layer(store, (), BELOW)
    found = entries(store, step(store, StageTrees(store, False), (base,), script))
    assert sorted(found) == sorted(expected)


def test_names_are_files_of_their_own(store: Store) -> None:
    """A write to one name of a file of a lower layer leaves the other, as overlayfs does, also when the
    link was made by the step before.
    """
    trees = StageTrees(store, False)
    base = layer(store, (), BELOW)
    first = step(store, trees, (base,), "echo a > a && ln a b && echo more >> dir/one")
    second = step(store, trees, (base, first), "cat dir/one dir/other && echo x >> b")
    assert entries(store, second) == ["f b a\nx"]
    assert entries(store, first)[-1] == "f dir/one one\nmore"


def test_what_was_moved_comes_back(store: Store) -> None:
    """Files go to the layer and return for the next step; one that was written to and is as before, too."""
    trees = StageTrees(store, False)
    base = layer(store, (), BELOW)
    first = step(store, trees, (base,), "echo 1 > new; chmod 600 same; chmod 644 same; rm dir/sub/two")
    with trees.taken((base, first)) as tree:
        assert Path(tree.root, "new").read_text() == "1\n"
        assert Path(tree.root, "same").read_text() == "same\n"
        assert not Path(tree.root, "dir/sub/two").exists()
        assert len(trees._idle) == 0


def test_a_failed_step_costs_its_tree(store: Store) -> None:
    trees = StageTrees(store, False)
    base = layer(store, (), BELOW)
    with pytest.raises(ZeroDivisionError), trees.taken((base,)) as tree:
        Path(tree.root, "half").write_text("")
        raise ZeroDivisionError
    assert entries(store, step(store, trees, (base,), "test ! -e half")) == []


def test_kernel_folders_stay_out(store: Store) -> None:
    """What a supervisor fills is in no layer, whether the image has the folder or not."""
    base = layer(store, (), "mkdir proc && echo image > proc/old")
    found = step(
        store, StageTrees(store, True), (base,), "echo 1 > proc/1; echo 2 > sys/2; ls dev; echo 3 > x"
    )
    assert entries(store, found) == ["f x 3"]


def test_layers_above_are_applied(store: Store) -> None:
    """A COPY between two RUNs: files replace folders and folders files, marks remove."""
    trees = StageTrees(store, False)
    base = layer(store, (), BELOW)
    first = step(store, trees, (base,), "true")
    copy = layer(
        store, (base, first), "mkdir same && echo in > same/in && echo file > dir && mknod link c 0 0"
    )
    with trees.taken((base, first, copy)) as tree:
        assert Path(tree.root, "same/in").read_text() == "in\n"
        assert Path(tree.root, "dir").read_text() == "file\n"
        assert not os.path.lexists(f"{tree.root}/link")


def test_a_file_with_holes(store: Store) -> None:
    base = layer(store, (), "truncate -s 300G holes && echo end >> holes")
    started = time.monotonic()
    with StageTrees(store, False).taken((base,)) as tree:
        found = os.stat(f"{tree.root}/holes")
    assert found.st_size == (300 << 30) + 4 and found.st_blocks < 100
    assert time.monotonic() - started < 5


def test_whiteouts_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no device 0:0 can be made, as on an overlay, a socket says that a name is gone."""
    real = os.mknod

    def refuse(path: str, mode: int = 0o600, device: int = 0, *, dir_fd: int | None = None) -> None:
        if stat.S_ISCHR(mode):
            raise PermissionError(1, "Operation not permitted", path)
        real(path, mode, device, dir_fd=dir_fd)

    make_whiteout(str(tmp_path / "device"))
    monkeypatch.setattr(os, "mknod", refuse)
    make_whiteout(str(tmp_path / "socket"))
    monkeypatch.undo()
    os.mknod(tmp_path / "other", stat.S_IFSOCK)
    (tmp_path / "file").touch()
    marks = {name: is_whiteout(os.lstat(tmp_path / name)) for name in os.listdir(tmp_path)}
    assert marks == {"device": True, "socket": True, "other": False, "file": False}
    with pytest.raises(FileExistsError):
        make_whiteout(str(tmp_path / "file"))
