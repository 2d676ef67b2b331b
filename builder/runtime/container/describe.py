"""Operations as lines of text, for ``--debug``. Contents of files and values of variables are never shown."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from builder.runtime import syscalls as sc
from builder.runtime.container import operations as op
from builder.runtime.spec import CAPABILITY_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable

_ATTRIBUTES = {
    sc.MOUNT_ATTR_RDONLY: "ro",
    sc.MOUNT_ATTR_NOSUID: "nosuid",
    sc.MOUNT_ATTR_NODEV: "nodev",
    sc.MOUNT_ATTR_NOEXEC: "noexec",
}


def describe(operations: Iterable[op.Operation]) -> str:
    """Return one line for each operation: its name, then its fields."""
    return "\n".join(_line(operation) for operation in operations)


def _line(operation: op.Operation) -> str:
    name = type(operation).__name__
    fields = [f"{key}={_text(key, value)}" for key, value in vars(operation).items()]
    return f"{name} {' '.join(fields)}" if fields else name


def _text(field: str, value: object) -> str:
    match field, value:
        case "content", bytes():
            return f"{len(value)} bytes"
        case "env", dict():
            return ",".join(sorted(map(os.fsdecode, value)))
        case "capabilities", int():
            return ",".join(name for bit, name in enumerate(CAPABILITY_NAMES) if value >> bit & 1) or "none"
        case "attributes", int():
            return ",".join(name for bit, name in _ATTRIBUTES.items() if value & bit) or "none"
        case "mode", int():
            return f"{value:04o}"
        case "options", tuple():
            return ",".join(_option(*pair) for pair in value) or "none"
        case _, bytes():
            return os.fsdecode(value) or "-"
        case _, bool():
            return "yes" if value else "no"
        case _, list() | tuple():
            return f"[{', '.join(_text('', item) for item in value)}]"
    return str(value)


def _option(name: bytes, value: bytes | None) -> str:
    return os.fsdecode(name if value is None else name + b"=" + value)
