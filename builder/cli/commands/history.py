"""``pybuild history``: show the history of an image, newest first."""

from __future__ import annotations

import argparse

from builder.cli.command_table import Invocation
from builder.cli.isolation import open_store
from builder.cli.parser import Parser, add_format
from builder.cli.terminal import print_result
from builder.images.local import config_of, find, tar_size
from builder.progress.lines import printable
from builder.support.format_template import show
from builder.support.json_types import JsonObject


def parser() -> Parser:
    parser = Parser("pybuild history", "Show the history of an image, newest first.")
    parser.add_argument("name", metavar="NAME", help="name, or start of an image ID")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_format(parser, "CreatedBy")
    return parser


def run(options: argparse.Namespace, invocation: Invocation) -> int:
    with open_store(options) as store:
        image, _config = find(store, options.name)
        config = config_of(store, image)
        sizes = [tar_size(store, layer) for layer in config.diff_ids]
    rows: list[JsonObject] = []
    for line in config.history:
        row: JsonObject = {
            "CreatedAt": line.created,
            "CreatedBy": line.created_by,
            "Size": 0 if line.empty_layer or not sizes else sizes.pop(0),
            "Comment": line.comment,
        }
        rows.insert(0, row)
    if show(rows, options.json, options.format, print_result):
        return 0
    for row in rows:
        created = row["CreatedAt"][:19].replace("T", " ") or "-"
        shown = f"{row['Size'] / 1e6:.1f} MB"
        print_result(f"{created:19}  {shown:>12}  {printable(row['CreatedBy'])}")
    return 0
