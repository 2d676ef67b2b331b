"""Progress on a terminal: the lines of plain progress above tqdm bars of what is under way."""

from __future__ import annotations

from typing import Any, TextIO

from tqdm import tqdm

from builder.events import Event, StepCached, StepFinished, Transfer
from builder.progress.plain import Plain


class Tty(Plain):
    """A sink that keeps one bar for the steps and one for each running transfer."""

    def __init__(self, stream: TextIO, steps: int = 0) -> None:
        super().__init__(stream)
        self._file = stream
        self._bars: dict[str, Any] = {}
        self._steps: Any | None = None
        self._done = 0

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, StepCached | StepFinished):
            with self._lock:
                if self._steps is None:
                    self._steps = self._bar("steps", 0, "step")
                self._steps.update(1)

    def transfer(self, event: Transfer) -> None:
        bar = self._bars.get(event.label)
        if bar is None:
            bar = self._bars[event.label] = self._bar(event.label, event.total, event.unit)
        bar.update(event.done - bar.n)
        if event.finished:
            self._bars.pop(event.label).close()
            super().transfer(event)

    def _bar(self, label: str, total: int, unit: str) -> Any:
        return tqdm(
            total=total or None,
            desc=label,
            unit=unit,
            unit_scale=unit == "B",
            file=self._file,
            leave=False,
            dynamic_ncols=True,
        )

    def line(self, text: str) -> None:
        tqdm.write(text, file=self._file)

    def close(self) -> None:
        for bar in [*self._bars.values(), self._steps]:
            if bar is not None:
                bar.close()
