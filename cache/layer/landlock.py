"""Landlock around code that writes files with untrusted names: a bug in it becomes a refused write.

This check of the kernel comes on top of resolving every path inside its root. It applies to a thread, so
the work gets a thread of its own. It is left out on kernels without Landlock or with its first version
(5.13 to 5.18), which refuses every rename and link between directories.
"""

from __future__ import annotations

import functools
import os
import stat
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from cache.kernel import landlock_allow, landlock_restrict, landlock_ruleset, landlock_version
from cache.waits import SIGNAL_TICK

_T = TypeVar("_T")

# linux/landlock.h: everything that changes a file system, by the version that came with it.
_WRITES = (0b1_1111_1111 << 4 | 1 << 1, 1 << 13, 1 << 14)
_OF_FILES = 1 << 1 | 1 << 14  # what a rule for a file can allow: write, truncate
_FIRST_VERSION = 2
_PATIENCE = 1.0  # seconds that an interrupted caller waits for the thread


@functools.cache
def _handled() -> int:
    """Return the accesses that this kernel can refuse, 0 without a usable Landlock."""
    version = landlock_version()
    return sum(_WRITES[:version]) if version >= _FIRST_VERSION else 0


def confined(places: Sequence[str], work: Callable[[], _T]) -> _T:
    """Call *work* so that it can change files below *places* only, and return what it returns.

    A place is a directory, or a file that may be written. Elsewhere writing, making and removing fail with
    EACCES. Reading is not restricted, and open descriptors keep working. *work* runs in a thread of its own;
    programs that it starts are restricted too.
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
        while thread.is_alive():
            thread.join(SIGNAL_TICK)
    except BaseException:  # Ctrl-C, in the main thread; unfinished work is in a draft
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
