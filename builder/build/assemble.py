"""A solved plan to an image: diff IDs, history with times, config."""

from __future__ import annotations

import datetime
from collections.abc import Callable

from builder.oci.model import History, ImageConfig
from builder.plan.graph import Plan, Step
from builder.plan.ops import FromImage
from cache.digest import DiffId
from grammar.structs import replace

# What readers of a history know lines by: those of a file, those of layers that had none.
_COMMENT, _EXPORTER = "buildkit.dockerfile.v0", "buildkit.exporter.image.v0"


def assemble(plan: Plan, diff_ids: tuple[DiffId, ...], created: Callable[[Step], int]) -> ImageConfig:
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
    history = _fill_times([*_fitting(plan), *lines])
    made = history[-1].created if history else ""
    return replace(plan.config, history=tuple(history), diff_ids=diff_ids, created=made)


def _fitting(plan: Plan) -> list[History]:
    """The base's history, with as many lines that have a layer as the base has layers."""
    bottom = plan.root
    while bottom is not None and bottom.parent is not None:
        bottom = bottom.parent
    base = bottom.op if bottom is not None and isinstance(bottom.op, FromImage) else None
    layers = len(base.diff_ids) if base is not None else 0
    out = []
    for line in plan.base_history:
        out.append(line if layers or line.empty_layer else replace(line, empty_layer=True))
        layers -= not out[-1].empty_layer
    if base is not None:
        out += [History(f"pulled from {base.name}", comment=_EXPORTER)] * layers
    return out


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
