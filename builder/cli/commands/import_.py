"""``pybuild import``: make an image from a tar of a root file system."""

from __future__ import annotations

import argparse
import os

from builder.cli.command_table import Invocation
from builder.cli.input import open_input
from builder.cli.isolation import enter_isolation, open_store
from builder.cli.parser import Parser
from builder.cli.terminal import metered, print_result, warn


def parser() -> Parser:
    parser = Parser("pybuild import", "Make an image of one layer from a tar of a root file system.")
    parser.add_argument(
        "file", metavar="TAR", help="tar, or compressed by gzip, xz or zstd; - for standard input"
    )
    parser.add_argument("name", metavar="NAME", help="name of the image")
    return parser


def run(options: argparse.Namespace, invocation: Invocation) -> int:
    enter_isolation(options)
    from builder.images.local import from_root, new_name, rename
    from cache.kernel import ONE_ID, keeps_owners
    from cache.layer.blobs import add_tar

    name = new_name(options.name)
    if not keeps_owners():
        warn(ONE_ID)
    with open_store(options) as store, open_input(options.file) as file, metered(file, "importing") as read:
        image = from_root(store, add_tar(store, read), os.path.basename(options.file))
        store.sync()
        rename(store, name, image)
    print_result(image)
    return 0
