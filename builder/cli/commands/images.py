"""``pybuild images``: list images."""

from __future__ import annotations

import argparse

from builder.cli.command_table import Invocation
from builder.cli.isolation import open_store
from builder.cli.parser import Parser, add_format
from builder.cli.terminal import print_result, warn
from builder.errors import BuildError
from builder.images.local import config_of, named, reference, size
from builder.progress.lines import printable
from builder.support.format_template import show
from builder.support.json_types import JsonObject
from cache.errors import CacheError
from cache.store import Store

_Row = JsonObject


def parser() -> Parser:
    parser = Parser("pybuild images", "List images.")
    parser.add_argument(
        "name", nargs="?", default="", metavar="NAME", help="repository, or name of an image (default: all)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="only show image IDs")
    parser.add_argument("--no-trunc", action="store_true", help="don't truncate image IDs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_format(parser, "Name")
    return parser


def run(options: argparse.Namespace, invocation: Invocation) -> int:
    damaged: list[BuildError | CacheError] = []
    with open_store(options) as store:
        rows = _rows(store, options, damaged)
    if options.quiet:
        for image_id in dict.fromkeys(row["ID"] for row in rows):
            print_result(image_id)
    elif not show(rows, options.json, options.format, print_result):
        for line in _table(rows):
            print_result(printable(line))
    for unreadable in damaged:
        warn(f"{unreadable.message} ({unreadable.hint})")
    return 0


def _rows(store: Store, options: argparse.Namespace, damaged: list[BuildError | CacheError]) -> list[_Row]:
    """Return the images that *options* select; the errors of unreadable ones are added to *damaged*."""
    rows = []
    for name, image in named(store, damaged):
        try:
            config = config_of(store, image)
            length = size(store, config)
        except (BuildError, CacheError) as error:
            damaged.append(error)
            continue
        parsed = reference(name)
        repository, _, tag = parsed.familiar.rpartition(":")
        if options.name and options.name not in (repository, parsed.familiar, parsed.name, name):
            continue
        rows.append(
            {
                "Name": parsed.familiar,
                "Repository": repository,
                "Tag": tag,
                "ID": image if options.no_trunc or options.json else image[7:19],
                "CreatedAt": config.created,
                "Size": length,
                "Platform": str(config.platform),
            }
        )
    return rows


def _table(rows: list[_Row]) -> list[str]:
    lines = [("NAME", "IMAGE ID", "CREATED", "SIZE")]
    for row in rows:
        created = row["CreatedAt"][:19].replace("T", " ") or "-"
        lines.append((row["Name"], row["ID"], created, f"{row['Size'] / 1e6:.1f} MB"))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
