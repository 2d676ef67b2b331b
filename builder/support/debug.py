"""Lines for ``--debug``: what pybuild decides and does, on standard error.

A caller whose text is expensive to make calls ``enabled`` first::

    if debug.enabled():
        debug.debug(f"key {key}: hit")

Forked processes print with the same clock. This module imports nothing of pybuild, so that ``runtime`` may
use it; a caller removes credentials of URLs itself (``grammar.redact``).
"""

import os
import time

OPTION = "--debug"
VARIABLE = "PYBUILD_DEBUG"

_start = time.monotonic()


class _Switch:
    on = os.environ.get(VARIABLE, "") not in ("", "0")


def enabled() -> bool:
    """Return True if debug lines are printed."""
    return _Switch.on


def enable() -> None:
    """Print debug lines from now on, also in programs that this process executes."""
    _Switch.on = True
    os.environ[VARIABLE] = "1"


def debug(text: str) -> None:
    """Print *text* with the seconds since the start; do nothing if debug is off.

    ``debug:`` stands before each line.
    """
    if not _Switch.on:
        return
    lead = f"debug: {time.monotonic() - _start:.3f} "
    lines = "".join(f"{lead}{_printable(line)}\n" for line in text.splitlines())
    try:
        os.write(2, lines.encode("utf-8", "backslashreplace"))  # one write: processes share standard error
    except OSError:
        pass


def take(argv: list[str]) -> list[str]:
    """Return *argv* without ``--debug``, enabling debug lines if it was there.

    The words of a container's command are not options of pybuild, so with the command ``run`` only what
    stands before it is taken; the command's parser finds the rest.
    """
    words = argv[: argv.index("run")] if "run" in argv else argv
    kept = [word for word in words if word != OPTION]
    if len(kept) != len(words):
        enable()
    return kept + argv[len(words) :]


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
