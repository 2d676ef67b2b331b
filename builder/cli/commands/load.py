"""``pybuild load``: load images from an archive or an OCI layout."""

from __future__ import annotations

import argparse
import os
import sys

from builder.cli.command_table import Invocation
from builder.cli.input import open_input
from builder.cli.isolation import enter_isolation, open_store
from builder.cli.parser import Parser
from builder.cli.terminal import metered, print_result
from builder.errors import UsageError


def parser() -> Parser:
    parser = Parser("pybuild load", "Load images from an OCI or docker archive.")
    parser.add_argument(
        "file",
        nargs="?",
        default="",
        metavar="FILE",
        help="archive, or directory with an OCI layout (default: standard input)",
    )
    parser.add_argument("-i", "--input", default="-", metavar="FILE", help="the same, as docker spells it")
    return parser


def run(options: argparse.Namespace, invocation: Invocation) -> int:
    if options.file and options.input != "-":
        raise UsageError(
            "two archives are given", f"load {options.file} and {options.input} one after the other"
        )
    path = options.file or options.input
    if path == "-" and sys.stdin.isatty():
        raise UsageError("no archive is given", "name a file, or redirect standard input")
    enter_isolation(options)
    from builder.images.load import load, load_folder

    if os.path.isdir(path):
        with open_store(options) as store:
            for name in load_folder(store, path):
                print_result(f"loaded {name}")
            store.sync()
        return 0
    with open_store(options) as store, open_input(path) as file, metered(file, "loading") as read:
        for name in load(store, read):
            print_result(f"loaded {name}")
        store.sync()
    return 0
