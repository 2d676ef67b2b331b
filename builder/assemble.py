"""A solved plan to an image: diff IDs, history with times, config."""

from __future__ import annotations

import datetime
from collections.abc import Callable

from builder.image.model import History, ImageConfig
from builder.plan.graph import Plan, Step
from cache.digest import Digest
from grammar.structs import replace

_COMMENT = "buildkit.dockerfile.v0"  # what readers of a history know such lines by


def assemble(plan: Plan, diff_ids: tuple[Digest, ...], created: Callable[[Step], int]) -> ImageConfig:
    """The config of the image that *plan* describes, its layers being *diff_ids*.

    *created* gives the time in nanoseconds at which a step's layer was made. Lines without
    a layer take the time of a layer near them, so that a cached build gives the same image.
    With an epoch everything new has that time (T89).
    """

    def time(step: Step | None) -> str:
        if plan.epoch is not None:
            return rfc3339(plan.epoch * 10**9)
        return rfc3339(created(step)) if step is not None else ""

    lines = [
        History(line.created_by, empty_layer=line.step is None, created=time(line.step), comment=_COMMENT)
        for line in plan.lines
    ]
    history = _fill_times([*plan.base_history, *lines])
    made = history[-1].created if history else ""
    return replace(plan.config, history=tuple(history), diff_ids=diff_ids, created=made)


def _fill_times(history: list[History]) -> list[History]:
    """Times for the lines that have none: of the first new layer at first, then of the last (T87)."""
    time = ""
    missing = False
    for item in history:
        if item.created:
            time = item.created
            if missing:
                break
        else:
            missing = True
    out = []
    missing = False
    for item in history:
        if item.created:
            time = item.created if missing else time
        else:
            missing = True
        out.append(item if item.created else replace(item, created=time))
    return out


def rfc3339(nanoseconds: int) -> str:
    """A time as image configs write it, to the microsecond, in UTC."""
    whole, part = divmod(nanoseconds, 1_000_000_000)
    moment = datetime.datetime.fromtimestamp(whole, datetime.UTC)
    fraction = f".{part // 1000:06d}" if part >= 1000 else ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z"
