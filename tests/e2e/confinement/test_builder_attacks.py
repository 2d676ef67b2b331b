"""Processes, output, signals and odd images with which a step attacks its builder (RT-29 to RT-32)."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from forgery import forged
from harness import Pybuild
from modes import EVERY_MODE, NONE, Mode, measured, printed
from rootless import command

pytestmark = pytest.mark.e2e


def test_RT_29_many_processes(mode: Mode) -> None:
    """A step ends with its first process, however many there are and however they cling to life."""
    script = (
        "trap '' TERM HUP INT; n=0; while [ $n -lt 300 ]; do (trap '' TERM; exec setsid sleep 1000) & n=$((n+1)); done; "
        "(setsid sh -c 'while :; do echo still; sleep 0.01; done' &); echo last"
    )
    context = mode.pybuild.context("FROM busybox\nENV PYBUILD_TEST=1\nCOPY s /s\nRUN sh /s\n", {"s": script})
    started = time.monotonic()
    done = mode.pybuild(NONE, "--no-cache", context).ok()
    assert "last" in printed(done.err) and time.monotonic() - started < 20


def test_RT_29_fork_bomb(pybuild: Pybuild) -> None:
    """With --pids-limit it fails in the step, and nowhere else."""
    bomb = "b() { b | b & }; b; sleep 2; echo over"
    context = pybuild.context("FROM busybox\nENV PYBUILD_TEST=1\nCOPY s /s\nRUN sh /s\n", {"s": bomb})
    started = time.monotonic()
    done = pybuild(NONE, "--no-cache", "--pids-limit=64", context)
    assert done.code in (0, 1) and "Traceback" not in done.err and time.monotonic() - started < 30
    assert "can't fork" in done.err
    twin = pybuild.context("FROM busybox\nRUN sleep 0 & sleep 0 & wait; echo over\n")
    assert printed(pybuild(NONE, "--no-cache", "--pids-limit=64", twin).ok().err) == ["over"]


CONTROLS = (
    b"\x1b]0;title\x07", b"\x1b]52;c;cGF3bmVk\x07", b"\x1bP$q\x1b\\", b"\x1b[2J\x1b[H", b"fake\rline", b"\x9b2J",
    "\x9b2J".encode(), b"\x1b[6n", b"\x08\x08\x7f", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\0nul", b"\x1bc", b"\x0e",
)  # fmt: skip


def test_RT_30_output_that_drives_the_terminal(pybuild: Pybuild) -> None:
    """Bytes that a terminal would act upon are spelled out; those of text are as they were."""
    payload = b"".join(b"<" + control + b">\n" for control in CONTROLS) + "twin: grün ✓\n".encode()
    context = pybuild.context(
        "FROM busybox\nCOPY bytes /bytes\nRUN cat /bytes; cat /bytes >&2\n", {"bytes": payload}
    )
    words, env = command(pybuild, NONE, "--no-cache", "--progress=plain", context)
    done = subprocess.run(words, env=env, capture_output=True, timeout=60, check=True)
    text = done.stderr.decode("utf-8")  # strictly
    assert text.count("twin: grün ✓") == 2 and text.count(">\n") >= 2 * len(CONTROLS) - 2
    acting = "".join(map(chr, [*range(9), *range(11, 32), *range(127, 160)]))
    assert sorted(set(acting) & set(text)) == []
    failing = pybuild.context("FROM busybox\nCOPY bytes /bytes\nRUN cat /bytes; exit 3\n", {"bytes": payload})
    said = pybuild(NONE, "--no-cache", failing).failed().err
    assert sorted(set(acting) & set(said)) == []


def test_RT_30_on_a_terminal(pybuild: Pybuild) -> None:
    """The same where pybuild itself moves the cursor."""
    payload = b"".join(b"<" + control + b">\n" for control in CONTROLS)
    context = pybuild.context(
        "FROM busybox\nCOPY bytes /bytes\nRUN cat /bytes; echo END\n", {"bytes": payload}
    )
    words, env = command(pybuild, NONE, "--no-cache", "--progress=tty", context)
    controller, terminal = pty.openpty()
    with subprocess.Popen(words, env={**env, "TERM": "xterm"}, stderr=terminal) as build:
        os.close(terminal)
        heard = b""
        with contextlib.suppress(OSError):
            while data := os.read(controller, 65536):
                heard += data
        assert build.wait(60) == 0
    os.close(controller)
    assert b"END" in heard
    assert not [
        control
        for control in (
            b"\x1b]",
            b"\x1bP",
            b"\x1b[2J",
            b"\x1b[6n",
            b"\x1bc",
            b"\x9b2J",
            "\x9b".encode(),
            b"\x0e",
            b"\0",
        )
        if control in heard
    ]


def test_RT_30_one_long_line(pybuild: Pybuild) -> None:
    """64 MiB without an end of line pass through a bounded memory."""
    context = pybuild.context("FROM busybox\nRUN head -c 67108864 /dev/zero | tr '\\0' x; echo; echo END\n")
    code, said, seconds, memory = measured(pybuild, NONE, "--no-cache", "--progress=plain", context)
    assert code == 0 and said.count("x") >= 1 << 26 and printed(said)[-1] == "END"
    assert memory < 256 << 20 and seconds < 30


@EVERY_MODE
def test_RT_31_signals_stay_inside(mode: Mode) -> None:
    """A step can kill and stop its own processes, and nobody else's, of the same user's either."""
    sleeper = ["sleep", "100"]
    if mode.user is not None:
        sleeper = [
            "setpriv",
            f"--reuid={mode.user.uid}",
            f"--regid={mode.user.gid}",
            "--clear-groups",
            *sleeper,
        ]
    with subprocess.Popen(sleeper) as canary:
        script = (
            "sleep 100 & kill -STOP 1; kill -KILL 1; kill -TERM 0; kill -KILL -1; "
            "for p in $(seq 2 400); do kill -KILL $p 2>/dev/null; done; wait; echo alive"
        )
        text = f"FROM busybox\nENV PYBUILD_TEST=1\nRUN trap '' TERM; {script}\nRUN echo next\n"
        done = mode.pybuild(NONE, "--no-cache", mode.pybuild.context(text)).ok()
        assert printed(done.err) == ["alive", "next"]
        assert canary.poll() is None
        canary.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_RT_31_step_that_does_not_want_to_end(mode: Mode, number: signal.Signals) -> None:
    """A step that ignores every signal is ended with the build, soon."""
    script = "trap '' INT TERM HUP QUIT PIPE ALRM USR1; setsid sleep 1000 & echo here; while :; do sleep 1000; done"
    context = mode.pybuild.context("FROM busybox\nENV PYBUILD_TEST=1\nCOPY s /s\nRUN sh /s\n", {"s": script})
    words, env = command(mode.pybuild, NONE, "--no-cache", context)
    with subprocess.Popen(words, env=env, cwd=mode.pybuild.work, stderr=subprocess.PIPE, text=True) as build:
        assert build.stderr is not None
        while not (line := build.stderr.readline()).endswith(" here\n"):
            assert line, "it ended"
        started = time.monotonic()
        build.send_signal(number)
        said = build.stderr.read()
        assert build.wait(20) == 130 and "Traceback" not in said
    assert time.monotonic() - started < 5


def test_RT_32_image_without_layers(mode: Mode) -> None:
    """CVE-2026-24054: nothing to run in is an error, nothing of the store is run in; files can be added."""
    mode.pybuild(NONE, "-t", "empty", mode.pybuild.context("FROM scratch\nLABEL a=b\n")).ok()
    said = mode.pybuild.refuse('FROM empty\nRUN ["/bin/true"]\n', None, NONE)
    assert "/bin/true" in said and "o such file" in said
    tree = mode.pybuild.build("FROM empty\nCOPY a /a\n", {"a": "1"}, NONE).tree()
    assert tree == {"a": "1"}


@pytest.mark.parametrize("case", ["more", "fewer", "other", "none", "twin"])
def test_RT_32_layers_that_do_not_add_up(fresh: Pybuild, case: str, busybox: Path) -> None:
    """An image whose config and layers disagree is not taken in."""

    def change(config: dict[str, Any]) -> None:
        known: list[str] = config["rootfs"]["diff_ids"]
        config["rootfs"]["diff_ids"] = {
            "more": [*known, *known], "fewer": known[:-1], "other": ["sha256:" + "0" * 64], "twin": known, "none": None,
        }[case]  # fmt: skip

    (fresh.work / "odd.tar").write_bytes(forged(busybox.read_bytes(), change, "odd:latest"))
    done = fresh("load", fresh.work / "odd.tar")
    if case == "twin":
        done.ok()
        fresh(NONE, fresh.context("FROM odd\nRUN true\n")).ok()
    else:
        done.failed()
        assert "odd" not in fresh("images").out


def test_RT_32_other_platform(pybuild: Pybuild, busybox: Path) -> None:
    """Programs for another machine are not run, which is said."""

    def change(config: dict[str, Any]) -> None:
        config["architecture"] = "s390x"

    (pybuild.work / "other.tar").write_bytes(forged(busybox.read_bytes(), change, "other:latest"))
    loaded = pybuild("load", pybuild.work / "other.tar")
    assert loaded.code in (0, 1)
    done = pybuild(NONE, pybuild.context("FROM other\nRUN true\n"))
    assert done.code == 1 or "s390x" in done.err, done.err
