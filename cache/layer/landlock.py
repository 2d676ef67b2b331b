"""Landlock around what writes files that strangers named: a bug in it becomes a refused write.

The kernel's own check, on top of resolving every path inside its root. It holds for
a thread, so such work gets one. Kernels without Landlock, or with its first version (5.13 to 5.18), which
refuses every rename and link from one directory to another, do without.
"""

from __future__ import annotations

import functools
import os
import stat
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from cache.kernel import landlock_allow, landlock_restrict, landlock_ruleset, landlock_version

_T = TypeVar("_T")

# linux/landlock.h: everything that changes a file system, by the version that came with it.
_WRITES = (0b1_1111_1111 << 4 | 1 << 1, 1 << 13, 1 << 14)
_OF_FILES = 1 << 1 | 1 << 14  # what a rule for a file can allow: to write to it and to truncate it
_FIRST_VERSION = 2
_PATIENCE = 1.0  # seconds that an interrupted caller waits for the thread


@functools.cache
def _handled() -> int:
    """The accesses that this kernel can refuse, 0 without a Landlock that is good enough."""
    version = landlock_version()
    return sum(_WRITES[:version]) if version >= _FIRST_VERSION else 0


def confined(places: Sequence[str], work: Callable[[], _T]) -> _T:
    """Call *work* where it can write, make and remove files below *places* only; what it returns.

    A place is a directory, or a file that can be written to.

    Elsewhere that is EACCES. Reading is not restricted, and descriptors that are open stay good. It
    runs in a thread of its own, and so do the programs that it starts.
    """
    if not _handled():
        return work()
    result: list[_T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            _restrict(places)
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        thread.join()
    except BaseException:  # Ctrl-C, in the main thread: what is half done is in a draft
        thread.join(_PATIENCE)
        raise
    if failure:
        raise failure[0]
    return result[0]


def _restrict(places: Sequence[str]) -> None:
    ruleset = landlock_ruleset(_handled())
    try:
        for path in places:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                is_folder = stat.S_ISDIR(os.fstat(place).st_mode)
                landlock_allow(ruleset, _handled() if is_folder else _handled() & _OF_FILES, place)
            finally:
                os.close(place)
        landlock_restrict(ruleset)
    finally:
        os.close(ruleset)
