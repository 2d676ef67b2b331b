"""``--chmod``: octal, or symbolic as chmod(1) and BSD's setmode(3) read it (T18, T19)."""

from __future__ import annotations

import re

_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=][rwxXstugo]*)+)")
_ACTION = re.compile(r"([-+=])([rwxXstugo]*)")
_WHO = {"u": 0o4700, "g": 0o2070, "o": 0o007, "a": 0o6777}
_STICKY = 0o1000
_BITS = {"r": 0o444, "w": 0o222, "x": 0o111, "s": 0o6000, "t": _STICKY}
_SHIFTS = {"u": 6, "g": 3, "o": 0}


class Mode:
    """A change of mode bits. Immutable."""

    def __init__(self, text: str) -> None:
        """Parse *text*. Raises ValueError unless it is octal, at most 07777, or symbolic."""
        self._octal: int | None = None
        self._actions: list[tuple[int, str, str]] = []  # whom, operator, permissions
        if text[:1].isascii() and text[:1].isdigit():
            if set(text) - set("01234567") or len(text) > 20 or int(text, 8) > 0o7777:
                raise ValueError(
                    f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
                )
            self._octal = int(text, 8)
            return
        for clause in text.split(","):
            found = _CLAUSE.fullmatch(clause)
            if found is None:
                raise ValueError(
                    f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777, "
                    "or symbolic like u=rwX,go=rX"
                )
            who = 0
            for letter in found[1]:
                who |= _WHO[letter]
            self._actions += [(who, *action) for action in _ACTION.findall(found[2])]

    @property
    def of_parent(self) -> int:
        """The mode of a missing parent directory: the permission bits of an octal mode, else 0755."""
        return 0o755 if self._octal is None else self._octal & 0o777

    def apply(self, mode: int, is_dir: bool) -> int:
        """Return the permission bits that a file or directory of *mode* gets."""
        if self._octal is not None:
            return self._octal
        searchable = is_dir or mode & 0o111
        for who, operator, permissions in self._actions:
            mode = _act(mode, bool(searchable), who, operator, permissions)
        return mode


def _act(mode: int, searchable: bool, who: int, operator: str, permissions: str) -> int:
    """Apply one operator with its permissions. X applies if *searchable*, which the original mode decides."""
    mask = who or _WHO["a"]
    bits, copied = 0, ""
    for letter in permissions:
        if letter in _SHIFTS:
            copied = letter
        elif letter == "X":
            bits |= 0o111 if searchable and operator != "-" else 0
        elif letter not in "st" or who != _WHO["o"]:
            mask |= _STICKY if letter == "t" else 0
            bits |= _BITS[letter]
    if copied:  # the permissions of a class, to those of others
        value = (mode >> _SHIFTS[copied] & 0o7) * 0o111 | bits
        bits, mask = value, mask & 0o777 | bits & 0o6000
    bits &= mask
    if operator == "+":
        return mode | bits
    if operator == "-":
        return mode & ~bits
    return mode & ~mask | bits
