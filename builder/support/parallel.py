"""Run a function on several items at once, and stop at the first error."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from cache.waits import SIGNAL_TICK

_T = TypeVar("_T")


def each(work: Callable[[_T], object], items: Iterable[_T], at_once: int) -> None:
    """Call *work* on every item, in at most *at_once* threads.

    Raises the first error, and Ctrl-C, at once: items that are not started are dropped, and running calls
    are not waited for.
    """
    from concurrent.futures import ThreadPoolExecutor, wait

    pool = ThreadPoolExecutor(at_once)
    try:
        for job in [pool.submit(work, item) for item in items]:
            while not job.done():
                wait([job], SIGNAL_TICK)
            job.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
