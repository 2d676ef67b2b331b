"""What a step did to a root, packed as a layer and applied to what was below, is that root again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from harness import Pybuild
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oci import Image, read_image

pytestmark = pytest.mark.e2e

PATHS = st.sampled_from(["/t/a", "/t/b", "/t/a/c", "/t/b/c", "/t/a/c/d", "/t/e"])
COMMANDS = st.one_of(
    st.builds("mkdir -p {}".format, PATHS),
    st.builds("rm -rf {}".format, PATHS),
    st.builds("echo {1} > {0}".format, PATHS, st.integers(0, 9)),
    st.builds("ln -sfn {1} {0}".format, PATHS, PATHS),
    st.builds("ln -f {1} {0}".format, PATHS, PATHS),
    st.builds("mv {1} {0}".format, PATHS, PATHS),
    st.builds("chmod {1} {0}".format, PATHS, st.sampled_from(["700", "755", "4755", "1777"])),
    st.builds("chown -h {1} {0}".format, PATHS, st.sampled_from(["1:2", "0:0"])),
    st.builds("touch -h -d @{1} {0}".format, PATHS, st.integers(1, 10**9)),
    # Emptied and made anew: what overlayfs calls an opaque directory.
    st.builds("rm -rf {0}; mkdir {0}; echo new > {0}/n".format, PATHS),
)
STEPS = st.lists(st.lists(COMMANDS, min_size=1, max_size=6), min_size=1, max_size=3)

# Each path with type, mode, owner, time, link target and content, as the step's own root shows it.
LOOK = (
    "cd /; find t | sort | while read p; do stat -c '%n|%F|%a|%u:%g|%Y' \"$p\"; "
    'if [ -L "$p" ]; then readlink "$p"; elif [ -f "$p" ]; then cat "$p"; fi; done'
)


def layered(image: Image) -> str:
    """The same of an image's layers, applied by nothing of pybuild's."""
    kinds = {
        "f": "regular file",
        "e": "regular empty file",
        "d": "directory",
        "l": "symbolic link",
        "p": "fifo",
    }
    out = []
    root = image.root()
    for path in sorted(path for path in root if path == "t" or path.startswith("t/")):
        entry, data = root[path]
        if entry.islnk():
            entry, data = root[entry.linkname]
        link = entry.linkname
        kind = (
            "d"
            if entry.isdir()
            else "l"
            if entry.issym()
            else "p"
            if entry.isfifo()
            else "f"
            if data
            else "e"
        )
        out.append(
            f"{path}|{kinds[kind]}|{entry.mode & 0o7777:o}|{entry.uid}:{entry.gid}|{int(entry.mtime)}\n"
        )
        out.append(f"{link}\n" if kind == "l" else data.decode())
    return "".join(out)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(STEPS)
def test_layers_give_the_root(
    busybox: Path, tmp_path_factory: pytest.TempPathFactory, steps: list[list[str]]
) -> None:
    """Whiteouts, opaque directories, links and all (T76 to T86)."""
    work = tmp_path_factory.mktemp("diff")
    pybuild = Pybuild(tmp_path_factory.getbasetemp() / "diff-store", work)
    if not pybuild.store.exists():
        pybuild("load", busybox).ok()
    lines = "".join(f"RUN ({'; '.join(commands)}) 2>/dev/null; true\n" for commands in steps)
    archive = work / "x.tar"
    context = pybuild.context(f"FROM busybox\nRUN mkdir /t\n{lines}")
    pybuild("-t", "x", "-o", f"type=oci,dest={archive}", "--network=none", context).ok()
    shown = pybuild("run", "--network=none", "x", "sh", "-c", LOOK).ok().out
    assert layered(read_image(archive)) == shown
    # And unpacked again, from the archive alone.
    other = Pybuild(work / "other", work)
    other("load", archive).ok()
    image = other("images").ok().out.split("\n")[1].split()
    assert other("run", "--network=none", image[0], "sh", "-c", LOOK).ok().out == shown
    subprocess.run(["rm", "-rf", "--one-file-system", work], check=True)
