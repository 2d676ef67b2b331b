"""Pack a layer while it is being written, in a process of its own.

Packing twenty thousand files takes as long as copying them, and Python does one thing at a
time. So a process that was forked early reads each batch of files as soon as it is written.
That only works for a layer written in tar order, once each; any other is packed afterwards.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import signal
import socket
import threading
from collections.abc import Iterator

from builder.runtime.helper_process import fork_helper
from cache.digest import DiffId
from cache.entry import Entry
from cache.fs import read_exactly
from cache.index import LayerTar

_BATCH = 256  # entries; a layer of fewer is not worth another process
_LENGTH = 4  # bytes before each batch; a length of zero ends the layer


class Packer:
    """The packing process, ended by ``close``."""

    def __init__(self) -> None:
        """Fork the process. No thread may exist yet."""
        self._pid, self._control = fork_helper(_serve)
        self.free = threading.Lock()  # held by the one stream that the process packs

    def close(self) -> None:
        self._control.close()
        os.waitpid(self._pid, 0)

    def connect(self, root: int) -> socket.socket | None:
        """Start a layer in the directory open as *root*. Return None where that fails."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            socket.send_fds(self._control, [b"L"], [theirs.fileno(), root])
        except OSError:
            ours.close()
            return None
        finally:
            theirs.close()
        return ours


class Stream:
    """One layer that is sent to the packing process. It must be closed."""

    def __init__(self, packer: Packer | None, root: int) -> None:
        self._packer = packer
        self._root = root
        self._channel: socket.socket | None = None
        self._batch: list[tuple[object, ...]] = []
        self._last = ""
        self.in_order = True  # every entry came once, in tar order

    def add(self, entry: Entry) -> None:
        """Send the next member of the layer, which is completely written."""
        if not self.in_order:
            return
        key = entry.path.replace("/", "\0")  # "/" sorts first, as in a lexical walk
        if key <= self._last:
            self.spoil()
            return
        self._last = key
        if self._packer is not None:
            self._batch.append(tuple(entry))
            if len(self._batch) >= _BATCH:
                self._send()

    def spoil(self) -> None:
        """Stop: a member that was sent has changed, so the layer is packed afterwards."""
        self.in_order = False
        self.close()

    def _send(self) -> None:
        if self._channel is None and self._packer is not None and self._packer.free.acquire(blocking=False):
            self._channel = self._packer.connect(self._root)
            if self._channel is None:
                self._packer.free.release()
        data = marshal.dumps(self._batch)
        self._batch = []
        try:
            if self._channel is None:
                raise OSError("the process is busy or gone")
            self._channel.sendall(len(data).to_bytes(_LENGTH, "big") + data)
        except OSError:
            self.close()

    def finish(self) -> LayerTar | None:
        """Return the diff ID and the size of the tar, None where the layer was not packed."""
        if self._channel is None:
            return None
        if self._batch:
            self._send()
        answer = b""
        with contextlib.suppress(OSError):
            if self._channel is not None:
                self._channel.sendall(bytes(_LENGTH))
                answer = self._channel.recv(1024, socket.MSG_WAITALL)
        if not answer:
            return None
        diff_id, size = marshal.loads(answer)
        return LayerTar(DiffId(diff_id), size)

    def close(self) -> None:
        if self._channel is not None and self._packer is not None:
            self._channel.close()
            self._channel = None
            self._packer.free.release()
        self._packer = None


def _serve(control: socket.socket) -> None:
    """Pack one layer after another until the builder hangs up. Ends the process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the builder hangs up when it is stopped
    from cache.layer.pack import pack

    while True:
        message, fds, _flags, _address = socket.recv_fds(control, 1, 2)
        if not message:
            os._exit(0)
        channel, root = socket.socket(fileno=fds[0]), fds[1]
        try:
            tar = pack(root, _entries(channel), lambda data: None)
            channel.sendall(marshal.dumps((str(tar.diff_id), tar.size)))
        except Exception:  # the builder gave up, or the layer is odd: it is packed afterwards
            pass
        finally:
            channel.close()
            os.close(root)


def _entries(channel: socket.socket) -> Iterator[Entry]:
    while size := int.from_bytes(_exactly(channel, _LENGTH), "big"):
        yield from map(Entry._make, marshal.loads(_exactly(channel, size)))


def _exactly(channel: socket.socket, size: int) -> bytes:
    data = read_exactly(channel.recv, size)
    if len(data) < size:
        raise OSError("the builder went away")
    return data
