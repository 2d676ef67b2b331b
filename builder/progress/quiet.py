"""No progress: only warnings reach standard error."""

from __future__ import annotations

import sys

from builder.events import Event, Notice


class Quiet:
    """A sink that drops everything but warnings."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, Notice) and event.warning:
            sys.stderr.write(f"warning: {event.text}\n")

    def close(self) -> None:
        pass
