"""The child of a step in namespaces: from the first instruction after clone3 to execve.

It runs in its own user, mount, pid, uts, ipc, cgroup and (unless the machine's is asked for) net namespace.
All mounts are made in the step's own mount namespace, so the kernel removes them when the last process of the
step ends. ``order.py`` lists what is done, in order.

Nothing is imported, looked up by name service or executed between entering the image's root and execve: every
module used here was loaded by the launcher, paths and texts are bytes, and passwd is parsed by ``users.py``.
"""

import os
import signal
import socket

from builder.runtime import syscalls as sc
from builder.runtime.container.frame import Frame
from builder.runtime.container.namespaces import NamespacedStep
from builder.runtime.container.order import frame_operations, step_operations
from builder.runtime.container.process import Process
from builder.runtime.launcher.protocol import give_up, receive_spec
from builder.runtime.spec import MOST_VOLUMES, FrameSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def wait_and_run(feed: socket.socket, frame: FrameSpec, nodes: int) -> "NoReturn":
    """Prepare for *frame*, wait on *feed* for a spec, then become its step.

    The launcher sends a byte once the id maps are written. Later it sends the spec, with a detached mount of
    the store, the status channel, stdio and detached mounts of the volumes. If it hangs up instead, the
    container is no longer wanted. *nodes* is a detached mount with the step's own nodes of the devices it is
    given, -1 for the machine's own nodes.
    """
    try:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, programs count on it
        # The pipes of steps that run now must not stay open here until this one starts.
        kept = sc.keep_only([feed.detach(), nodes] if nodes >= 0 else [feed.detach()])
        feed = socket.socket(fileno=kept[0])
        if not feed.recv(1):
            os._exit(0)
        prepared, failure = Frame(kept[1] if nodes >= 0 else -1), None
        try:
            prepared.apply(frame_operations(frame))
        except Exception as error:  # reported to the step that asks for this container
            failure = error
        received = receive_spec(feed, 5, 5 + MOST_VOLUMES)
        if received is None:
            os._exit(0)
        spec, (store, channel, *more) = received
    except BaseException:  # there is nobody to report to, and nothing may unwind into the launcher
        os._exit(125)
    process = Process(channel, more[:3])
    try:
        if failure is not None:
            raise failure
        NamespacedStep(process, prepared.staging, store, more[3:]).apply(step_operations(spec))
    except BaseException as error:
        give_up(process.channel, error)
    os._exit(125)
