"""Debug lines: on and off, their form, and where ``--debug`` is found."""

from __future__ import annotations

import re

import pytest

from builder.support import debug


@pytest.fixture(autouse=True)
def off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debug._Switch, "on", False)
    monkeypatch.setenv(debug.VARIABLE, "0")


def test_nothing_is_printed_when_off(capfd: pytest.CaptureFixture[str]) -> None:
    debug.debug("text")
    assert not debug.enabled()
    assert capfd.readouterr().err == ""


def test_each_line_has_the_seconds_since_the_start(capfd: pytest.CaptureFixture[str]) -> None:
    debug.enable()
    debug.debug("mount\n\x1b[1mproc")
    first, second = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"debug: \d+\.\d{3} mount", first)
    assert re.fullmatch(r"debug: \d+\.\d{3} \\x1b\[1mproc", second)


@pytest.mark.parametrize(
    ("argv", "rest", "on"),
    [
        (["."], ["."], False),
        (["--debug", "."], ["."], True),
        (["build", ".", "--debug"], ["build", "."], True),
        (["--root", "x", "--debug", "images"], ["--root", "x", "images"], True),
        (["--debug", "run", "app", "tool", "--debug"], ["run", "app", "tool", "--debug"], True),
        (["run", "app", "tool", "--debug"], ["run", "app", "tool", "--debug"], False),
    ],
)
def test_the_option_is_taken_from_the_command_line(argv: list[str], rest: list[str], on: bool) -> None:
    assert debug.take(argv) == rest
    assert debug.enabled() is on
