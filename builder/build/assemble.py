"""Assemble the image config of a solved plan: diff IDs, and history with times."""

from __future__ import annotations

import datetime
from collections.abc import Callable

from builder.oci.model import History, ImageConfig
from builder.plan.graph import Plan, Step
from builder.plan.ops import FromImage
from cache.digest import DiffId
from grammar.structs import replace

# Comments of history lines: from a Dockerfile, and for layers of a base image without history.
_COMMENT, _EXPORTER = "buildkit.dockerfile.v0", "buildkit.exporter.image.v0"


def assemble(plan: Plan, diff_ids: tuple[DiffId, ...], created: Callable[[Step], int]) -> ImageConfig:
    """Return the config of the image that *plan* describes, with the layers *diff_ids*.

    *created* returns the time at which a step's layer was made, in nanoseconds. Lines without a layer take
    the time of a layer near them, so that a cached build gives the same image. With an epoch all new lines
    have that time (T89).
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
    """Return the history of the base image, with as many lines with a layer as the image has layers."""
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
    """Return *history* with times for the lines without one.

    They take the time of the first new layer; after that layer, the time of the last line before them (T87).
    """
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
    """Return a time in the form of image configs: to the microsecond, in UTC."""
    whole, part = divmod(nanoseconds, 1_000_000_000)
    moment = datetime.datetime.fromtimestamp(whole, datetime.UTC)
    fraction = f".{part // 1000:06d}" if part >= 1000 else ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z"
