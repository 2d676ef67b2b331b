"""``pybuild save``: write images to an archive."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from builder.cli.command_table import Invocation
from builder.cli.isolation import enter_isolation, open_store
from builder.cli.parser import Parser
from builder.cli.terminal import open_progress

if TYPE_CHECKING:
    from builder.oci.model import ImageConfig
    from cache.digest import Digest


def parser() -> Parser:
    parser = Parser("pybuild save", "Write images to an archive that docker, podman and containerd load.")
    parser.add_argument("name", nargs="+", metavar="NAME")
    parser.add_argument(
        "-o", "--output", default="-", metavar="FILE", help="write to a file (default: standard output)"
    )
    parser.set_defaults(progress="auto", quiet=False)
    return parser


def run(options: argparse.Namespace, invocation: Invocation) -> int:
    enter_isolation(options)
    from builder.export.archive import NamedImage, write_archive
    from builder.export.image import ImageFormat, StoredImage, one_image, pack_image
    from builder.images.local import find, names_for

    with open_store(options) as store:
        wanted: dict[Digest, tuple[ImageConfig, dict[str, None]]] = {}  # each image once, with all its names
        for name in options.name:
            image, config = find(store, name)
            names = wanted.setdefault(image, (config, {}))[1]
            names |= dict.fromkeys(names_for(store, name, image))
        sink = open_progress(options)
        try:
            images = []
            for image, (config, names) in wanted.items():
                packed = pack_image(store, StoredImage(image, config), ImageFormat(), sink)
                images.append(NamedImage(one_image(packed), tuple(names)))
            write_archive(store, images, options.output, sink, docker=True)
        finally:
            sink.close()
    return 0
