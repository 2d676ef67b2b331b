"""RUN --mount=type=ssh: a socket of the step that speaks for the user's ssh agent.

A step may ask which keys there are and have something signed, while it runs; whatever else an
agent can do, such as giving keys away or taking new ones, is refused here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator

from builder.errors import BuildError, SecretError
from builder.plan.ops import SshMount
from builder.request import Ssh
from builder.support.tethered import Tethered
from cache.fs import read_exactly
from cache.kernel import set_owner

# Of draft-miller-ssh-agent: what is passed on, and the answer to everything else.
_REQUEST_IDENTITIES, _SIGN_REQUEST = 11, 13
_FAILURE = struct.pack(">IB", 1, 5)
_LIMIT = 256 << 10
_MOST_CLIENTS = 32  # connections of one step at once
_START = 10.0  # seconds for an agent to come up


@contextlib.contextmanager
def agent_socket(given: Ssh, mount: SshMount, folder: str, name: str) -> Iterator[None]:
    """Provide a socket *name* in *folder*, with mode and owner of *mount*, forwarding to the agent *given*.

    Raises BuildError.
    """
    with contextlib.ExitStack() as stack:
        agent = given.socket or stack.enter_context(_own_agent(given.keys, folder))
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        top = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            listener.bind(f"/proc/self/fd/{top}/{name}")  # the name of a socket has to be short
        finally:
            os.close(top)
        path = os.path.join(folder, name)
        set_owner(path, mount.uid, mount.gid)
        os.chmod(path, mount.mode)
        listener.listen()
        thread = threading.Thread(target=_serve, args=(listener, agent), daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(listener.shutdown, socket.SHUT_RDWR)
        yield


def _serve(listener: socket.socket, agent: str) -> None:
    free = threading.BoundedSemaphore(_MOST_CLIENTS)
    while True:
        try:
            client, _address = listener.accept()
        except OSError:
            return
        if free.acquire(blocking=False):
            threading.Thread(target=_relay, args=(client, agent, free), daemon=True).start()
        else:
            client.close()


def _relay(client: socket.socket, agent: str, free: threading.BoundedSemaphore) -> None:
    """One connection: a request, its answer, and so on."""
    with contextlib.ExitStack() as stack:
        stack.callback(free.release)
        stack.enter_context(client)
        _pass_on(client, agent)


def _pass_on(client: socket.socket, agent: str) -> None:
    with contextlib.suppress(OSError, BuildError), contextlib.ExitStack() as stack:
        server: socket.socket | None = None
        while request := _message(client):
            if request[4] not in (_REQUEST_IDENTITIES, _SIGN_REQUEST):
                client.sendall(_FAILURE)
                continue
            if server is None:
                server = stack.enter_context(_connect(agent))
            server.sendall(request)
            client.sendall(_message(server) or _FAILURE)


def _message(channel: socket.socket) -> bytes:
    """A whole message with its length, b"" at the end of them. Raises OSError for a lying length."""
    head = read_exactly(channel.recv, 4)
    if len(head) < 4:
        return b""
    (length,) = struct.unpack(">I", head)
    if not 0 < length <= _LIMIT:
        raise OSError("not a message of an agent")
    return head + read_exactly(channel.recv, length)


def _connect(path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.connect(path)
    except OSError as error:
        made.close()
        raise SecretError(f"the ssh agent at {path}: {error.strerror}") from None
    return made


@contextlib.contextmanager
def _own_agent(keys: tuple[str, ...], folder: str) -> Iterator[str]:
    """An agent that holds some key files, for as long as one step runs; its socket."""
    if shutil.which("ssh-agent") is None or shutil.which("ssh-add") is None:
        raise SecretError("--ssh with a key file needs ssh-agent and ssh-add", "install an OpenSSH client")
    top = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    path = f"/proc/{os.getpid()}/fd/{top}/agent"
    process = Tethered(
        ["ssh-agent", "-D", "-a", path],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait_for(path, process)
        for key in keys:
            done = subprocess.run(
                ["ssh-add", "-q", key], env={**os.environ, "SSH_AUTH_SOCK": path, "SSH_ASKPASS": "false"},
                stdin=subprocess.DEVNULL, capture_output=True, check=False, start_new_session=True,
            )  # fmt: skip
            if done.returncode:
                said = done.stderr.decode("utf-8", "replace").strip().split("\n")[-1]
                raise SecretError(f"--ssh: reading the key {key}: {said}")
        yield path
    finally:
        process.release()
        process.wait()
        os.close(top)


def _wait_for(path: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START
    while not os.path.exists(path):
        if process.poll() is not None or time.monotonic() > end:
            raise SecretError("ssh-agent did not start")
        time.sleep(0.01)
