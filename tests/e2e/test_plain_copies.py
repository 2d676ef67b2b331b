"""Steps on plain copies of their roots, where overlayfs is unavailable."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Pybuild, Tree

pytestmark = pytest.mark.e2e

NONE = "--network=none"


@pytest.fixture
def odd_store(tmp_path: Path, busybox: Path) -> Iterator[Pybuild]:
    """A store on a file system that can be neither mounted with mapped ids nor the upper of an overlay."""
    behind, before = tmp_path / "behind", tmp_path / "before"
    behind.mkdir()
    before.mkdir()
    subprocess.run(["bindfs", "-o", "dev,suid,allow_other", behind, before], check=True)
    made = Pybuild(before / "store", tmp_path)
    try:
        made("load", busybox).ok()
        yield made
    finally:
        subprocess.run(["umount", before], check=True)


def test_without_overlayfs(odd_store: Pybuild, pybuild: Pybuild) -> None:
    """Steps have copies then, and the image is the same."""
    text = (
        "FROM busybox\nRUN echo 1 > /a && rm /bin/ls && mkdir /q && chmod 700 /var\n"
        "RUN --mount=target=/m/n --mount=type=cache,target=/c --mount=type=bind,from=busybox,source=/etc,target=/e,rw "
        "cat /m/n/f > /b && touch /c/x /e/x && rm -r /q && echo x > /bin/ls && touch -d @1 /b /bin/ls\n"
    )
    files: Tree = {"f": "1"}
    images = [made.export(made.context(text, files), NONE, "--no-cache") for made in (odd_store, pybuild)]
    assert images[0].tree() == images[1].tree()
    assert [layer.names for layer in images[0].layers] == [layer.names for layer in images[1].layers]
    rows = json.loads(odd_store("doctor", "--json").out)
    assert {row["name"]: row["works"] for row in rows}["overlayfs"] == "limited"


def test_RT_25_copies_follow_no_link(odd_store: Pybuild, pybuild: Pybuild, tmp_path: Path) -> None:
    """SRC-05: where steps have copies, links of the image and of steps make and remove nothing outside."""
    outside = tmp_path / "outside"
    for path in (outside / "empty", outside / "n"):
        path.mkdir(parents=True)
    before = sorted(outside.iterdir())
    link = f"ln -s {outside}"
    bound = "RUN --mount=type=tmpfs,target=/m/n true\n"
    texts = [
        f"FROM busybox\nRUN {link} /m\n{bound}",  # made by an image
        f"FROM busybox\nRUN --mount=type=tmpfs,target=/m/n mv /m /gone; {link} /m; true\n",  # by the step itself
        f"FROM busybox\nRUN rm -r /etc && {link} /etc\nRUN true\n",
    ]
    for text in texts:
        images = [made(NONE, "--no-cache", made.context(text)) for made in (odd_store, pybuild)]
        assert images[0].code == images[1].code, images[0].err + images[1].err
        assert sorted(outside.iterdir()) == before
    assert odd_store(NONE, odd_store.context(texts[1])).ok()


def test_hard_links_in_copies(odd_store: Pybuild, pybuild: Pybuild) -> None:
    """As overlayfs does: what writes to one name of a file of the image leaves its other names alone."""
    text = "FROM busybox\nRUN echo 1 > /a && ln /a /b && ln /a /c\nRUN echo 2 >> /a && chmod 600 /b\n"
    images = [made.export(made.context(text), NONE, "--no-cache") for made in (odd_store, pybuild)]
    assert images[0].tree() == images[1].tree()
    assert images[0].layers[-1].names == images[1].layers[-1].names == ["a", "b"]
