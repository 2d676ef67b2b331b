"""``pybuild help``: list the commands, show the options of one, or explain an error code."""

from __future__ import annotations

import argparse
import textwrap

from builder.cli.command_table import BUILD, NAMES, Invocation, find_command, load_command
from builder.cli.error_pages import error_pages
from builder.cli.parser import Parser
from builder.cli.terminal import print_result
from builder.errors import UsageError
from grammar.suggest import suggestion

_WIDTH = 78


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
    pages = error_pages()
    code = topic.upper()
    if code in pages:
        print_result(f"{code}\n\n{_wrapped(pages[code])}")
        return 0
    known = pages if code.startswith("E-") else NAMES
    raise UsageError(
        f"no such command or error code: {topic}{suggestion(topic, known)}",
        "see pybuild help for the commands, docs/errors.md for the error codes",
    )


def _wrapped(page: str) -> str:
    """Return *page* with lines that fit a terminal of 80 columns."""
    paragraphs = page.split("\n\n")
    return "\n\n".join(textwrap.fill(text, _WIDTH, break_on_hyphens=False) for text in paragraphs)
