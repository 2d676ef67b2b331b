"""``pybuild push``: push images to a registry."""

from __future__ import annotations

import argparse

from builder.cli.command_table import Invocation
from builder.cli.isolation import enter_isolation
from builder.cli.parser import Parser, client_options
from builder.cli.transfer import Transferred, transfer, transfer_parser
from builder.images.local import find, reference
from builder.progress.forms import Progress
from cache.store import Store


def parser() -> Parser:
    return transfer_parser("push", "Push images to the registries in their names.")


def run(options: argparse.Namespace, invocation: Invocation) -> int:
    enter_isolation(options)
    from builder.export.image import ImageFormat, StoredImage, one_image, pack_image
    from builder.export.push import push

    def one(store: Store, name: str, sink: Progress) -> Transferred:
        image, config = find(store, name)
        wanted = reference(name)
        pushed = one_image(pack_image(store, StoredImage(image, config), ImageFormat(), sink))
        push(store, pushed, wanted, sink, client_options(options))
        fields = {"Name": wanted.familiar, "Digest": pushed.descriptor.digest, "ID": image}
        return Transferred(fields, f"{wanted.name}@{pushed.descriptor.digest}")

    return transfer(options, one)
