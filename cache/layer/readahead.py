"""Read ahead: run a read function, such as a decompressor, in a thread of its own."""

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
    """Provide a read function over *read*, which a thread calls at most 2 MiB ahead.

    An error of *read* is raised at its place in the stream. The thread has ended after the block.
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
