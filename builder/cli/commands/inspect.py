"""``pybuild inspect``: show details of images, as docker inspect does."""

from __future__ import annotations

import argparse
import json

from builder.cli.command_table import Invocation
from builder.cli.isolation import open_store
from builder.cli.parser import Parser, add_format
from builder.cli.terminal import print_result
from builder.images.local import find, named, reference, size
from builder.oci.model import ImageConfig
from builder.support.format_template import show
from builder.support.json_types import JsonObject
from cache.digest import Digest
from cache.store import Store


def parser() -> Parser:
    parser = Parser("pybuild inspect", "Show details of images as JSON, as docker inspect does.")
    parser.add_argument("name", nargs="+", metavar="NAME", help="name, or start of an image ID")
    add_format(parser, "Id", short=True)
    return parser


def run(options: argparse.Namespace, invocation: Invocation) -> int:
    with open_store(options) as store:
        out = [_fields(store, *find(store, name)) for name in options.name]
    if not show(out, False, options.format, print_result):
        print_result(json.dumps(out, indent=2))
    return 0


def _fields(store: Store, image: Digest, config: ImageConfig) -> JsonObject:
    """Return an image under the names of docker's fields."""
    value = json.loads(store.read_blob(image))
    return {
        "Id": image,
        "RepoTags": [reference(other).familiar for other, its in named(store, []) if its == image],
        "Created": config.created,
        "Author": config.author,
        "Architecture": config.platform.architecture,
        "Variant": config.platform.variant,
        "Os": config.platform.os,
        "Size": size(store, config),
        "Config": value.get("config") or {},
        "RootFS": {"Type": "layers", "Layers": list(config.diff_ids)},
        "History": value.get("history") or [],
    }
