"""``pybuild login``: store credentials for a registry."""

from __future__ import annotations

import argparse
import getpass
import sys

from builder.cli.command_table import Invocation
from builder.cli.parser import Parser, add_server_options, client_options
from builder.cli.registry_name import registry_name
from builder.cli.terminal import print_result
from builder.errors import UsageError


def parser() -> Parser:
    parser = Parser(
        "pybuild login", "Try credentials for a registry, and store them in docker's configuration."
    )
    parser.add_argument(
        "registry", nargs="?", default="docker.io", metavar="REGISTRY", help="default: docker.io"
    )
    parser.add_argument("-u", "--username", default="", metavar="NAME", help="user name")
    parser.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    add_server_options(parser)
    return parser


def run(options: argparse.Namespace, invocation: Invocation) -> int:
    from builder.registry.client import Registry
    from builder.registry.credentials import Credentials, CredentialStore

    registry = registry_name(options.registry)
    if options.password_stdin:
        if not options.username:
            raise UsageError("--password-stdin needs --username")
        user, password = options.username, sys.stdin.readline().rstrip("\r\n")
    elif sys.stdin.isatty():
        user = options.username or input("Username: ")
        password = getpass.getpass("Password: ")
    else:
        raise UsageError("there is no terminal to ask for the password", "give it with --password-stdin")
    if not user or not password:
        raise UsageError("user name and password must not be empty")
    with Registry(registry, client_options(options), credentials=Credentials(user, password)) as client:
        client.check_login()
    place = CredentialStore().store(registry, user, password)
    print_result(f"logged in to {registry}; the credentials are in {place}")
    return 0
