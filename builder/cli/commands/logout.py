"""``pybuild logout``: remove credentials for a registry."""

from __future__ import annotations

import argparse

from builder.cli.command_table import Invocation
from builder.cli.parser import Parser
from builder.cli.registry_name import registry_name
from builder.cli.terminal import print_result


def parser() -> Parser:
    parser = Parser("pybuild logout", "Remove the credentials for a registry.")
    parser.add_argument(
        "registry", nargs="?", default="docker.io", metavar="REGISTRY", help="default: docker.io"
    )
    return parser


def run(options: argparse.Namespace, invocation: Invocation) -> int:
    from builder.registry.credentials import CredentialStore

    registry = registry_name(options.registry)
    found = CredentialStore().erase(registry)
    print_result(f"logged out of {registry}" if found else f"there were no credentials for {registry}")
    return 0
