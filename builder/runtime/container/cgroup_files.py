"""Files of cgroups and of /proc, and the errors that cgroups cause."""

from __future__ import annotations

import os

from builder.runtime.errors import CgroupError

# -- files ---------------------------------------------------------------------------------


def read(path: bytes) -> bytes:
    """Return the contents of a file; empty if it cannot be read."""
    data = b""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while more := os.read(fd, 1 << 16):
                data += more
        finally:
            os.close(fd)
    except OSError:
        pass
    return data


def write(path: bytes, value: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value)
    finally:
        os.close(fd)


def write_or_explain(path: bytes, value: bytes) -> None:
    try:
        write(path, value)
    except OSError as error:
        said = f"writing {os.fsdecode(value)} to {os.fsdecode(path)}: {error.strerror}"
        raise CgroupError(said) from None


def read_number(path: bytes, name: bytes = b"") -> int:
    """Return the number in a file, or after *name* in one with lines of names and numbers; -1 if none."""
    for line in read(path).splitlines():
        key, _blank, value = line.rpartition(b" ")
        if key == name and value.isdigit():
            return int(value)
    return -1
