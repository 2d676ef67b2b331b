"""``pybuild run``: a container from an image, its writable layer thrown away at the end."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator

from builder.errors import BuildError, UsageError
from builder.images.local import find, snapshots
from builder.oci.model import DEFAULT_PATH
from builder.request import Sandbox
from builder.run.mounts import make_usual_points
from builder.runtime.isolation import CHROOT, NAMESPACES
from builder.runtime.launcher.client import Launcher, Outcome, Running
from builder.runtime.network.publish import Port, Publisher
from builder.runtime.spec import CANNOT_EXECUTE, NOT_FOUND, ContainerSpec, VolumeSpec
from builder.steps.run import chrooted, container_spec, drop_unasked_chroot, run_in_tree
from builder.support.stdout import write_all
from cache.layer.snapshots import draft
from cache.store import Store
from grammar.structs import struct

_HOSTNAME = "pybuild"
_PASSED_ON = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT),
    *(signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2),
)
_OF_A_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
_MOST_SIGNALS = 2  # what comes then kills, as with docker


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
    """Run *command* (or what the image says) in a container; its exit code, 128 + n for a signal.

    Raises BuildError, with the exit code 127 for a command that is not there and 126 for one that cannot be
    executed, as a shell has them.
    """
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
            # A volume inside another one is mounted after it, whatever the order they are given in.
            for source, target, read_only in sorted(changes.volumes, key=lambda volume: volume[1].count("/"))
        ]
        points = make_usual_points(made)
        if store.overlays and points:
            spec["lowers"].insert(0, os.fsencode(points))
        if not store.overlays:
            from builder.rootfs.plain_trees import StageTrees  # few machines need them

            tree = held.enter_context(StageTrees(store, isolation == CHROOT).taken(made.parents))
            run_in_tree(spec, tree, store, points)
            if isolation == CHROOT:
                held.enter_context(chrooted(spec, tree, store))
                drop_unasked_chroot(spec, sandbox)
        outcome = _follow(launcher, spec, stdin, publisher)
    if outcome.error:
        hint = "run it with --network=none or --network=host" if outcome.network_failed else ""
        failure = BuildError(outcome.error, hint)
        if outcome.code in (CANNOT_EXECUTE, NOT_FOUND):
            failure.exit_code = outcome.code
        raise failure
    return outcome.code


def _follow(launcher: Launcher, spec: ContainerSpec, stdin: int, publisher: Publisher) -> Outcome:
    """Start the container and pass on signals, and what it writes, until it has ended.

    Raises BuildError where what it writes cannot be.
    """
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
    passing = _Passing(running, publisher.start)
    try:
        with passing.signals():
            outcome = running.follow({out_read: passing.writer(1), err_read: passing.writer(2)})
    finally:
        running.close()
        os.close(out_read)
        os.close(err_read)
    if passing.failure:
        raise BuildError(f"writing to standard output what the container wrote: {passing.failure}")
    return Outcome(128 + passing.ended_by) if passing.ended_by else outcome


class _Passing:
    """Passes signals to a container, and what it writes to where this process writes.

    ``ended_by`` is the signal that it had to be killed for, ``failure`` why its output could not be written.
    """

    def __init__(self, running: Running, started: Callable[[int], None]) -> None:
        self.ended_by = 0
        self.failure = ""
        self._running = running
        self._pidfd = -1
        self._signals = 0

        def note(pidfd: int) -> None:
            self._pidfd = pidfd
            started(pidfd)

        running.started = note

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Inside, signals go to the container; but for those that are ignored, as nohup has it."""
        taken = [number for number in _PASSED_ON if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._pass) for number in taken}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass(self, number: int, _frame: object) -> None:
        """The command gets it; what a terminal sends, all of its processes.

        The kernel keeps from the first process of a pid namespace what would end it by default: then, before
        it runs, and when somebody insists, it is killed.
        """
        self._signals += 1
        if self._signals > _MOST_SIGNALS:
            self._end(signal.SIGKILL)
            return
        pid = _pid(self._pidfd) if self._pidfd >= 0 else -1
        if pid < 0 or _is_kept_from(pid, number):
            self._end(number)
            return
        with contextlib.suppress(OSError):  # it has ended
            if number in _OF_A_TERMINAL and pid and os.getpgid(pid) == pid:
                os.killpg(pid, number)
            else:
                signal.pidfd_send_signal(self._pidfd, number)

    def _end(self, number: int) -> None:
        self.ended_by = self.ended_by or number
        self._running.kill()

    def writer(self, target: int) -> Callable[[bytes], None]:
        """Pass output on; the container ends when nobody reads it any more, as programs in a pipe do."""

        def write(data: bytes) -> None:
            try:
                write_all(target, data)
            except BrokenPipeError:
                self._end(signal.SIGPIPE)
            except OSError as error:
                if target == 1 and error.errno != errno.EBADF:  # of one that was closed nobody wants to hear
                    self.failure = error.strerror or ""
                    self._running.kill()

        return write


def _pid(pidfd: int) -> int:
    """The number of a process, 0 when it has ended."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        said = dict(line.split(":", 1) for line in file)
    return max(0, int(said["Pid"]))


def _is_kept_from(pid: int, number: int) -> bool:
    """Whether a process does not get a signal: the first of its pid namespace, if it did not ask for it."""
    if not pid:
        return False
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            said = dict(line.split(":", 1) for line in file)
        asked = int(said["SigCgt"], 16) | int(said["SigIgn"], 16)
        return said["NSpid"].split()[-1] == "1" and not asked >> (number - 1) & 1
    except (OSError, KeyError, ValueError):
        return False  # it has ended
