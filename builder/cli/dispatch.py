"""Call a command, and translate what it raises to a message and an exit code, in one place."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from builder.cli.command_table import BUILD, Command, Invocation, find_command, load_command
from builder.cli.terminal import print_error, say
from builder.copy.filters import SeenContext
from builder.errors import BuildError, Cancelled
from cache.errors import CacheError

_PATIENCE = 1.5  # seconds that a cancelled command has to end in


class Called(NamedTuple):
    """A command and its arguments."""

    command: Command
    arguments: list[str]


def run(argv: Sequence[str], seen: SeenContext | None = None) -> int:
    """Run the command line *argv*; return the exit code. *seen* is what replay saw of the build context."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _cancel)
    called = find_called(argv)
    try:
        module = load_command(called.command)
        options = module.parser().parse_args(called.arguments)
        return module.run(options, Invocation(argv, seen))
    except (KeyboardInterrupt, Cancelled):
        kept = "; nothing was tagged, finished steps stay cached" if called.command is BUILD else ""
        say(f"pybuild: cancelled{kept}")
        return Cancelled.exit_code
    except BuildError as error:
        print_error(error.message, error.hint, error.code, error.excerpt)
        return error.exit_code
    except CacheError as error:
        print_error(error.message, error.hint, error.code, "")
        return BuildError.exit_code
    except OSError as error:
        failure = _of_this_place(error)
        if failure is None:
            raise
        print_error(failure.message, failure.hint, failure.code, "")
        return failure.exit_code


def find_called(argv: Sequence[str]) -> Called:
    """Return the command that *argv* calls; without a command's name it is a build.

    ``--root`` may stand before the name, too.
    """
    words, before = list(argv), list[str]()
    while words and (words[0] == "--root" or words[0].startswith("--root=")):
        count = 2 if words[0] == "--root" else 1
        before, words = before + words[:count], words[count:]
    command = find_command(words[0]) if words else None
    if command is None:
        return Called(BUILD, list(argv))
    return Called(command, before + words[1:])


def _of_this_place(error: OSError) -> BuildError | None:
    """Return the error to show if *error* comes from a removed working directory or a missing /proc."""
    name = os.fsdecode(error.filename or "")
    if name.startswith("/proc/"):
        return BuildError(f"{name}: {error.strerror}", "mount /proc with all its files", code="E-MACHINE")
    try:
        os.getcwd()
    except OSError:
        return BuildError(
            "the working directory has been removed", "change to one that is there", code="E-MACHINE"
        )
    return None


def _cancel(number: int, frame: object) -> NoReturn:
    threading.Thread(target=_insist, daemon=True).start()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Cancelled


def _insist() -> None:
    """End this process if it does not end by itself: the reader of its output may have stopped reading.

    The helper processes end with it, and so do all steps.
    """
    time.sleep(_PATIENCE)
    if select.select([], [2], [], 0)[1]:
        os.write(2, b"pybuild: cancelled\n")
    os._exit(Cancelled.exit_code)
