"""Values that instructions have as text: durations and signals, as Go's libraries parse them."""

from __future__ import annotations

import re

_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9}
_UNITS |= {"m": 60 * 10**9, "h": 3600 * 10**9}
_PART = re.compile(r"([0-9]{0,20})(?:\.([0-9]{0,20}))?(ns|us|µs|μs|ms|s|m|h)")
_LONGEST = (1 << 63) - 1
_SHORTEST = 10**6  # of a health check that has one: 1 ms

_SIGNALS = {
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO",
    "IOT", "KILL", "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS",
    "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU",
    "XFSZ", "RTMIN", "RTMAX",
} | {f"RTMIN+{n}" for n in range(1, 16)} | {f"RTMAX-{n}" for n in range(1, 15)}  # fmt: skip


def duration(text: str) -> int:
    """Return a Go duration (``1h30m``, ``1.5s``) in nanoseconds. Raises ValueError."""
    from fractions import Fraction  # few files have a duration

    sign = -1 if text.startswith("-") else 1
    rest = text.lstrip("+-") if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0
    total, place = Fraction(0), 0
    while place < len(rest):
        found = _PART.match(rest, place)
        if found is None or not (found[1] or found[2]):
            raise ValueError(f'time: invalid duration "{text}"')
        fraction = found[2] or ""
        total += Fraction(int(found[1] + fraction or "0"), 10 ** len(fraction)) * _UNITS[found[3]]
        place = found.end()
    if not rest or total > _LONGEST:
        raise ValueError(f'time: invalid duration "{text}"')
    return sign * int(total)


def check_interval(name: str, text: str) -> int:
    """Return the duration *name* of a health check in nanoseconds, 0 for none. Raises ValueError."""
    value = duration(text) if text else 0
    if value and value < _SHORTEST:
        raise ValueError(f'Interval "{name}" cannot be less than 1ms')
    return value


def check_retries(text: str) -> int:
    """Return the retries of a health check, 0 for none. Raises ValueError."""
    if not text:
        return 0
    if re.fullmatch("[+-]?[0-9]{1,20}", text) is None:
        raise ValueError(f'--retries "{text}" is not a number')
    value = int(text)
    if not -(1 << 31) <= value < 1 << 31:
        raise ValueError(f'--retries "{text}": value out of range')
    if value < 0:
        raise ValueError(f"--retries cannot be negative ({value})")
    return value


def show_duration(value: int) -> str:
    """Return nanoseconds as Go prints them: ``1h30m0s``, ``1.5s``, ``100ms``."""
    if value < 10**9:
        for unit, size in (("ms", 10**6), ("µs", 10**3), ("ns", 1)):
            if value >= size:
                return _decimal(value, size) + unit
        return "0s"
    hours, rest = divmod(value, 3600 * 10**9)
    minutes, rest = divmod(rest, 60 * 10**9)
    front = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return front + _decimal(rest, 10**9) + "s"


def _decimal(value: int, unit: int) -> str:
    whole, part = divmod(value, unit)
    digits = str(part).zfill(len(str(unit)) - 1).rstrip("0") if part else ""
    return f"{whole}.{digits}" if digits else str(whole)


def check_signal(text: str) -> None:
    """Raise ValueError unless *text* is the name or number of a signal."""
    if re.fullmatch("[+-]?[0-9]{1,18}", text):
        if int(text) == 0:
            raise ValueError(f"invalid signal: {text}")
    elif text.upper().removeprefix("SIG") not in _SIGNALS:
        raise ValueError(f"invalid signal: {text}")
