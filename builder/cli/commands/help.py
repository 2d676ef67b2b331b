"""``pybuild help``: list the commands, show the options of one, or explain an error code."""

from __future__ import annotations

import argparse

from builder.cli.command_table import BUILD, NAMES, Invocation, find_command, load_command
from builder.cli.parser import Parser
from builder.cli.terminal import print_result
from builder.errors import UsageError
from grammar.suggest import suggestion


def parser() -> Parser:
    parser = Parser("pybuild help", "Show help for a command, or explain an error code.")
    parser.add_argument(
        "topic", nargs="?", default="", metavar="COMMAND|CODE", help="command, or error code such as E-OPTION"
    )
    return parser


def run(options: argparse.Namespace, invocation: Invocation) -> int:
    topic = options.topic
    command = find_command(topic) if topic else BUILD
    if command is not None:
        print_result(load_command(command).parser().format_help().removesuffix("\n"))
        return 0
    raise UsageError(f"no such command: {topic}{suggestion(topic, NAMES)}")
