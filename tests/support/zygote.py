"""Start ``pybuild`` without waiting for Python: a process that has imported all of it forks for each command.

A fork differs from a process that was executed in this alone: its modules are imported already, its hash
seed is its parent's, and /proc shows the parent's command line and environment. The parent imports, and
runs nothing of the program but the making of parsers. Tests of start-up, of signals, and of what is seen
from outside execute the command itself.

A request is one message on a socket of packets, with four descriptors: a channel, standard input, output
and error. On the channel the child reads what it has to be, and the caller reads how it ended. A caller
that closes the channel ends the child.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import io
import os
import pickle
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
# What Python reads as it starts.
START = ("PYTHON", "LC_", "LANG", "LD_", "TZ", "MALLOC_", "GCONV_PATH")
UTF8 = "C.UTF-8"
_PR_SET_PDEATHSIG = 1


class Invocation(NamedTuple):
    """What a child has to be."""

    argv: list[str]
    env: dict[str, str]
    cwd: str


def can_be(environment: Mapping[str, str]) -> bool:
    """Whether a fork is what a process executed with *environment* would be: Python read the same at its start."""
    return environment == {
        **{k: v for k, v in environment.items() if not k.startswith(START)},
        "LC_ALL": UTF8,
    }


class Zygote:
    """The process that forks, started when it is first needed and anew after it was killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def start(self, environment: Mapping[str, str]) -> None:
        """Start the process, unless it runs. *environment* shows in /proc as that of its children, too."""
        if self._process and self._process.poll() is None:
            return
        if self._control:
            self._control.close()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                env={**environment, "LC_ALL": UTF8}, cwd="/", pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def stop(self) -> None:
        """End the process and what it has started."""
        if self._process and self._control:
            self._control.close()
            self._process.wait(10)
            self._process = None

    def run(self, invocation: Invocation, stdin: bytes, timeout: float) -> tuple[int, bytes, bytes]:
        """Run a command as ``subprocess.run`` does; its exit code, output and errors."""
        assert self._control
        channel, theirs = socket.socketpair()
        pipes = [os.pipe() for _ in range(3)]
        (feed, put), (out, said), (err, told) = pipes[0], pipes[1], pipes[2]
        try:
            socket.send_fds(self._control, [b"R"], [theirs.fileno(), feed, said, told])
        finally:
            for fd in (feed, said, told):
                os.close(fd)
            theirs.close()
        with channel, open(put, "wb", 0) as to, open(out, "rb", 0) as one, open(err, "rb", 0) as other:
            channel.sendall(pickle.dumps(tuple(invocation)))
            channel.shutdown(socket.SHUT_WR)
            output, errors = _converse(to, stdin, one, other, time.monotonic() + timeout)
            channel.settimeout(timeout)
            answer = channel.recv(4)
            assert len(answer) == 4, "the process that forks has been killed"
        return int.from_bytes(answer, "little", signed=True), output, errors


def _converse(
    to: io.FileIO, data: bytes, one: io.FileIO, other: io.FileIO, end: float
) -> tuple[bytes, bytes]:
    """Write *data* to a process, and read both its outputs to their ends."""
    outputs: dict[int, list[bytes]] = {one.fileno(): [], other.fileno(): []}
    poll = select.poll()
    for fd in outputs:
        poll.register(fd, select.POLLIN)
    rest = memoryview(data)
    os.set_blocking(to.fileno(), False)
    if rest:
        poll.register(to.fileno(), select.POLLOUT)
    else:
        to.close()
    left = len(outputs)
    while left:
        ready = poll.poll(max(end - time.monotonic(), 0) * 1000)
        if not ready:
            raise TimeoutError("pybuild has not ended in time")
        for fd, _ in ready:
            if fd not in outputs:
                try:
                    rest = rest[to.write(rest) or 0 :]
                except BrokenPipeError:
                    rest = rest[:0]
                if not rest:
                    poll.unregister(fd)
                    to.close()
            elif got := os.read(fd, 1 << 16):
                outputs[fd].append(got)
            else:
                poll.unregister(fd)
                left -= 1
    first, second = outputs.values()
    return b"".join(first), b"".join(second)


# -- in the process that forks -------------------------------------------------------------


def serve(control: socket.socket) -> None:
    """Fork for each request until the caller is gone."""
    running: dict[int, tuple[int, socket.socket]] = {}  # of pidfd and of channel: pid and channel
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == control.fileno():
                message, fds, _flags, _address = socket.recv_fds(control, 1, 4)
                if not message:
                    os._exit(0)
                pid = os.fork()
                if not pid:
                    _become(fds)
                for other in fds[1:]:
                    os.close(other)
                pidfd = os.pidfd_open(pid)
                running[pidfd] = pid, socket.socket(fileno=fds[0])
                poll.register(pidfd, select.POLLIN)
            else:
                pid, channel = running.pop(fd)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                poll.unregister(fd)
                os.close(fd)
                with channel:
                    try:
                        channel.sendall(code.to_bytes(4, "little", signed=True))
                    except OSError:
                        pass  # nobody waits for it


def _become(fds: list[int]) -> None:
    """Be the command, in a process that was just forked."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for number, fd in enumerate(fds[1:]):
            os.dup2(fd, number)
        with socket.socket(fileno=fds[0]) as channel:
            chunks = []
            while got := channel.recv(1 << 16):
                chunks.append(got)
        os.closerange(3, 1 << 20)
        invocation = Invocation(*pickle.loads(b"".join(chunks)))
        os.environ.clear()
        os.environ.update(invocation.env)
        os.chdir(invocation.cwd)
        sys.argv = invocation.argv
        sys.orig_argv = [sys.executable, *sys.argv]
        sys.stdin = io.TextIOWrapper(
            io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8", "surrogateescape"
        )
        sys.stdout = _writer(1, "surrogateescape")
        sys.stderr = _writer(2, "backslashreplace")
        gc.enable()
        from builder.cli.main import main

        main()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(1)


def _writer(fd: int, errors: str) -> io.TextIOWrapper:
    """A standard output as Python opens it."""
    buffering = 1 if fd == 2 or os.isatty(fd) else -1
    return open(fd, "w", buffering, encoding="utf-8", errors=errors, closefd=False)


def _prepare() -> None:
    """Import all that a command may import, and make what each build would make anew."""
    sys.path.insert(0, str(ROOT))
    for package in ("builder", "cache", "grammar"):
        found = importlib.import_module(package)
        for module in pkgutil.walk_packages(found.__path__, package + "."):
            importlib.import_module(module.name)
    from grammar.parse import parse

    parse("FROM scratch\n")
    gc.collect()
    gc.disable()
    gc.freeze()


if __name__ == "__main__":
    own = socket.socket(fileno=int(sys.argv[1]))
    _prepare()
    serve(own)
