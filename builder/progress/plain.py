"""Plain progress for logs: every line of every step, in order, never clipped."""

from __future__ import annotations

import threading
import time
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


class Plain:
    """A sink that writes lines to *stream*. Safe to call from several threads."""

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
        data = self._rest.get(event.number, b"") + event.data
        whole, newline, rest = data.rpartition(b"\n")
        if newline:
            self._show(event.number, whole.replace(b"\r\n", b"\n").removesuffix(b"\r"))
        if len(rest) > _LONGEST:
            self._show(event.number, rest)
            rest = b""
        self._rest[event.number] = rest

    def _flush(self, number: int) -> None:
        if rest := self._rest.pop(number, b""):
            self._show(number, rest)

    def _show(self, number: int, text: bytes) -> None:
        """Show lines of a step, all at once: a step may write millions."""
        seconds = time.monotonic() - self._started.get(number, time.monotonic())
        self.line(lines.output(number, seconds, text.decode("utf-8", "replace")))

    def transfer(self, event: Transfer) -> None:
        """A transfer shows once, when it is complete."""
        if event.finished:
            amount = f"{event.done / 1e6:.1f} MB" if event.unit == "B" else f"{event.done} {event.unit}"
            self.line(f"{event.label}: {amount}")

    def line(self, text: str) -> None:
        """Write one line; a reader that went away, or a full disk, does not stop the build."""
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            pass

    def close(self) -> None:
        pass
