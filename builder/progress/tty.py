"""Progress on a terminal: the lines of plain progress above bars (tqdm) of running steps and transfers."""

from __future__ import annotations

from typing import Any, TextIO

from tqdm import tqdm

from builder.events import Event, SolveStarted, StepCached, StepFinished, StepStarted, Transfer
from builder.progress.lines import printable
from builder.progress.plain import Plain

_NAME_WIDTH = 60
_STEPS_FORMAT = "{desc}: {n_fmt}/{total_fmt} |{bar:20}| {elapsed}{postfix}"


class Tty(Plain):
    """A sink that keeps one bar for the steps and one for each running transfer."""

    colours = True

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._file = stream
        self._bars: dict[str, Any] = {}
        self._steps: Any | None = None

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        with self._lock:
            if isinstance(event, SolveStarted):
                self._steps = self._bar("steps", event.steps, "step", _STEPS_FORMAT)
            elif self._steps is not None and isinstance(event, StepStarted):
                self._steps.set_postfix_str(printable(event.name)[:_NAME_WIDTH])
            elif self._steps is not None and isinstance(event, StepCached | StepFinished):
                self._steps.update(1)

    def transfer(self, event: Transfer) -> None:
        bar = self._bars.get(event.label)
        if bar is None:
            bar = self._bars[event.label] = self._bar(event.label, event.total, event.unit)
        bar.update(event.done - bar.n)
        if event.finished:
            self._bars.pop(event.label).close()
            super().transfer(event)

    def _bar(self, label: str, total: int, unit: str, bar_format: str | None = None) -> Any:
        return tqdm(
            total=total or None,
            desc=label,
            unit=unit,
            unit_scale=unit == "B",
            file=self._file,
            bar_format=bar_format,
            leave=False,
            dynamic_ncols=True,
        )

    def line(self, text: str) -> None:
        tqdm.write(text, file=self._file)

    def close(self) -> None:
        for bar in [*self._bars.values(), self._steps]:
            if bar is not None:
                bar.close()
