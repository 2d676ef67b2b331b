"""``pybuild run``: a container from an image, its writable layer thrown away at the end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from builder.errors import BuildError, UsageError
from builder.execute.mounts import make_usual_points
from builder.execute.run import chroot_unasked, container_spec
from builder.image.local import find, snapshots
from builder.image.model import DEFAULT_PATH
from builder.request import Sandbox
from builder.runtime.host import Launcher, Outcome, Running
from builder.runtime.isolation import CHROOT, NAMESPACES
from builder.runtime.publish import Port, Publisher
from builder.runtime.spec import ContainerSpec, VolumeSpec
from cache.snapshots import draft
from cache.store import Store
from grammar.structs import struct

_HOSTNAME = "pybuild"


@struct
class Changes:
    """What the command line says otherwise than the image. ``entrypoint`` None: the image's.

    ``volumes`` are absolute paths of this machine, where each is shown, and whether read-only.
    """

    env: tuple[tuple[str, str], ...] = ()
    cwd: str = ""
    user: str = ""
    entrypoint: tuple[str, ...] | None = None
    volumes: tuple[tuple[str, str, bool], ...] = ()
    ports: tuple[Port, ...] = ()


def run_image(
    store: Store,
    launcher: Launcher,
    name: str,
    command: tuple[str, ...],
    mode: str,
    stdin: int,
    sandbox: Sandbox,
    changes: Changes,
    isolation: str = NAMESPACES,
) -> int:
    """Run *command* (or what the image says) in a container; its exit code, 128 + n for a signal."""
    if isolation == CHROOT and (changes.volumes or changes.ports):
        raise UsageError("-v and -p need namespaces, which this place forbids", "pybuild doctor says more")
    _image, config = find(store, name)
    settings = config.settings
    if changes.entrypoint is None:
        argv = (*(settings.get("Entrypoint") or ()), *(command or settings.get("Cmd") or ()))
    else:
        argv = (*changes.entrypoint, *command)  # as docker, which forgets the image's CMD then
    if not argv:
        raise UsageError(f"the image {name} names no command", "give one after the image name")
    env = {"PATH": DEFAULT_PATH, **config.env, **dict(changes.env)}
    try:
        publisher = Publisher(changes.ports)
    except OSError as error:
        raise BuildError(f"listening on a port: {error.strerror}") from None
    with (
        contextlib.closing(publisher),
        draft(store, snapshots(store, config)) as made,
        contextlib.ExitStack() as held,
    ):
        cwd = changes.cwd or settings.get("WorkingDir") or "/"
        user = changes.user or settings.get("User") or ""
        spec = container_spec(made, argv, env, cwd, user, mode, _HOSTNAME, sandbox)
        spec["any_socketcall"] = config.platform.architecture == "386"
        spec["volumes"] = [
            VolumeSpec(source=os.fsencode(source), target=os.fsencode(target), read_only=read_only)
            for source, target, read_only in changes.volumes
        ]
        points = make_usual_points(made)
        if store.overlays and points:
            spec["lowers"].insert(0, os.fsencode(points))
        if not store.overlays:
            from builder.execute.placing import placed  # few machines need them
            from builder.execute.stage_trees import StageTrees

            tree = held.enter_context(StageTrees(store, isolation == CHROOT).taken(made.parents))
            tree.prepare(store.path(points) if points else "")
            spec["devices_work"] = tree.devices_work
            spec["lowers"], spec["upper"] = [], os.fsencode(os.path.relpath(tree.root, store.root))
            if isolation == CHROOT:
                held.enter_context(placed(store, tree, [], spec["files"]))
                spec["files"] = {}
                spec["capabilities"] &= ~chroot_unasked(sandbox)
        outcome = _follow(launcher, spec, stdin, publisher)
    if outcome.error:
        hint = "run it with --network=none or --network=host" if outcome.network_failed else ""
        raise BuildError(outcome.error, hint)
    return outcome.code


def _follow(launcher: Launcher, spec: ContainerSpec, stdin: int, publisher: Publisher) -> Outcome:
    """Start the container and pass on what it writes until it has ended."""
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
    running.started = publisher.start
    try:
        return running.follow({out_read: _writer(1, running), err_read: _writer(2, running)})
    finally:
        running.close()
        os.close(out_read)
        os.close(err_read)


def _writer(target: int, running: Running) -> Callable[[bytes], None]:
    """Pass output on; the container ends when nobody reads it any more."""

    def write(data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(target, view) :]
        except BrokenPipeError:
            running.kill()
        except OSError:
            pass

    return write
