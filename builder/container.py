"""``pybuild run``: a container from an image, its writable layer thrown away at the end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from builder.errors import BuildError, UsageError
from builder.execute import copies
from builder.execute.run import container_spec
from builder.image.local import find, snapshots
from builder.image.model import DEFAULT_PATH
from builder.request import Sandbox
from builder.runtime.host import Launcher
from cache.snapshots import draft
from cache.store import Store

_HOSTNAME = "pybuild"


def run_image(
    store: Store,
    launcher: Launcher,
    name: str,
    command: tuple[str, ...],
    mode: str,
    stdin: int,
    sandbox: Sandbox,
) -> int:
    """Run *command* (or what the image says) in a container; its exit code, 128 + n for a signal."""
    _image, config = find(store, name)
    settings = config.settings
    argv = (*(settings.get("Entrypoint") or ()), *(command or settings.get("Cmd") or ()))
    if not argv:
        raise UsageError(f"the image {name} names no command", "give one after the image name")
    env = {"PATH": DEFAULT_PATH, **config.env}
    with draft(store, snapshots(store, config)) as made:
        if not store.overlays:
            copies.fill(made)
        cwd, user = settings.get("WorkingDir") or "/", settings.get("User") or ""
        spec = container_spec(made, argv, env, cwd, user, mode, _HOSTNAME, sandbox)
        spec["any_socketcall"] = config.platform.architecture == "386"
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        out_read, out_write = os.pipe2(os.O_CLOEXEC)
        err_read, err_write = os.pipe2(os.O_CLOEXEC)
        for fd in (out_write, err_write):
            os.fchmod(fd, 0o222)  # so that any user of the container can open /dev/stdout
        try:
            running = launcher.start(spec, null if stdin < 0 else stdin, out_write, err_write)
        finally:
            for fd in (null, out_write, err_write):
                os.close(fd)
        try:
            outcome = running.follow({out_read: _writer(1), err_read: _writer(2)})
        finally:
            running.close()
            os.close(out_read)
            os.close(err_read)
    if outcome.error:
        hint = "run it with --network=none or --network=host" if outcome.network_failed else ""
        raise BuildError(outcome.error, hint)
    return outcome.code


def _writer(target: int) -> Callable[[bytes], None]:
    """Pass output on; a reader that went away is no reason to stop."""

    def write(data: bytes) -> None:
        view = memoryview(data)
        with contextlib.suppress(OSError):
            while view:
                view = view[os.write(target, view) :]

    return write
