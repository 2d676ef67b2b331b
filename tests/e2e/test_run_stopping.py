"""Builds that are stopped: interrupted, killed, without a reader of their output."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from harness import PYBUILD, Pybuild

pytestmark = pytest.mark.e2e


def test_leftover_processes_die_with_the_step(pybuild: Pybuild) -> None:
    """A daemon that holds the output open neither delays the build nor outlives the step."""
    script = (
        "(setsid sh -c 'while :; do sleep 1; echo still; done' &) ; (sleep 1000 &); sleep 1000 & echo done"
    )
    started = time.monotonic()
    context = pybuild.context("FROM busybox\nENV PYBUILD_TEST=1\nCOPY s /s\nRUN sh /s\n", {"s": script})
    pybuild("--no-cache", "--network=none", context).ok()
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(fresh: Pybuild, number: signal.Signals) -> None:
    """One line, exit code 130, nothing tagged, nothing left; the finished step is kept."""
    context = fresh.context(
        "FROM busybox\nENV PYBUILD_TEST=1\nRUN echo one > /one\nRUN echo here; sleep 1000\n"
    )
    build = subprocess.Popen(
        [PYBUILD, "-t", "x", context], env=fresh.environment(), stderr=subprocess.PIPE, text=True
    )
    assert build.stderr is not None
    lines = []
    for line in build.stderr:
        lines.append(line)
        if line.endswith(" here\n"):
            break
    build.send_signal(number)
    rest = build.stderr.read()
    build.stderr.close()
    assert build.wait(timeout=20) == 130
    assert "cancelled" in rest and "Traceback" not in rest
    assert [line.split()[0] for line in fresh("images").out.splitlines()] == ["NAME", "busybox:latest"]
    again = fresh(fresh.context("FROM busybox\nENV PYBUILD_TEST=1\nRUN echo one > /one\n")).ok()
    assert again.executed == 0
    assert not list((fresh.store / "tmp").iterdir())


def test_killed(fresh: Pybuild) -> None:
    """SIGKILL: the step dies with the build, and the next build cleans up and works."""
    context = fresh.context("FROM busybox\nENV PYBUILD_TEST=1\nRUN echo here; sleep 1000\n")
    build = subprocess.Popen([PYBUILD, context], env=fresh.environment(), stderr=subprocess.PIPE, text=True)
    assert build.stderr is not None
    while not build.stderr.readline().endswith(" here\n"):
        pass
    build.kill()
    build.wait(timeout=20)
    build.stderr.close()
    fresh("--network=none", fresh.context("FROM busybox\nRUN echo fine > /f\n")).ok()
    assert not list((fresh.store / "tmp").iterdir())


@pytest.mark.parametrize("progress", ["plain", "rawjson"])
def test_cancelled_while_nobody_reads(fresh: Pybuild, progress: str) -> None:
    """A build whose output is read no more can still be ended."""
    context = fresh.context("FROM busybox\nENV PYBUILD_TEST=1\nRUN yes\n")
    words = [str(PYBUILD), "--network=none", f"--progress={progress}", str(context)]
    build = subprocess.Popen(words, env=fresh.environment(), stderr=subprocess.PIPE)
    assert build.stderr is not None
    while b" y" not in os.read(build.stderr.fileno(), 4096).replace(b'"y', b" y"):
        pass
    time.sleep(0.3)  # until the pipe is full
    build.send_signal(signal.SIGTERM)
    assert build.wait(timeout=5) == 130
    build.stderr.close()


def test_ignored_signal(fresh: Pybuild) -> None:
    """What nohup has ignored stays ignored."""
    context = fresh.context("FROM busybox\nENV PYBUILD_TEST=1\nRUN echo here; sleep 1\n")
    words = ["nohup", str(PYBUILD), "--network=none", str(context)]
    build = subprocess.Popen(
        words, env=fresh.environment(), stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL
    )
    assert build.stderr is not None
    while not build.stderr.readline().endswith(" here\n"):
        pass
    build.send_signal(signal.SIGHUP)
    build.communicate(timeout=20)
    assert build.returncode == 0


def test_launcher_killed(fresh: Pybuild) -> None:
    """Not even a step that does not die with its parent outlives the launcher, and the build ends."""
    context = fresh.context(
        "FROM busybox\nENV PYBUILD_TEST=1\nRUN mkdir /s && cp /bin/busybox /s && chmod 4755 /s/busybox\n"
        'USER 1000\nRUN ["/s/busybox", "sleep", "1000"]\n'  # exec of a setuid program clears the death signal
    )
    build = subprocess.Popen(
        [PYBUILD, "--network=none", context], env=fresh.environment(), stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 20
    while not (steps := _processes_named(b"/s/busybox\0sleep")):
        assert time.monotonic() < end and build.poll() is None
        time.sleep(0.02)
    status = Path(f"/proc/{steps[0]}/status").read_text()
    os.kill(int(status.split("PPid:")[1].split()[0]), signal.SIGKILL)
    _out, said = build.communicate(timeout=20)
    assert build.returncode == 1 and "error: " in said and "Traceback" not in said


def _processes_named(start: bytes) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cmdline").read_bytes().startswith(start):
                found.append(int(entry.name))
        except OSError:
            continue  # it ended
    return found


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(fresh: Pybuild, closed: str) -> None:
    """Files of the store never become standard input or output."""
    context = fresh.context("FROM busybox\nRUN cat; echo fine > /f\n")
    script = f"exec {PYBUILD} -t x --network=none {context} {closed}"
    done = subprocess.run(
        ["sh", "-c", script], env=fresh.environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert fresh("run", "--network=none", "x", "cat", "/f").out == "fine\n"


def test_full_output(pybuild: Pybuild) -> None:
    """What cannot be said on standard output is an error; progress that cannot be shown is none."""
    context = pybuild.context("FROM busybox\nRUN echo fine\n")
    for options, codes in (("-q", {1}), ("", {0})):
        for _ in range(2):  # the second one is a replay
            target = ">/dev/full" if options else "2>/dev/full"
            done = subprocess.run(
                ["sh", "-c", f"exec {PYBUILD} --network=none {options} {context} {target}"],
                env=pybuild.environment(),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode in codes and "Traceback" not in done.stderr, done.stderr
            assert "Exception ignored" not in done.stderr


def test_closed_output(pybuild: Pybuild) -> None:
    """Nobody reads what we print: no traceback, no hang."""
    context = pybuild.context("FROM busybox\nRUN seq 1 100000\n")
    script = f"exec {PYBUILD} --no-cache --network=none {context} 2>&1 | head -1"
    done = subprocess.run(
        ["sh", "-c", script],
        env=pybuild.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.count("\n") == 1 and "Traceback" not in done.stderr
