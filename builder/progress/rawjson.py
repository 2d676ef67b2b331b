"""Progress for programs: a line of JSON for each event, in the form of BuildKit's (docs/progress.md)."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import threading
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
from grammar.redact import redacted

_OUTPUT = 1  # standard output and standard error of a step are one pipe


class RawJson:
    """A sink that writes to *stream*. Safe to call from several threads."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._vertexes: dict[int, dict[str, object]] = {}
        self._transfers: dict[str, str] = {}  # start of each

    def __call__(self, event: Event) -> None:
        with self._lock:
            match event:
                case SolveStarted():
                    pass
                case StepStarted():
                    self._vertexes[event.number] = {**_vertex(event.number, event.name), "started": _now()}
                    self._write("vertexes", self._vertexes[event.number])
                case StepCached():
                    now = _now()
                    vertex = _vertex(event.number, event.name)
                    self._write("vertexes", {**vertex, "started": now, "completed": now, "cached": True})
                case StepOutput():
                    self._write(
                        "logs",
                        {
                            "vertex": self._vertexes[event.number]["digest"],
                            "stream": _OUTPUT,
                            "data": base64.b64encode(event.data).decode("ascii"),
                            "timestamp": _now(),
                        },
                    )
                case StepFinished():
                    used = {"cpuSeconds": round(event.cpu_seconds, 3), "peakMemory": event.peak}
                    ended = {**self._vertexes[event.number], "completed": _now()}
                    self._write("vertexes", {**ended, **(used if event.peak else {})})
                case StepFailed():
                    ended = {**self._vertexes[event.number], "completed": _now()}
                    self._write("vertexes", {**ended, "error": "the step failed"})
                case Transfer():
                    self._transfer(event)
                case Notice():
                    self._warn(event.text, 1 if event.warning else 0)

    def _transfer(self, event: Transfer) -> None:
        now = _now()
        status = {
            "id": event.label,
            "vertex": "",
            "name": event.label,
            "total": event.total,
            "current": event.done,
            "timestamp": now,
            "started": self._transfers.setdefault(event.label, now),
        }
        self._write("statuses", status | ({"completed": now} if event.finished else {}))

    def findings(self, findings: Sequence[str]) -> None:
        """Write what the checks found, a warning for each."""
        with self._lock:
            for text in findings:
                self._warn(text, 1)

    def failed(self, code: str, message: str, hint: str) -> None:
        """Write the error that ends the build, with its code."""
        texts = {"message": redacted(message), "hint": redacted(hint)}
        with self._lock:
            self._write(
                "errors", {"code": code, **{name: _valid(text) for name, text in texts.items() if text}}
            )

    def _warn(self, text: str, level: int) -> None:
        short = base64.b64encode(text.encode("utf-8", "replace")).decode("ascii")
        self._write("warnings", {"vertex": "", "level": level, "short": short})

    def _write(self, kind: str, value: dict[str, object]) -> None:
        """Write one line. A closed pipe does not stop the build."""
        try:
            self._stream.write(json.dumps({kind: [value]}, separators=(",", ":")) + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            pass

    def close(self) -> None:
        pass


def _vertex(number: int, name: str) -> dict[str, object]:
    text = f"{number} {name}".encode("utf-8", "surrogateescape")
    return {"digest": "sha256:" + hashlib.sha256(text).hexdigest(), "name": _valid(name)}


def _valid(text: str) -> str:
    """Return *text* with what is not UTF-8 replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
