"""Read ahead: somebody else's reading, such as decompressing, in a thread of its own beside ours."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator

from cache.layer.compression import Read

_CHUNK = 1 << 18
_CHUNKS = 8


@contextlib.contextmanager
def ahead(read: Read) -> Iterator[Read]:
    """A read function that gives what *read* gives, which is called in a thread, at most 2 MiB ahead.

    What it raises is raised where it would have been read. The thread has ended when the block is left.
    """
    chunks: queue.Queue[bytes | BaseException] = queue.Queue(_CHUNKS)
    unwanted = threading.Event()

    def work() -> None:
        try:
            while not unwanted.is_set():
                data = read(_CHUNK)
                chunks.put(data)
                if not data:
                    return
        except BaseException as error:
            chunks.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    current, place, ended = b"", 0, False

    def pull(count: int) -> bytes:
        nonlocal current, place, ended
        if place == len(current):
            if ended:
                return b""
            item = chunks.get()
            if isinstance(item, BaseException):
                ended = True
                raise item
            current, place, ended = item, 0, not item
        data = current[place : place + count]
        place += len(data)
        return data

    try:
        yield pull
    finally:
        unwanted.set()
        while thread.is_alive():
            with contextlib.suppress(queue.Empty):
                chunks.get(timeout=0.01)
