"""Everything that a command prints: results on standard output, all else on standard error."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, Protocol

from builder.errors import BuildError
from builder.events import Event
from builder.progress.lines import printable
from cache.kernel import write_all
from grammar.redact import redacted


class Progress(Protocol):
    """A form of progress: a sink of events that also shows how the build ends."""

    def __call__(self, event: Event) -> None: ...

    def findings(self, findings: Sequence[str]) -> None:
        """Show what the checks found, at the end of the build."""

    def failed(self, code: str, message: str, hint: str) -> None:
        """Report the error that ends the build. The text that follows is the caller's."""

    def close(self) -> None:
        """Remove bars. Lines may follow."""


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
    if is_silent(options):
        from builder.progress.quiet import Quiet

        return Quiet(sys.stderr)
    if options.progress == "rawjson":
        from builder.progress.rawjson import RawJson

        return RawJson(sys.stderr)
    if options.progress == "tty" or (options.progress == "auto" and sys.stderr.isatty()):
        from builder.progress.tty import Tty

        return Tty(sys.stderr)
    from builder.progress.plain import Plain

    return Plain(sys.stderr)


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
