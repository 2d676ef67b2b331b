"""A stack of layer directories read as overlayfs would merge it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from cache import fs
from cache.layer.merged_tree import Tree


@pytest.fixture
def whiteout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whiteouts as sockets, which any user can make."""
    mknod = os.mknod

    def refusing(path: str, mode: int, device: int = 0, *, dir_fd: int | None = None) -> None:
        if stat.S_ISCHR(mode):
            raise PermissionError
        mknod(path, mode, device, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mknod", refusing)


@pytest.fixture
def layers(tmp_path: Path, whiteout: None) -> tuple[Path, Path]:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    for path in ("lower/d/sub", "lower/gone", "lower/hidden", "upper/d", "upper/hidden"):
        (tmp_path / path).mkdir(parents=True)
    (lower / "d/both").write_text("lower")
    (lower / "d/low").write_text("low")
    (lower / "hidden/x").touch()
    (upper / "d/both").write_text("upper")
    (upper / "d/up").touch()
    fs.make_whiteout(str(upper / "gone"))
    (upper / "d/link").symlink_to("/d/sub/../low")
    (upper / "loop").symlink_to("loop")
    (upper / "abs").symlink_to("/d")
    return lower, upper


def tree(layers: tuple[Path, Path]) -> Tree:
    lower, upper = layers
    return Tree((str(upper), str(lower)))


def test_names_and_content(layers: tuple[Path, Path]) -> None:
    merged = tree(layers)
    assert merged.root is not None
    assert merged.names(merged.root) == ["abs", "d", "hidden", "loop"]
    d = merged.lookup("d")
    assert d is not None
    assert merged.names(d) == ["both", "link", "low", "sub", "up"]
    both, low = merged.lookup("d/both"), merged.lookup("d/low")
    assert both is not None
    assert low is not None
    assert Path(both.real).read_text() == "upper"
    assert Path(low.real).read_text() == "low"
    assert merged.lookup("gone") is None


def test_opaque_directories_hide(layers: tuple[Path, Path]) -> None:
    try:
        os.setxattr(layers[1] / "hidden", fs.OPAQUE, b"y")
    except OSError as error:
        pytest.skip(f"this file system has no user attributes: {error.strerror}")
    merged = tree(layers)
    hidden = merged.lookup("hidden")
    assert hidden is not None
    assert merged.names(hidden) == []
    assert merged.lookup("hidden/x") is None


@pytest.mark.parametrize(
    ("path", "leads_to", "exists"),
    [
        ("d/link", "d/low", True),
        ("/abs/low", "d/low", True),
        ("../../d/./low", "d/low", True),
        ("abs/new/../newer", "d/newer", False),
        ("d/low/below", "d/low/below", False),
        ("", "", True),
    ],
)
def test_links_resolve_in_the_tree(layers: tuple[Path, Path], path: str, leads_to: str, exists: bool) -> None:
    found, node = tree(layers).resolve(path)
    assert found == leads_to
    assert (node is not None) is exists


def test_links_themselves(layers: tuple[Path, Path]) -> None:
    merged = tree(layers)
    link = merged.lookup("d/link", follow=False)
    assert link is not None
    assert link.is_link
    with pytest.raises(OSError) as caught:
        merged.lookup("loop")
    assert caught.value.errno == errno.ELOOP


def test_resolve_below_takes_a_directory_for_the_root(layers: tuple[Path, Path]) -> None:
    (layers[1] / "d/up-link").symlink_to("/both")
    assert tree(layers).resolve_below("d", "up-link") == "d/both"
    assert tree(layers).resolve_below("d", "../../both") == "d/both"
    assert tree(layers).resolve_below("none", "a/../b") == "none/b"


def test_no_layers() -> None:
    empty = Tree(())
    assert empty.root is None
    assert empty.resolve("/a/../b/") == ("b", None)
    assert empty.lookup("") is None
