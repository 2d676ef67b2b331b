"""Everything that a command prints: results on standard output, all else on standard error."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO

from builder.errors import BuildError
from builder.progress.forms import PROGRESS, Progress
from builder.progress.lines import printable
from cache.kernel import write_all
from grammar.redact import redacted


def print_result(text: str) -> None:
    """Write a line of results to standard output. Raises BuildError when it cannot be written."""
    try:
        write_all(1, (text + "\n").encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise BuildError(f"writing to standard output: {error.strerror}") from None


def say(text: str) -> None:
    """Write a line to standard error, as it is; a reader that went away does not matter."""
    try:
        sys.stderr.write(text + "\n")
    except OSError:
        pass


def warn(text: str) -> None:
    say(f"warning: {printable(redacted(text))}")


def print_error(message: str, hint: str, code: str, excerpt: str) -> None:
    """Write an error: the lines of the Dockerfile, the message with its code, the hint."""
    if excerpt:
        say("\n".join(printable(line) for line in excerpt.split("\n")))
    say(f"error: {printable(redacted(message))} [{code}]")
    if hint:
        say(f"hint: {printable(redacted(hint))}")


def is_silent(options: argparse.Namespace) -> bool:
    """Return True if only warnings and errors are shown."""
    return bool(options.quiet or options.progress == "quiet")


def open_progress(options: argparse.Namespace) -> Progress:
    """Return the form of progress that ``--progress`` and ``--quiet`` name."""
    return PROGRESS["quiet" if is_silent(options) else options.progress](sys.stderr)


@contextlib.contextmanager
def metered(file: BinaryIO, label: str) -> Iterator[Callable[[int], bytes]]:
    """Yield a read function over *file*, which shows a bar on a terminal."""
    if not sys.stderr.isatty():
        yield file.read
        return
    from builder.events import Meter
    from builder.progress.tty import Tty

    sink = Tty(sys.stderr)
    meter = Meter(label, os.fstat(file.fileno()).st_size, sink)

    def read(count: int) -> bytes:
        data = file.read(count)
        meter.add(len(data))
        return data

    try:
        yield read
    finally:
        sink.close()
