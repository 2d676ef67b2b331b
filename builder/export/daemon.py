"""``--load``: load an image into docker or podman.

Their commands must run as the user and in the namespaces that pybuild was started in. So a process is
forked for them before a namespace is entered. It waits until an archive is complete.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import subprocess
import tempfile

from builder.errors import OutputError
from builder.runtime.helper_process import fork_helper

_CHANNEL = "_PYBUILD_LOADER"  # the descriptor, for the program that is executed anew (runtime.rootless)
_DOCKER_SOCKET = "/var/run/docker.sock"
_WORDS = 4000  # bytes of an answer


def command() -> list[str]:
    """Return the command that loads an archive from standard input; empty without docker and podman."""
    docker, podman = shutil.which("docker"), shutil.which("podman")
    if docker and (os.environ.get("DOCKER_HOST") or os.path.exists(_DOCKER_SOCKET)):
        return [docker, "load"]
    return [podman, "load"] if podman else []


def prepare() -> None:
    """Fork the process, once. Call this before a namespace is entered or a thread is started."""
    if _CHANNEL in os.environ:
        return
    channel = fork_helper(_serve).socket
    os.set_inheritable(channel.fileno(), True)
    os.environ[_CHANNEL] = str(channel.detach())


def load(path: str) -> str:
    """Load the archive *path* and return the output of the command. Raises BuildError."""
    with socket.socket(fileno=os.dup(int(os.environ[_CHANNEL]))) as channel, open(path, "rb") as file:
        try:
            socket.send_fds(channel, [b"L"], [file.fileno()])
            answer = channel.recv(_WORDS + 1)
        except OSError:
            answer = b""
    if answer[:1] == b"A":
        return answer[1:].decode("utf-8", "replace").strip()
    said = answer[1:].decode("utf-8", "replace").strip() or "its process has ended"
    raise OutputError(
        f"loading the image: {said}", "write it to a file instead: -o type=docker,dest=FILE", code="E-DAEMON"
    )


def _serve(channel: socket.socket) -> None:
    """Run the command for each archive, until the build ends."""
    environment = {name: value for name, value in os.environ.items() if name != _CHANNEL}
    while True:
        message, fds, _flags, _address = socket.recv_fds(channel, 1, 1)
        if not message:
            return
        words = command()
        if not words:
            channel.send(b"E" + b"there is neither docker, running, nor podman on this machine")
            continue
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(words, stdin=fds[0], stdout=out, stderr=err, env=environment)
            os.close(fds[0])
            _await(process, channel)
            out.seek(0)
            err.seek(0)
            if process.returncode:
                said = b"E" + os.fsencode(" ".join(words)) + b": " + err.read(_WORDS)
            else:
                said = b"A" + out.read(_WORDS)
        with contextlib.suppress(OSError):
            channel.send(said[:_WORDS])


def _await(process: subprocess.Popen[bytes], channel: socket.socket) -> None:
    """Wait until *process* has ended; kill it if the build ends first."""
    pidfd = os.pidfd_open(process.pid)
    ready, _, _ = select.select([pidfd, channel.fileno()], [], [])
    if pidfd not in ready:
        process.kill()
    process.wait()
    os.close(pidfd)
