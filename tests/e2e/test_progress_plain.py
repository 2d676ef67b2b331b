"""Plain progress: what a step writes, as lines that are safe and complete; warnings before an error."""

from __future__ import annotations

import os
import pty
import resource
import subprocess

import pytest
from harness import PYBUILD, Pybuild

pytestmark = pytest.mark.e2e

NONE = "--network=none"
WRITTEN = b"|".join(
    (
        b"plain\ttab\n\nafter",
        b"a\rb\n",
        b"\r10%\r50%\r100%\r\n",
        b"\x1b[31mred\x1b[0m\x1b[K \x1b[1;38;5;8mbold\n",
        b"\x1b[2J\x1b]0;t\x07\n",
        b"two\r\r\n",
        b"\x1b[31",
    )
)
SHOWN = ["plain\ttab", "", "after|a", "b", "|", "10%", "50%", "100%"]


def lines(err: str) -> list[str]:
    """What a step has written, as it is shown."""
    return [
        line.partition(" ")[2].partition(" ")[2] for line in err.split("\n") if line[:4] in ("#3 0", "#3 1")
    ]


@pytest.mark.parametrize("chunk", [1, 3, 4096])
def test_lines_of_output(pybuild: Pybuild, chunk: int) -> None:
    """A carriage return ends a line, colours are dropped, what else acts on a terminal is spelled out."""
    text = f"FROM busybox\nCOPY w /w\nRUN dd if=/w bs={chunk} 2>/dev/null; sleep 0.1; printf 31m\n"
    done = pybuild(NONE, "--no-cache", "--progress=plain", pybuild.context(text, {"w": WRITTEN})).ok()
    assert lines(done.err) == [*SHOWN, "|red bold", "|\\x1b[2J\\x1b]0;t\\x07", "|two", "|"]


def test_colours_on_a_terminal(pybuild: Pybuild) -> None:
    """They are kept there, to the end of their line; the cursor stays pybuild's own."""
    text = "FROM busybox\nCOPY w /w\nRUN cat /w\n"
    context = pybuild.context(text, {"w": WRITTEN})
    main, side = pty.openpty()
    with subprocess.Popen(
        [PYBUILD, NONE, "--no-cache", context], env=pybuild.environment(), stderr=side
    ) as build:
        os.close(side)
        heard = b""
        try:
            while data := os.read(main, 65536):
                heard += data
        except OSError:
            pass
        assert build.wait(20) == 0
    os.close(main)
    assert b"|\x1b[31mred\x1b[0m \x1b[1;38;5;8mbold\x1b[0m\r\n" in heard
    assert b"\\x1b[2J" in heard and b"\x1b[2J" not in heard and b"\x1b]" not in heard


def test_many_lines_are_cheap(pybuild: Pybuild) -> None:
    """200,000 short lines cost plain progress no more than the JSON one, or a moment."""
    context = pybuild.context("FROM busybox\nRUN seq 1 200000\n")
    spent = {}
    for form in ("rawjson", "plain"):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = pybuild(NONE, "--no-cache", f"--progress={form}", context).ok()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent[form] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert [line.split()[-1] for line in done.err.split("\n") if line.startswith("#2 0.")] == [
        str(number) for number in range(1, 200001)
    ]
    assert spent["plain"] < spent["rawjson"] + 0.4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("COPY nope /\n", "not found"),
        ("RUN exit 3\n", "exit code: 3"),
        ("FROM nothing:none\n", "nothing"),
        ("COPY f /f\nEXPOSE x\n", "EXPOSE"),
    ],
)
def test_warnings_before_an_error(pybuild: Pybuild, text: str, says: str) -> None:
    """What the checks found is told of a build that fails, too, and before what it failed at."""
    context = pybuild.context(f"FROM busybox\nMAINTAINER me\n{text}", {"f": "1"})
    done = pybuild(NONE, "--pull=never", context).failed()
    warned, _, failed = done.err.partition("1 warning found; docs/rules explains each\n")
    assert warned.count("WARNING: MaintainerDeprecated") == 1 and says in failed and "WARNING" not in failed
    assert "WARNING" not in pybuild(NONE, "--pull=never", "-q", context).failed().err


def test_warnings_that_are_the_error(pybuild: Pybuild) -> None:
    """Told once."""
    said = pybuild.refuse("#check=error=true\nFROM busybox\nMAINTAINER me\n")
    assert said.count("WARNING: MaintainerDeprecated") == 1 and "lint violation" in said
