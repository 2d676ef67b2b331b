"""``--metadata-file``: what came out of a build and what its steps took, as JSON for programs.

The names of docker's buildx where it has one (``containerimage.config.digest``, ``image.name``);
``pybuild.steps`` is our own. docs/metadata.md says what is in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from builder.errors import BuildError
from builder.events import Event, StepCached, StepFinished
from builder.request import BuildResult


class Recorder:
    """A sink that passes everything on, and keeps what each step took."""

    def __init__(self, sink: Callable[[Event], None]) -> None:
        self._sink = sink
        self._steps: dict[int, dict[str, object]] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepCached):
            self._steps[event.number] = {"name": event.name, "cached": True}
        elif isinstance(event, StepFinished):
            step: dict[str, object] = {
                "name": event.name,
                "cached": False,
                "seconds": round(event.seconds, 3),
            }
            if event.peak:
                step |= {"cpu_seconds": round(event.cpu_seconds, 3), "peak_memory_bytes": event.peak}
            self._steps[event.number] = step
        self._sink(event)

    def write(self, path: str, result: BuildResult, tags: tuple[str, ...]) -> None:
        """Write the file. Raises BuildError."""
        value: dict[str, object] = {}
        if not result.images:  # an index has no config
            value["containerimage.config.digest"] = result.image
        if result.descriptor is not None:
            value["containerimage.digest"] = result.descriptor["digest"]
            value["containerimage.descriptor"] = result.descriptor
        if tags:
            value["image.name"] = ",".join(tags)
        value["pybuild.steps"] = [self._steps[number] for number in sorted(self._steps)]
        try:
            with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(json.dumps(value, indent=2) + "\n")
        except OSError as error:
            raise BuildError(f"writing {path}: {error.strerror}") from None
