"""The parser of every command, and the options that several commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any, NoReturn

from builder.errors import UsageError
from builder.progress.forms import PROGRESS
from builder.registry import limits
from builder.request import ClientOptions
from builder.runtime.isolation import WAYS
from builder.support import debug
from grammar.booleans import truth
from grammar.suggest import suggestion

_TOO_MANY = "unrecognized arguments: "
# An option whose value is optional has a hidden twin that takes the value: argparse would take the build
# context for the value of ``--pull``.
OPTIONAL_VALUES = {
    "--pull": "--pull-policy",
    "--sbom": "--sbom-form",
    "--provenance": "--provenance-mode",
}


class Parser(argparse.ArgumentParser):
    """argparse that raises UsageError; options cannot be abbreviated, so adding one breaks no script."""

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        super().__init__(prog=prog, description=description, epilog=epilog, allow_abbrev=False)
        self.add_argument("--root", metavar="DIR", help="store directory (default: PYBUILD_ROOT, or by user)")
        self.add_argument(
            debug.OPTION,
            action="store_true",
            help="print keys, lookups, container set-up and timings (or set PYBUILD_DEBUG=1)",
        )

    def _get_formatter(self) -> argparse.HelpFormatter:
        """argparse asks for one with each option that is added, and imports much to learn its width."""
        try:
            columns = int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size().columns
        except (ValueError, OSError):
            columns = 80
        return argparse.RawDescriptionHelpFormatter(self.prog, width=columns - 2)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:  # argparse's own types
        """Parse *args*, which may also be spelled as docker allows; set the global options."""
        found = super().parse_args(self._spelled(args), namespace)
        if found.debug:
            debug.enable()
        return found

    def _spelled(self, words: Sequence[str]) -> list[str]:
        """Return *words* as argparse takes them; the command of a container is left alone.

        The value of an option whose value is optional follows an equals sign. A switch may have a boolean
        there; the last one wins. Raises UsageError for unknown options.
        """
        remainder = any(action.nargs == argparse.REMAINDER for action in self._actions)
        shorts = {name for name in self._option_string_actions if len(name) == 2}
        out: list[tuple[str, argparse.Action | None]] = []
        rest = list(words)
        while rest:
            word = rest.pop(0)
            name, equals, value = word.partition("=")
            action = self._option_string_actions.get(name)
            if word == "--" or (action is None and remainder and not word.startswith("-")):
                return [*(kept for kept, _ in out), word, *rest]
            if action is None and word.startswith("-") and word != "-" and word[:2] not in shorts:
                raise UsageError(
                    f"{self.prog} has no option {name}{suggestion(name, self._option_string_actions, 0.7)}",
                    f"see {self.prog} --help",
                )
            if equals and name in OPTIONAL_VALUES and action is not None:
                out.append((f"{OPTIONAL_VALUES[name]}={value}", None))
            elif equals and isinstance(action, argparse._StoreTrueAction):
                wanted = truth(value)
                if wanted is None:
                    raise UsageError(f"{name} is true or false, not {value!r}")
                out = [item for item in out if item[1] is not action]
                out += [(name, action)] if wanted else []
            else:
                out.append((word, action))
                if action is not None and action.nargs is None and not equals and rest:
                    out.append((rest.pop(0), None))
        return [word for word, _ in out]

    def error(self, message: str) -> NoReturn:
        for name, inner in OPTIONAL_VALUES.items():
            message = message.replace(inner, name)
        message = message.removeprefix("argument ")
        if message.startswith(_TOO_MANY):
            message = f"more arguments than {self.prog} takes: {message.removeprefix(_TOO_MANY)}"
        raise UsageError(message, f"see {self.prog} --help")


def pair(item: str, option: str) -> tuple[str, str]:
    """Return name and value of ``NAME=VALUE``, the value of *option*. Raises UsageError for an empty name."""
    name, _, value = item.partition("=")
    if not name:
        raise UsageError(f"{option} {item!r} has no name")
    return name, value


def add_isolation(parser: argparse.ArgumentParser) -> None:
    """Add ``--isolation``."""
    ways = ("auto", *WAYS)
    wanted = os.environ.get("PYBUILD_ISOLATION") or "auto"
    if wanted not in ways:
        raise UsageError(f"PYBUILD_ISOLATION is {wanted!r}", f"it can be {', '.join(ways)}")
    parser.add_argument(
        "--isolation",
        default=wanted,
        choices=ways,
        help="isolation of containers: namespaces, or chroot where namespaces are forbidden (default: "
        "PYBUILD_ISOLATION, or auto, which picks the strongest that works)",
    )


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that use a registry."""
    parser.add_argument(
        "--insecure-registry",
        action="append",
        default=[],
        metavar="HOST",
        help="allow HTTP and unverified certificates for pulls, pushes and caches of HOST (repeatable)",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=ClientOptions().timeout,
        metavar="TIME",
        help="give up on a server that does not answer for this long, retries included (default: 2m)",
    )


def client_options(options: argparse.Namespace) -> ClientOptions:
    """Return how servers are spoken to, as the options of ``add_server_options`` say."""
    return ClientOptions(frozenset(options.insecure_registry), options.timeout)


def _seconds(text: str) -> float:
    try:
        return limits.seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_progress(parser: argparse.ArgumentParser) -> None:
    """Add ``--progress``."""
    parser.add_argument(
        "--progress",
        default="auto",
        choices=tuple(PROGRESS),
        help="form of the progress output (default: auto)",
    )


def add_format(parser: argparse.ArgumentParser, example: str, short: bool = False) -> None:
    """Add ``--format``, and ``-f`` with *short*; *example* is a field that templates may name."""
    parser.add_argument(
        *(("-f",) if short else ()),
        "--format",
        default="",
        metavar="TEMPLATE",
        help=f"format the output with a Go template such as {{{{.{example}}}}}, or as json",
    )


def add_repeatable(
    parser: argparse._ActionsContainer, names: str, metavar: str, about: str
) -> None:  # a parser, or a group of one
    """Add an option whose values make a list; *names* are separated by blanks."""
    parser.add_argument(
        *names.split(), action="append", default=[], metavar=metavar, help=f"{about} (repeatable)"
    )
