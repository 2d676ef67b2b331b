"""The events of a build, as values. Progress output receives them as a Sink."""

from __future__ import annotations

import threading
from collections.abc import Callable

from grammar.structs import struct


@struct
class SolveStarted:
    """The plan is made and has this many steps."""

    steps: int


@struct
class StepStarted:
    """A step is being executed. ``number`` names it in every later event."""

    number: int
    name: str


@struct
class StepCached:
    """The result of a step comes from the cache, or from the plan."""

    number: int
    name: str


@struct
class StepOutput:
    """Output of the process of a step: standard output and error, merged."""

    number: int
    data: bytes


@struct
class StepFinished:
    """A step is done. ``cpu_seconds`` and ``peak`` (memory in bytes) are its container's, 0 without one."""

    number: int
    name: str
    seconds: float
    cpu_seconds: float = 0.0
    peak: int = 0


@struct
class StepFailed:
    """A step ended with an error."""

    number: int
    name: str
    seconds: float


@struct
class Transfer:
    """Progress of something long that is not a step's output: a pull, a scan, an export.

    ``total`` is 0 when unknown; ``unit`` is "B" for bytes, else the plural of what is
    counted. The last event of a transfer has ``finished``.
    """

    label: str
    done: int
    total: int
    unit: str = "B"
    finished: bool = False


@struct
class Notice:
    """A line for the user; ``warning`` when something deserves attention."""

    text: str
    warning: bool = False


Event = SolveStarted | StepStarted | StepCached | StepOutput | StepFinished | StepFailed | Transfer | Notice
Sink = Callable[[Event], None]


class Meter:
    """Counts one transfer and reports it to *sink*. Safe from several threads."""

    def __init__(self, label: str, total: int, sink: Sink, unit: str = "B") -> None:
        self._label, self._total, self._sink, self._unit = label, total, sink, unit
        self._done = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._sink(Transfer(self._label, self._done, self._total, self._unit))

    def finish(self) -> None:
        """Report that all is transferred, unless nothing was reported before."""
        if self._done:
            self._sink(Transfer(self._label, self._total, self._total, self._unit, finished=True))
