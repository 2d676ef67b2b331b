"""``pybuild pull``: pull images from a registry."""

from __future__ import annotations

import argparse

from builder.cli.command_table import Invocation
from builder.cli.isolation import enter_isolation
from builder.cli.parser import Parser, client_options
from builder.cli.transfer import Transferred, transfer, transfer_parser
from builder.errors import UsageError
from builder.images.local import reference, remember_platform
from builder.oci.model import host, platform_option
from builder.progress.forms import Progress
from cache.store import Store


def parser() -> Parser:
    parser = transfer_parser("pull", "Pull images from a registry.")
    parser.add_argument(
        "--platform", default="", metavar="OS/ARCH", help="platform of the image (default: this machine's)"
    )
    return parser


def run(options: argparse.Namespace, invocation: Invocation) -> int:
    try:
        platform = platform_option(options.platform) if options.platform else host()
    except ValueError as error:
        raise UsageError(f"--platform: {error}") from None
    enter_isolation(options)
    from builder.images.pull import pull

    def one(store: Store, name: str, sink: Progress) -> Transferred:
        wanted = reference(name)
        image = pull(store, wanted, platform, sink, client_options(options))
        if platform != host():
            remember_platform(store, wanted, platform, image)
        return Transferred({"Name": wanted.familiar, "ID": image}, f"{wanted.familiar} {image}")

    return transfer(options, one)
