"""Options of the sandbox, limits, and Landlock."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import PROCESS, PYBUILD, Pybuild, remove_cgroup

from cache.layer.landlock import confined

pytestmark = pytest.mark.e2e

NONE = "--network=none"


def step(pybuild: Pybuild, command: str, *options: str) -> str:
    """What a RUN step prints."""
    done = pybuild(NONE, "--no-cache", *options, pybuild.context(f"FROM busybox\nRUN {command}\n")).ok()
    return "\n".join(re.findall(r"^#\d+ \d+\.\d+ (.*)$", done.err, re.MULTILINE))


# -- options -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "command", "expected"),
    [
        ("--add-host=db:10.0.0.7 --add-host=six=::1", "tail -2 /etc/hosts", "10.0.0.7\tdb\n::1\tsix"),
        ("--dns=10.1.2.3 --dns=10.1.2.4", "cat /etc/resolv.conf", "nameserver 10.1.2.3\nnameserver 10.1.2.4"),
        ("--shm-size=10m", "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2", "10240"),
        ("--ulimit=nofile=100:200", "ulimit -Sn; ulimit -Hn", "100\n200"),
        ("--ulimit=core=-1", "ulimit -c", "unlimited"),
        ("--cap-drop=ALL", "grep CapEff /proc/self/status", "CapEff:\t0000000000000000"),
        ("--cap-drop=all --cap-add=CAP_CHOWN", "grep CapBnd /proc/self/status", "CapBnd:\t0000000000000001"),
        ("--cap-add=net_admin", "ip link set lo mtu 1000 && cat /sys/class/net/lo/mtu", "1000"),
        ("--security-opt=no-new-privileges", "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1"),
        ("--security-opt=seccomp=unconfined", "grep Seccomp: /proc/self/status", "Seccomp:\t0"),
        ("--device=/dev/fuse", "ls /dev/fuse && exec 3<>/dev/fuse && echo open", "/dev/fuse\nopen"),
        ("--device=/dev/null:/dev/a/b/c --device=/dev/zero:/dev/a/d", "cd /dev/a && echo b/* d", "b/c d"),
        ("--device=/dev/null:/dev/other", "echo x > /dev/other && ls -l /dev/other | cut -c1-10", "crw-rw-rw-"),
    ],
)  # fmt: skip
def test_option(pybuild: Pybuild, options: str, command: str, expected: str) -> None:
    assert step(pybuild, command, *options.split()) == expected


def test_system_paths(pybuild: Pybuild) -> None:
    """What is hidden shows when the command line says so, and is not writable for that."""
    count = "wc -l < /proc/interrupts"
    assert step(pybuild, count) == "0"
    assert int(step(pybuild, count, "--security-opt=systempaths=unconfined")) > 1


NO_SENSE = """
    --memory=1m --memory=x --cpus=0 --cpus=-1 --cpuset-cpus=a --pids-limit=0 --pids-limit=1.5 --shm-size=1q
    --cap-add=nothing --cap-drop=sys --security-opt=seccomp=/p.json --security-opt=x --device=/etc/passwd
    --device=/dev/nothing --device=/dev/null:/etc/x --device=/dev/null:/dev/x:r --add-host=x --add-host=x:y
    --add-host=../x:1.1.1.1 --dns=x --ulimit=x=1 --ulimit=nofile --ulimit=nofile=9:1 --ulimit=nofile=x
    --cgroup-parent=../x --cgroup-parent=a/../b --ulimit=nofile=1_0 --ulimit=nofile=٣ --shm-size=99999999999999t
    --device=/dev/null:/dev/pts --device=/dev/null:/dev/shm/x --device=/dev/null:/dev/../dev/fd
"""
WITH_BLANKS = ("--ulimit=nofile= 1", "--dns=fe80::1%\nsearch evil", "--add-host=a:fe80::1%\n1.1.1.1 b")


@pytest.mark.parametrize("option", [*NO_SENSE.split(), *WITH_BLANKS, f"--device=/dev/null:/dev/{'x' * 256}"])
def test_option_that_makes_no_sense(pybuild: Pybuild, option: str) -> None:
    pybuild(option, pybuild.context("FROM busybox\nRUN true\n")).failed(2)


def test_devices_at_one_place(pybuild: Pybuild) -> None:
    context = pybuild.context("FROM busybox\nRUN true\n")
    for one, other in (("/dev/a", "/dev/a"), ("/dev/a", "/dev/a/b"), ("/dev/a/b", "/dev/a")):
        both = f"--device=/dev/null:{one}", f"--device=/dev/zero:{other}"
        assert "another device" in pybuild(*both, context).failed(2).err


def test_options_and_the_cache(pybuild: Pybuild) -> None:
    """T98: what a command can see of them is part of its key; addresses and limits are not."""
    context = pybuild.context("FROM busybox\nRUN echo keys\n")
    pybuild(NONE, "--add-host=a:1.1.1.1", "--no-cache", context).ok()
    same = ("--add-host=a:2.2.2.2", "--dns=1.1.1.1", "--memory=1g", "--cpus=1", "--pids-limit=100")
    assert pybuild(NONE, *same, context).ok().executed == 0
    for other in ("--add-host=b:1.1.1.1", "--ulimit=nofile=100", "--cap-drop=ALL", "--shm-size=1m"):
        assert pybuild(NONE, "--add-host=a:1.1.1.1", other, context).ok().executed == 1


def test_run_takes_them_too(pybuild: Pybuild) -> None:
    done = pybuild(
        "run", NONE, "--cap-drop=ALL", "--memory=100m", "busybox", "grep", "CapEff", "/proc/self/status"
    )
    assert done.ok().out == "CapEff:\t0000000000000000\n"


FILL = """awk 'BEGIN {{ s = "x"; while (length(s) < {}000000) s = s s; print length(s) }}'"""
MANY = "sh -c 'for i in 1 2 3 4 5 6 7 8 9; do sleep 1 & done; wait; echo all'; true"


# -- limits --------------------------------------------------------------------------------


def test_memory(pybuild: Pybuild) -> None:
    """The kernel ends what takes too much, and the error says which limit it was; less is fine."""
    text = f"FROM busybox\nRUN {FILL.format(60)}\n"
    said = pybuild(NONE, "--no-cache", "--memory=20m", pybuild.context(text)).failed().err
    assert "memory limit of 20 MiB (--memory) was used up" in said and "raise the limit" in said
    done = pybuild(NONE, "--no-cache", "--memory=200m", pybuild.context(text)).ok()
    assert re.search(r"DONE .* \(CPU \d+\.\ds, memory \d{2,3} MB\)", done.err)


def test_processes(pybuild: Pybuild) -> None:
    assert "can't fork" in step(pybuild, MANY, "--pids-limit=5")
    assert step(pybuild, MANY, "--pids-limit=50") == "all"


def test_processors(pybuild: Pybuild) -> None:
    loop = "i=0; while [ $i -lt 150000 ]; do i=$((i+1)); done; times | head -1"
    started = time.monotonic()
    step(pybuild, loop)
    free = time.monotonic() - started
    started = time.monotonic()
    step(pybuild, loop, "--cpus=0.1")
    assert time.monotonic() - started > 3 * free
    assert step(pybuild, "grep Cpus_allowed_list /proc/self/status", "--cpuset-cpus=0").endswith("\t0")


def test_limit_that_cannot_be_set(pybuild: Pybuild) -> None:
    """It is refused where it was asked for, and says on what."""
    said = (
        pybuild(NONE, "--no-cache", "--cpuset-cpus=900", pybuild.context("FROM busybox\nRUN true\n"))
        .failed()
        .err
    )
    assert "cpuset" in said and "900" in said


def test_cgroup_parent(pybuild: Pybuild) -> None:
    """A group that somebody has limited limits what is put below it."""
    parent = next(
        place / f"pybt-{PROCESS}"
        for place in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))
        if (place / "cgroup.procs").exists()
    )
    parent.mkdir()
    try:
        (parent / "pids.max").write_text("5")
        assert "can't fork" in step(pybuild, MANY, f"--cgroup-parent={parent.name}")
    finally:
        remove_cgroup(parent)
        for place in Path("/sys/fs/cgroup").glob(f"*/{parent.name}"):
            remove_cgroup(place)


def test_metadata_file(pybuild: Pybuild) -> None:
    """What came out, and what each step took; written again by a build that was cached."""
    context = pybuild.context(f"FROM busybox\nRUN {FILL.format(20)}\n")
    path = pybuild.work / "metadata.json"
    for cached in (False, True):
        image = pybuild(NONE, "-q", "-t", "meta", "--metadata-file", path, context).ok().out.strip()
        value = json.loads(path.read_text())
        assert value["containerimage.config.digest"] == image
        assert value["image.name"] == "docker.io/library/meta:latest"
        last = value["pybuild.steps"][-1]
        assert last["name"].startswith("[2/2] RUN awk") and last["cached"] is cached
        if not cached:
            assert last["peak_memory_bytes"] > 10e6 and last["cpu_seconds"] >= 0 and last["seconds"] > 0


def test_killed_build_is_swept(fresh: Pybuild) -> None:
    """What the kill of builder and launcher left of cgroups and networks, the next build removes: the
    census after each test sees that.
    """
    context = fresh.context("FROM busybox\nENV PYBUILD_TEST=1\nRUN echo here; sleep 1000\n")
    build = subprocess.Popen(
        [PYBUILD, context], env=fresh.environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert build.stderr is not None
    while not build.stderr.readline().endswith(" here\n"):
        pass
    store = f"PYBUILD_ROOT={fresh.store}\0".encode()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it ended, or is the kernel's
            if entry.name.isdigit() and store in (entry / "environ").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
    build.communicate(timeout=20)
    fresh("--network=default", fresh.context("FROM busybox\nRUN echo fine > /f\n")).ok()


# -- Landlock ------------------------------------------------------------------------------


def test_landlock(tmp_path: Path) -> None:
    """A write outside of the folder is refused by the kernel; inside, and outside of it all, it is not."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
    (outside / "old").write_text("old")

    def tries() -> list[str]:
        said = []
        for name, attempt in ATTEMPTS.items():
            try:
                attempt(outside)
                said.append(name)
            except PermissionError:
                pass
            except OSError as error:
                assert error.errno == 18, error  # EXDEV: a link would get more rights
        (inside / "new").write_text((outside / "old").read_text())
        return said

    assert confined([str(inside)], tries) == []
    assert (outside / "old").read_text() == "old" and os.listdir(outside) == ["old"]
    assert (inside / "new").read_text() == "old"
    (outside / "new").write_text("this thread may")
    with pytest.raises(ZeroDivisionError):
        confined([str(inside)], lambda: 1 // 0)


def _touch(folder: Path) -> None:
    if subprocess.run(["touch", folder / "t"], check=False, stderr=subprocess.DEVNULL).returncode:
        raise PermissionError


ATTEMPTS: dict[str, Callable[[Path], object]] = {
    "create": lambda folder: (folder / "x").write_text("x"),
    "open to write": lambda folder: (folder / "old").write_text("x"),
    "append": lambda folder: (folder / "old").open("a"),
    "truncate": lambda folder: os.truncate(folder / "old", 0),
    "unlink": lambda folder: (folder / "old").unlink(),
    "mkdir": lambda folder: (folder / "d").mkdir(),
    "symlink": lambda folder: (folder / "l").symlink_to("x"),
    "link": lambda folder: (folder / "h").hardlink_to(folder.parent / "in"),
    "rename": lambda folder: (folder / "old").rename(folder / "other"),
    "mkfifo": lambda folder: os.mkfifo(folder / "p"),
    "mknod": lambda folder: os.mknod(folder / "n", 0o600 | 0o020000, 0),
    "a program": _touch,
}
