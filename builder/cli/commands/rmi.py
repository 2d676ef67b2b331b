"""``pybuild rmi``: remove names of images; the build cache is kept."""

from __future__ import annotations

import argparse

from builder.cli.command_table import Invocation
from builder.cli.isolation import open_store
from builder.cli.parser import Parser
from builder.cli.terminal import print_result
from builder.errors import BuildError
from builder.images.local import find, named, reference
from cache.store import Store


def parser() -> Parser:
    parser = Parser("pybuild rmi", "Remove names of images. The build cache is kept.")
    parser.add_argument(
        "name", nargs="+", metavar="NAME", help="name; or start of an image ID, for all names of the image"
    )
    parser.add_argument("-f", "--force", action="store_true", help="ignore images that do not exist")
    return parser


def run(options: argparse.Namespace, invocation: Invocation) -> int:
    with open_store(options) as store:
        for name in options.name:
            if options.force and not _exists(store, name):
                continue
            for found in _names(store, name):
                store.untag(found)
                store.memos.forget_platform_images(found)
                print_result(f"untagged {reference(found).familiar}")
    return 0


def _exists(store: Store, name: str) -> bool:
    try:
        find(store, name)
    except BuildError:
        return False
    return True


def _names(store: Store, name: str) -> list[str]:
    """Return the canonical name, or every name of the image with that ID."""
    image, _config = find(store, name)
    try:
        canonical = str(reference(name))
    except BuildError:  # the start of an ID need not be a name
        canonical = ""
    if canonical and store.resolve(canonical) == image:
        return [canonical]
    return [other for other, its in named(store, []) if its == image]
