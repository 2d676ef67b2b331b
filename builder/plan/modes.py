"""``--chmod``: octal, or symbolic as chmod(1) and BSD's setmode(3) read it (dockerfile.md T18, T19)."""

from __future__ import annotations

import re

_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=][rwxXstugo]*)+)")
_ACTION = re.compile(r"([-+=])([rwxXstugo]*)")
_WHO = {"u": 0o4700, "g": 0o2070, "o": 0o1007}
_BITS = {"r": 0o444, "w": 0o222, "x": 0o111, "s": 0o6000, "t": 0o1000}


class Mode:
    """What to do with a mode. Immutable."""

    def __init__(self, text: str) -> None:
        """Raises ValueError for what is neither octal up to 07777 nor symbolic."""
        self._octal: int | None = None
        self._clauses: list[tuple[str, list[tuple[str, str]]]] = []
        if text.isascii() and text.isdigit():
            if set(text) - set("01234567") or len(text) > 20 or int(text, 8) > 0o7777:
                raise _invalid(text)
            self._octal = int(text, 8)
            return
        for clause in text.split(","):
            found = _CLAUSE.fullmatch(clause)
            if found is None:
                raise _invalid(text)
            self._clauses.append((found[1], _ACTION.findall(found[2])))

    def apply(self, mode: int, is_dir: bool) -> int:
        """The permission bits that a file or directory of *mode* gets."""
        if self._octal is not None:
            return self._octal
        for who, actions in self._clauses:
            for operator, permissions in actions:
                mode = _act(mode, is_dir, who or "a", operator, permissions)
        return mode


def _act(mode: int, is_dir: bool, who: str, operator: str, permissions: str) -> int:
    mask = 0o7777 if "a" in who else 0
    for letter in who.replace("a", ""):
        mask |= _WHO[letter]
    bits = 0
    for letter in permissions:
        if letter == "X":
            bits |= 0o111 if is_dir or mode & 0o111 else 0
        elif letter in "ugo":
            bits |= (mode >> {"u": 6, "g": 3, "o": 0}[letter] & 0o7) * 0o111
        else:
            bits |= _BITS[letter]
    bits &= mask
    if operator == "+":
        return mode | bits
    if operator == "-":
        return mode & ~bits
    return mode & ~mask | bits


def _invalid(text: str) -> ValueError:
    return ValueError(f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777")
