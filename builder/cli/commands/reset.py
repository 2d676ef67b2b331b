"""``pybuild reset``: remove everything in the store."""

from __future__ import annotations

import argparse
import os

from builder.cli.command_table import Invocation
from builder.cli.isolation import enter_isolation, open_store
from builder.cli.parser import Parser
from builder.cli.terminal import print_result
from builder.errors import BuildError
from cache.store import default_root


def parser() -> Parser:
    return Parser("pybuild reset", "Remove everything in the store: images, the build cache, cache mounts.")


def run(options: argparse.Namespace, invocation: Invocation) -> int:
    root = options.root or default_root()
    if not os.path.exists(os.path.join(root, "version")):
        raise BuildError(f"there is no store in {root}")
    enter_isolation(options)
    with open_store(options) as store:
        store.reset()
    print_result(f"removed everything in the store {root}")
    return 0
