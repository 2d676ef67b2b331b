"""Steps that fail, and builds in which one does: exit codes, other stages, full disks, memory."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import PYBUILD, Pybuild, remove_cgroup

pytestmark = pytest.mark.e2e


def test_exit_status(pybuild: Pybuild) -> None:
    """The step, its output, the line, the code; nothing is tagged; the next build works."""
    said = pybuild.refuse(
        "FROM busybox\nRUN echo before\nRUN echo saying; exit 7\n", None, "-t", "failing", "--network=none"
    )
    assert "saying" in said and "exit code: 7" in said and "Dockerfile:3" in said
    assert "failing" not in pybuild("images").out
    again = pybuild(
        "-t", "failing", "--network=none", pybuild.context("FROM busybox\nRUN echo before\nRUN true\n")
    ).ok()
    assert again.cached == 2, "the step that worked is still cached"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("sh -c 'kill -9 $$'; exit $?", "exit code: 137"),
        ("/no/such/program", "127"),
        ("exit 255", "255"),
    ],
)
def test_ways_to_fail(pybuild: Pybuild, command: str, says: str) -> None:
    assert says in pybuild.refuse(f"FROM busybox\nRUN {command}\n", None, "--network=none")


def test_exec_form_of_nothing(pybuild: Pybuild) -> None:
    said = pybuild.refuse('FROM busybox\nRUN ["/no/such/program"]\n', None, "--network=none")
    assert "/no/such/program" in said and "no such file" in said.lower()


def test_workdir_that_is_a_file(pybuild: Pybuild) -> None:
    said = pybuild.refuse("FROM busybox\nRUN echo > /f\nWORKDIR /f/x\n", None, "--network=none")
    assert "/f" in said


def test_output_is_never_clipped(pybuild: Pybuild) -> None:
    """Every line, in order, and bytes that would move the terminal's cursor made harmless."""
    context = pybuild.context("FROM busybox\nRUN seq 1 30000; printf '\\033[2Jescape\\r\\n'\n")
    said = pybuild("--no-cache", "--network=none", context).ok().err
    numbers = [line.split()[-1] for line in said.splitlines() if line.split()[-1].isdigit()]
    assert numbers == [str(n) for n in range(1, 30001)]
    assert "\033[2J" not in said


def test_quiet_prints_only_the_id(pybuild: Pybuild) -> None:
    done = pybuild("-q", "--network=none", pybuild.context("FROM busybox\nRUN echo loud\n")).ok()
    assert done.err == "" and done.out.startswith("sha256:") and len(done.out) == 72


def test_parallel_stages(pybuild: Pybuild) -> None:
    """Independent steps run at once, unless --jobs says otherwise."""
    context = pybuild.context(
        "FROM busybox AS a\nRUN for w in start end; do echo $w; sleep 1; done\n"
        "FROM busybox AS b\nRUN sleep 0.3; for w in start end; do echo $w; sleep 1; done\n"
        "FROM scratch\nCOPY --from=a /etc/group /a\nCOPY --from=b /etc/group /b\n"
    )
    said = pybuild("--no-cache", "--network=none", context).ok().err
    words = [line.split()[-1] for line in said.splitlines() if line.endswith((" start", " end"))]
    assert words == ["start", "start", "end", "end"]
    one = pybuild("--no-cache", "--network=none", "--jobs=1", context).ok().err
    words = [line.split()[-1] for line in one.splitlines() if line.endswith((" start", " end"))]
    assert words == ["start", "end", "start", "end"]


def test_equal_steps_run_once(pybuild: Pybuild) -> None:
    """T101."""
    context = pybuild.context(
        "FROM busybox AS a\nRUN cat /proc/sys/kernel/random/uuid > /u\nFROM busybox AS b\n"
        "RUN cat /proc/sys/kernel/random/uuid > /u\nFROM scratch\nCOPY --from=a /u /a\nCOPY --from=b /u /b\n"
    )
    image = pybuild.export(context, "--no-cache", "--network=none")
    assert image.read("a") == image.read("b")


def test_a_failing_stage_stops_the_others(pybuild: Pybuild) -> None:
    context = pybuild.context(
        "FROM busybox AS a\nENV PYBUILD_TEST=1\nRUN sleep 1000\nFROM busybox AS b\nRUN sleep 0.5; exit 3\n"
        "FROM scratch\nCOPY --from=a / /a\nCOPY --from=b / /b\n"
    )
    started = time.monotonic()
    assert "exit code: 3" in pybuild("--network=none", context).failed().err
    assert time.monotonic() - started < 20


def test_full_disk(pybuild: Pybuild, tmp_path: Path, busybox: Path) -> None:
    """One error that says so; nothing tagged; once there is room the next build works."""
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", mount], check=True)
    try:
        small = Pybuild(mount / "store", tmp_path)
        small("load", busybox).ok()
        said = (
            small(
                "-t",
                "x",
                "--network=none",
                small.context("FROM busybox\nRUN dd if=/dev/zero of=/big bs=1M count=64\n"),
            )
            .failed()
            .err
        )
        assert "No space left" in said
        copy = small.context("FROM scratch\nCOPY big /\n", {"big": b"x" * (64 << 20)})
        assert "space" in small(copy).failed().err
        assert not list((mount / "store/tmp").iterdir())
        assert small("images").out.count("\n") == 2
        small("-t", "x", "--network=none", small.context("FROM busybox\nRUN echo fine\n")).ok()
    finally:
        subprocess.run(["umount", mount], check=True)


def test_out_of_memory_is_named(pybuild: Pybuild) -> None:
    """A step killed by the kernel for its memory says so, where the machine lets us make one."""
    group = Path("/sys/fs/cgroup/memory/pybuild-oom-test")
    if not group.parent.is_dir():
        pytest.fail("this machine has no cgroup v1 memory controller: write the v2 twin of this test")
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(200 << 20))
        context = pybuild.context("FROM busybox\nRUN dd if=/dev/zero of=/dev/null bs=300M count=1\n")
        enter = f"import os; open('{group}/cgroup.procs', 'w').write(str(os.getpid())); os.execv('{PYBUILD}', ['pybuild', '--network=none', '{context}'])"
        done = subprocess.run(
            [sys.executable, "-c", enter],
            env=pybuild.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1 and "memory" in done.stderr, done.stderr
    finally:
        remove_cgroup(group)
