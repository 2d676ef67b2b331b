"""Do the same to several things at once, and stop early."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

_T = TypeVar("_T")


def each(work: Callable[[_T], object], items: Iterable[_T], at_once: int) -> None:
    """Call *work* on every item, in at most *at_once* threads.

    Raises what the first that failed has raised, and does not wait for the others then: those that have
    not begun do not, and who is in the middle of something ends with it. So it is on Ctrl-C.
    """
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(at_once)
    try:
        for job in [pool.submit(work, item) for item in items]:
            job.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
