"""Feed a target with changed seeds for some time; the first input that it fails on is the result."""

from __future__ import annotations

import random
import signal
import time
from types import FrameType
from typing import NamedTuple

from mutation import mutated
from targets import TARGETS

LONGEST = 5.0  # seconds of processor time that one input may take


class Failure(NamedTuple):
    """An input that a target failed on, and how."""

    data: bytes
    error: BaseException


class TooLong(BaseException):
    """An input took longer than LONGEST."""


def fuzz(name: str, seconds: float, seed: int) -> tuple[int, Failure | None]:
    """Run a target for *seconds*: the number of inputs tried, and the failure that ended it, if any."""
    target, chance = TARGETS[name], random.Random(seed)
    seeds = target.seeds()
    before = signal.signal(signal.SIGVTALRM, _give_up)
    end, count, data = time.monotonic() + seconds, 0, b""
    try:
        while time.monotonic() < end:
            data = seeds[count] if count < len(seeds) else mutated(seeds, chance)
            count += 1
            signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST)
            try:
                target.run(data)
            except target.errors:
                pass
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except (Exception, TooLong) as error:
        return count, Failure(data, error)
    finally:
        signal.signal(signal.SIGVTALRM, before)
    return count, None


def _give_up(_number: int, _frame: FrameType | None) -> None:
    raise TooLong(f"one input took more than {LONGEST} s of processor time")
