"""Plain progress for logs: every line of every step, in order, never clipped."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from typing import TextIO

from builder.events import (
    Event,
    Notice,
    SolveStarted,
    StepCached,
    StepFailed,
    StepFinished,
    StepOutput,
    StepStarted,
    Transfer,
)
from builder.progress import lines

_LONGEST = 1 << 16  # bytes of one line held back before they are shown in parts
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # control characters that act on a terminal
_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
_COLOUR_OR_ACTING = re.compile(f"{_COLOUR.pattern}|{_ACTING.pattern}")
_RETURNS = re.compile("\r+")
_ERASE = re.compile(r"\x1b\[[0-2]?K")  # it erases a line that is new anyway
_RESET = "\x1b[0m"


class Plain:
    """A sink that writes lines to *stream*. Safe to call from several threads.

    ``colours`` tells whether colours in the output of steps are kept.
    """

    colours = False

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._started: dict[int, float] = {}
        self._rest: dict[int, bytes] = {}

    def __call__(self, event: Event) -> None:
        with self._lock:
            match event:
                case SolveStarted():
                    pass
                case StepStarted():
                    self._started[event.number] = time.monotonic()
                    self.line(lines.started(event.number, event.name))
                case StepCached():
                    self.line(lines.cached(event.number, event.name))
                case StepOutput():
                    self._output(event)
                case StepFinished():
                    self._flush(event.number)
                    self.line(lines.done(event.number, event.seconds, event.cpu_seconds, event.peak))
                case StepFailed():
                    self._flush(event.number)
                    self.line(lines.failed(event.number, event.seconds))
                case Transfer():
                    self.transfer(event)
                case Notice():
                    self.line(("warning: " if event.warning else "") + lines.printable(event.text))

    def _output(self, event: StepOutput) -> None:
        """Show the complete lines in one write; the start of the next line is held back."""
        data = self._rest.get(event.number, b"") + event.data
        known = data.rstrip(b"\r")  # may be the first half of \r\n
        end = 1 + max(known.rfind(b"\n"), known.rfind(b"\r"))
        if len(data) - end > _LONGEST:
            end = len(data)
        self._rest[event.number] = data[end:]
        if end:
            self._show(event.number, data[:end])

    def _flush(self, number: int) -> None:
        if rest := self._rest.pop(number, b""):
            self._show(number, rest)

    def _show(self, number: int, data: bytes) -> None:
        seconds = time.monotonic() - self._started.get(number, time.monotonic())
        text = _shown(data.decode("utf-8", "replace"), self.colours)
        if text is not None:
            self.line(lines.output(number, seconds, text))

    def transfer(self, event: Transfer) -> None:
        """Show a transfer once, when it is complete."""
        if event.finished:
            amount = f"{event.done / 1e6:.1f} MB" if event.unit == "B" else f"{event.done} {event.unit}"
            self.line(f"{event.label}: {amount}")

    def line(self, text: str) -> None:
        """Write one line. A closed pipe or a full disk does not stop the build."""
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            pass

    def findings(self, findings: Sequence[str]) -> None:
        """Show what the checks found, at the end of the build."""
        self.close()
        for text in lines.found(findings):
            self.line(text)

    def failed(self, code: str, message: str, hint: str) -> None:
        """The error that ends the build follows as text."""

    def close(self) -> None:
        pass


def _shown(text: str, colours: bool) -> str | None:
    """Return output of a step as lines that are safe for any terminal; None if there is nothing to show.

    A carriage return ends a line, because what follows it would overwrite what precedes it. Colours are
    dropped, or with *colours* kept to the end of their line. The whole text is converted at once: a step can
    write hundreds of thousands of lines in a second.
    """
    ended = text.endswith("\n")
    text = text.removesuffix("\n")
    if _ACTING.search(text):
        text = _RETURNS.sub("\r", text).removeprefix("\r").removesuffix("\r")
        text = text.replace("\r\n", "\n").replace("\n\r", "\n").replace("\r", "\n")
        text = _ERASE.sub("", text)
        if not colours:
            text = _ACTING.sub(_spelled, _COLOUR.sub("", text))
        elif (text := _COLOUR_OR_ACTING.sub(_spelled, text)).count("\x1b"):
            text = "\n".join(line + _RESET if "\x1b" in line else line for line in text.split("\n"))
    return text if text or ended else None


def _spelled(found: re.Match[str]) -> str:
    """Return a control character escaped; a colour unchanged."""
    return found[0] if len(found[0]) > 1 else f"\\x{ord(found[0]):02x}"
