"""``pybuild run``: run a command in a container; its writable layer is removed at the end."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys

from builder.build.helpers import Session
from builder.cli.command_table import Invocation
from builder.cli.foreground import follow
from builder.cli.isolation import ContainerStore, enter_isolation, open_store_for_containers
from builder.cli.parser import Parser, add_isolation
from builder.cli.run_options import Changes, add_run_options, changes
from builder.cli.sandbox_options import add_sandbox_options, sandbox
from builder.cli.terminal import warn
from builder.errors import BuildError, UsageError
from builder.images.local import find, snapshots
from builder.oci.model import DEFAULT_PATH, ImageConfig
from builder.request import HOST_GATEWAY, Sandbox
from builder.run.container_spec import Process, chrooted, container_spec, drop_unasked_chroot, run_in_tree
from builder.run.failure import check_shared_network
from builder.run.mounts import make_usual_points
from builder.run.name_files import SHARED_NETWORK
from builder.runtime.isolation import CHROOT
from builder.runtime.launcher.client import Launcher
from builder.runtime.network.publish import Publisher
from builder.runtime.spec import CANNOT_EXECUTE, NOT_FOUND, VolumeSpec
from cache.layer.snapshots import draft
from grammar.structs import struct

_HOSTNAME = "pybuild"
_NO_STDIN = -1


@struct
class RunRequest:
    """A container: the image, and what the command line sets.

    ``command`` is empty for the image's own; ``stdin`` is a file descriptor, or -1 for none.
    """

    image: str
    command: tuple[str, ...]
    network: str
    stdin: int
    sandbox: Sandbox
    changes: Changes


def parser() -> Parser:
    parser = Parser("pybuild run", "Run a command in a container; its changes are removed at the end.")
    parser.add_argument(
        "--network",
        default="default",
        choices=("default", "none", "host"),
        help="network of the container (default: default)",
    )
    add_isolation(parser)
    add_run_options(parser)
    add_sandbox_options(parser)
    parser.add_argument("-i", "--interactive", action="store_true", help="pass standard input to the command")
    parser.add_argument("name", metavar="IMAGE", help="name, or start of an image ID")
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="COMMAND",
        help="command and arguments (default: the image's)",
    )
    return parser


def run(options: argparse.Namespace, invocation: Invocation) -> int:
    changed = changes(options)
    isolation = enter_isolation(options)
    opened = open_store_for_containers(options, isolation)
    network = options.network
    with (
        opened.store as store,
        Session(store, network == "default", isolation=opened.isolation) as session,
    ):
        if network == "default" and session.shares_network:
            check_shared_network()
            network = SHARED_NETWORK
        confinement = sandbox(options)
        if network in ("default", "none") and any(at == HOST_GATEWAY for _, at in confinement.hosts):
            warn("--add-host: the container cannot reach this machine; --network=host lets it")
        stdin = sys.stdin.fileno() if options.interactive else _NO_STDIN
        request = RunRequest(
            image=options.name,
            command=tuple(options.command),
            network=network,
            stdin=stdin,
            sandbox=confinement,
            changes=changed,
        )
        return run_image(opened, session.launcher, request)


def run_image(opened: ContainerStore, launcher: Launcher, request: RunRequest) -> int:
    """Run a container to its end; return its exit code, 128 + n for a signal.

    Raises BuildError, with the exit codes of a shell where the command does not exist (127) or cannot be
    executed (126).
    """
    store, chroot = opened.store, opened.isolation == CHROOT
    changes = request.changes
    if chroot and (changes.volumes or changes.ports):
        raise UsageError("-v and -p need namespaces, which this container forbids", "run pybuild doctor")
    _image, config = find(store, request.image)
    argv = _command(request, config)
    env = {"PATH": DEFAULT_PATH, **config.env, **dict(changes.env)}
    cwd = changes.cwd or config.settings.get("WorkingDir") or "/"
    user = changes.user or config.settings.get("User") or ""
    try:
        publisher = Publisher(changes.ports)
    except OSError as error:
        raise BuildError(f"listening on a port: {error.strerror}") from None
    with (
        contextlib.closing(publisher),
        draft(store, snapshots(store, config)) as made,
        contextlib.ExitStack() as held,
    ):
        process = Process(argv, env, cwd, user, request.network, _HOSTNAME)
        spec = container_spec(made, process, request.sandbox)
        spec["any_socketcall"] = config.platform.architecture == "386"
        spec["volumes"] = _volumes(changes)
        points = make_usual_points(made)
        if store.overlays and points is not None:
            spec["lowers"].insert(0, os.fsencode(points))
        if not store.overlays:
            from builder.rootfs.plain_trees import StageTrees  # few machines need them

            tree = held.enter_context(StageTrees(store, chroot).taken(made.parents))
            run_in_tree(spec, tree, store, points)
            if chroot:
                held.enter_context(chrooted(spec, tree, store))
                drop_unasked_chroot(spec, request.sandbox)
        outcome = follow(launcher, spec, request.stdin, publisher)
    if outcome.error:
        hint = "run it with --network=none or --network=host" if outcome.network_failed else ""
        failure = BuildError(outcome.error, hint)
        if outcome.code in (CANNOT_EXECUTE, NOT_FOUND):
            failure.exit_code = outcome.code
        raise failure
    return outcome.code


def _command(request: RunRequest, config: ImageConfig) -> tuple[str, ...]:
    """Return the command and its arguments. Raises UsageError if there is none."""
    settings, entrypoint = config.settings, request.changes.entrypoint
    if entrypoint is None:
        argv = (*(settings.get("Entrypoint") or ()), *(request.command or settings.get("Cmd") or ()))
    else:
        argv = (*entrypoint, *request.command)  # as in docker, --entrypoint also drops the image's CMD
    if not argv:
        raise UsageError(f"the image {request.image} names no command", "give one after the image name")
    return argv


def _volumes(changes: Changes) -> list[VolumeSpec]:
    """Return the volumes in the order of mounting: one inside another is mounted after it."""
    return [
        VolumeSpec(source=os.fsencode(source), target=os.fsencode(target), read_only=read_only)
        for source, target, read_only in sorted(changes.volumes, key=lambda volume: volume[1].count("/"))
    ]
