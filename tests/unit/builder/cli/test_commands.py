"""The table of commands, and the command line without running anything."""

from __future__ import annotations

import pytest

from builder.cli.command_table import BUILD, COMMANDS, Command, load_command
from builder.cli.commands.help import run as show_help
from builder.cli.dispatch import find_called
from builder.errors import UsageError


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command.name))
def test_each_module_has_a_parser_and_a_run(command: Command) -> None:
    module = load_command(command)
    parser = module.parser()
    assert callable(module.run)
    assert parser.prog == ("pybuild" if command is BUILD else f"pybuild {command.name}")


def test_help_lists_the_commands() -> None:
    shown = load_command(BUILD).parser().format_help()
    assert all(f"  {command.name} " in shown and command.about in shown for command in COMMANDS)


@pytest.mark.parametrize(
    ("argv", "name", "arguments"),
    [
        (["."], "build", ["."]),
        (["build", "."], "build", ["."]),
        (["images", "-q"], "images", ["-q"]),
        (["--root", "x", "images"], "images", ["--root", "x"]),
        (["--root=x", "import", "a", "b"], "import", ["--root=x", "a", "b"]),
        (["--root", "x", "."], "build", ["--root", "x", "."]),
    ],
)
def test_the_command_is_found(argv: list[str], name: str, arguments: list[str]) -> None:
    called = find_called(argv)
    assert (called.command.name, called.arguments) == (name, arguments)


def _help(topic: str, capfd: pytest.CaptureFixture[str]) -> str:
    from builder.cli.command_table import Invocation

    options = load_command(find_called(["help"]).command).parser().parse_args([topic] if topic else [])
    assert show_help(options, Invocation(["help", topic])) == 0
    return capfd.readouterr().out


def test_help_shows_commands_and_codes(capfd: pytest.CaptureFixture[str]) -> None:
    assert "commands:" in _help("", capfd)
    assert "usage: pybuild images" in _help("images", capfd)
    assert _help("e-option", capfd).startswith("E-OPTION\n\nCause: ")
    with pytest.raises(UsageError, match="did you mean E-OPTION"):
        _help("E-OPTIONS", capfd)
