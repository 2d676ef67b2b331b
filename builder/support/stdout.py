"""Standard output, written for certain: whole, or with an error that names it."""

import os
import select


def write_all(fd: int, data: bytes) -> None:
    """Write all of *data* to *fd*, waiting where it does not block and is full. Raises OSError."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            waiting = select.poll()
            waiting.register(fd, select.POLLOUT)
            waiting.poll()
