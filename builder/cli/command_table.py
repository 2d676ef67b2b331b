"""The commands: each is a module of ``builder.cli.commands`` that is imported when the command is called.

To add a command, add a row here and the module, with the functions of ``CommandModule``.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from builder.cli.parser import Parser
    from builder.copy.filters import SeenContext


class Invocation(NamedTuple):
    """How pybuild was called: the command line, and what replay saw of the build context."""

    argv: Sequence[str]
    seen: SeenContext | None = None


class CommandModule(Protocol):
    """What a module of ``builder.cli.commands`` defines."""

    def parser(self) -> Parser:
        """Return the parser of the command's options."""

    def run(self, options: argparse.Namespace, invocation: Invocation) -> int:
        """Run the command; return the exit code. Raises BuildError and CacheError."""


class Command(NamedTuple):
    """A row of COMMANDS; ``about`` is shown by ``pybuild --help``."""

    name: str
    module: str
    about: str


COMMANDS = (
    Command("build", "build", "Build an image from a Dockerfile (the command may be left out)"),
    Command("run", "run", "Run a command in a container from an image"),
    Command("images", "images", "List images"),
    Command("inspect", "inspect", "Show details of images as JSON"),
    Command("history", "history", "Show the history of an image"),
    Command("tag", "tag", "Give an image another name"),
    Command("rmi", "rmi", "Remove names of images"),
    Command("pull", "pull", "Pull images from a registry"),
    Command("push", "push", "Push images to a registry"),
    Command("login", "login", "Store credentials for a registry"),
    Command("logout", "logout", "Remove credentials for a registry"),
    Command("save", "save", "Write images to an archive"),
    Command("load", "load", "Load images from an archive or an OCI layout"),
    Command("import", "import_", "Make an image from a tar of a root file system"),
    Command("reset", "reset", "Remove everything in the store"),
    Command("doctor", "doctor", "Show what this machine can do for builds"),
    Command("help", "help", "Show help for a command, or explain an error code"),
)
BUILD = COMMANDS[0]
NAMES = tuple(command.name for command in COMMANDS)


def find_command(name: str) -> Command | None:
    """Return the row of the command *name*, or None."""
    return next((command for command in COMMANDS if command.name == name), None)


def load_command(command: Command) -> CommandModule:
    """Import the module of *command*."""
    return cast(CommandModule, importlib.import_module(f"builder.cli.commands.{command.module}"))
