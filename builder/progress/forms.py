"""The forms of progress: a row for each value of ``--progress``."""

# Each form imports its module late: a build loads one of them.

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TextIO

from builder.events import Event


class Progress(Protocol):
    """A form of progress: a sink of events that also shows how the build ends."""

    def __call__(self, event: Event) -> None: ...

    def findings(self, findings: Sequence[str]) -> None:
        """Show what the checks found, at the end of the build."""

    def failed(self, code: str, message: str, hint: str) -> None:
        """Report the error that ends the build. The text that follows is the caller's."""

    def close(self) -> None:
        """Remove bars. Lines may follow."""


def _auto(file: TextIO) -> Progress:
    return _tty(file) if file.isatty() else _plain(file)


def _tty(file: TextIO) -> Progress:
    from builder.progress.tty import Tty

    return Tty(file)


def _plain(file: TextIO) -> Progress:
    from builder.progress.plain import Plain

    return Plain(file)


def _quiet(file: TextIO) -> Progress:
    from builder.progress.quiet import Quiet

    return Quiet(file)


def _rawjson(file: TextIO) -> Progress:
    from builder.progress.rawjson import RawJson

    return RawJson(file)


PROGRESS: dict[str, Callable[[TextIO], Progress]] = {
    "auto": _auto,
    "tty": _tty,
    "plain": _plain,
    "quiet": _quiet,
    "rawjson": _rawjson,
}
