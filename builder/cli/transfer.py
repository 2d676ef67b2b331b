"""What ``pybuild pull`` and ``pybuild push`` share: options, and a loop over names with progress."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import NamedTuple

from builder.cli.isolation import open_store
from builder.cli.parser import Parser, add_progress, add_server_options
from builder.cli.terminal import open_progress, print_result
from builder.progress.forms import Progress
from cache.store import Store


class Transferred(NamedTuple):
    """One image: the fields that ``--json`` prints, and the line that is printed otherwise."""

    fields: dict[str, str]
    line: str


def transfer_parser(name: str, about: str) -> Parser:
    """Return the parser of the command *name*."""
    parser = Parser(f"pybuild {name}", about)
    parser.add_argument("name", nargs="+", metavar="NAME")
    parser.add_argument("-q", "--quiet", action="store_true", help="suppress progress output")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_progress(parser)
    add_server_options(parser)
    return parser


def transfer(options: argparse.Namespace, one: Callable[[Store, str, Progress], Transferred]) -> int:
    """Call *one* for each name, and print what it returns."""
    sink = open_progress(options)
    done: list[dict[str, str]] = []
    try:
        with open_store(options) as store:
            for name in options.name:
                transferred = one(store, name, sink)
                done.append(transferred.fields)
                if not options.json:
                    print_result(transferred.line)
            store.sync()
    finally:
        sink.close()
    if options.json:
        print_result(json.dumps(done, indent=2))
    return 0
