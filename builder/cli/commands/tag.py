"""``pybuild tag``: give an image another name."""

from __future__ import annotations

import argparse

from builder.cli.command_table import Invocation
from builder.cli.isolation import open_store
from builder.cli.parser import Parser
from builder.images.local import find, new_name, rename


def parser() -> Parser:
    parser = Parser("pybuild tag", "Give an image another name.")
    parser.add_argument("name", metavar="NAME", help="name, or start of an image ID")
    parser.add_argument("new", metavar="NEW", help="new name")
    return parser


def run(options: argparse.Namespace, invocation: Invocation) -> int:
    new = new_name(options.new)
    with open_store(options) as store:
        image, _config = find(store, options.name)
        rename(store, new, image)
    return 0
