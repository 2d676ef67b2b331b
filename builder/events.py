"""What happens during a build, as values. Whoever shows them subscribes as a Sink."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepStarted:
    """A step is being executed. ``number`` names it in every later event."""

    number: int
    name: str


@dataclass(frozen=True, slots=True)
class StepCached:
    number: int
    name: str


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What the step's process wrote, as it came."""

    number: int
    data: bytes


@dataclass(frozen=True, slots=True)
class StepFinished:
    number: int
    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class StepFailed:
    number: int
    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Notice:
    """A line for the user; ``warning`` when something deserves attention."""

    text: str
    warning: bool = False


Event = StepStarted | StepCached | StepOutput | StepFinished | StepFailed | Transfer | Notice
Sink = Callable[[Event], None]
