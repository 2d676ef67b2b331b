"""No progress: only warnings reach standard error."""

from __future__ import annotations

from collections.abc import Sequence

from builder.events import Event, Notice
from builder.progress.plain import Plain


class Quiet(Plain):
    """A sink that drops everything but warnings."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, Notice) and event.warning:
            super().__call__(event)

    def findings(self, findings: Sequence[str]) -> None:
        pass
