"""``--load``: give an image to docker or podman, whichever runs here.

Their commands have to be run as the user and in the namespaces that pybuild was started in; so a
process is forked for that before anything else is entered, and waits until an archive is complete.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess

from builder.errors import BuildError

_CHANNEL = "_PYBUILD_LOADER"  # the descriptor, for the program that is executed anew (runtime.rootless)
_DOCKER_SOCKET = "/var/run/docker.sock"
_WORDS = 4000  # bytes of an answer


def command() -> list[str]:
    """What loads an archive from standard input here; empty without docker and podman."""
    docker, podman = shutil.which("docker"), shutil.which("podman")
    if docker and (os.environ.get("DOCKER_HOST") or os.path.exists(_DOCKER_SOCKET)):
        return [docker, "load"]
    return [podman, "load"] if podman else []


def prepare() -> None:
    """Fork the process. To be called before a namespace is entered or a thread started; once is enough."""
    if _CHANNEL in os.environ:
        return
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        try:
            ours.close()
            _serve(theirs)
        finally:
            os._exit(1)
    theirs.close()
    os.set_inheritable(ours.fileno(), True)
    os.environ[_CHANNEL] = str(ours.detach())


def load(path: str) -> str:
    """Load the archive *path*; what the command said. Raises BuildError."""
    with socket.socket(fileno=int(os.environ.pop(_CHANNEL))) as channel, open(path, "rb") as file:
        try:
            socket.send_fds(channel, [b"L"], [file.fileno()])
            answer = channel.recv(_WORDS + 1)
        except OSError:
            answer = b""
    if answer[:1] == b"A":
        return answer[1:].decode("utf-8", "replace").strip()
    said = answer[1:].decode("utf-8", "replace").strip() or "its process has ended"
    raise BuildError(f"loading the image: {said}", "write it to a file instead: -o type=docker,dest=FILE")


def _serve(channel: socket.socket) -> None:
    """Run the command when there is something to load; end with the build."""
    message, fds, _flags, _address = socket.recv_fds(channel, 1, 1)
    if not message:
        os._exit(0)
    words = command()
    if not words:
        channel.send(b"E" + b"there is neither docker, running, nor podman on this machine")
        os._exit(1)
    environment = {name: value for name, value in os.environ.items() if name != _CHANNEL}
    done = subprocess.run(words, stdin=fds[0], capture_output=True, env=environment, check=False)
    if done.returncode:
        said = b"E" + os.fsencode(" ".join(words)) + b": " + done.stderr
    else:
        said = b"A" + done.stdout
    with contextlib.suppress(OSError):
        channel.send(said[:_WORDS])
    os._exit(0)
