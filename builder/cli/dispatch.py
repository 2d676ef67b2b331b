"""The command line: arguments to requests, exceptions to messages and exit codes.

The only module, but for ``main`` at start and end, that prints errors and decides how the process ends.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from builder.cli.options import COMMANDS, Parser, add_isolation, build_parser, build_request, call_method
from builder.cli.output_options import outputs
from builder.cli.sandbox_options import add_options, sandbox
from builder.copy.filters import SeenContext
from builder.errors import BuildError, Cancelled, ChecksFailed, UsageError
from builder.support.paths import why_missing
from builder.support.stdout import write_all
from cache.errors import CacheError
from cache.store import Store, default_root

_IMAGE_COMMANDS = ("images", "pull", "push", "login", "logout", "tag", "rmi", "reset", "inspect", "history")
_DOCKERFILE_PEEK = 16 << 20
_PATIENCE = 1.5  # seconds that a cancelled command has to end in


def run(argv: Sequence[str], look: SeenContext | None = None) -> int:
    """Run the command line *argv*; returns the exit code. *look* is what replay has seen."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _cancel)
    name, rest = _command(argv)
    try:
        commands: dict[str, Callable[[Sequence[str]], int]] = {
            "build": lambda args: _build(args, argv, look),
            "save": _save,
            "load": _load,
            "import": _import,
            "run": _run,
            "doctor": _doctor,
        }
        if name in _IMAGE_COMMANDS:
            return _image_command(name, rest)
        return commands[name](rest)
    except (KeyboardInterrupt, Cancelled):
        kept = "; nothing was tagged, finished steps stay cached" if name == "build" else ""
        _say(f"pybuild: cancelled{kept}")
        return Cancelled.exit_code
    except BuildError as error:
        return _explain(error, error.exit_code, error.excerpt)
    except CacheError as error:
        return _explain(error, BuildError.exit_code, "")
    except OSError as error:
        if failure := _of_this_place(error):
            return _explain(failure, BuildError.exit_code, "")
        raise


def _of_this_place(error: OSError) -> BuildError | None:
    """What *error* says of where this runs: that the working directory is gone, or /proc not mounted."""
    name = os.fsdecode(error.filename or "")
    if name.startswith("/proc/"):
        return BuildError(f"{name}: {error.strerror}", "is /proc mounted here, with all that is in it?")
    try:
        os.getcwd()
    except OSError:
        return BuildError("the working directory has been removed", "change to one that is there")
    return None


def _command(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The command, and its arguments; the store may be named before it, too. Without one it is a build."""
    words, ahead = list(argv), list[str]()
    while words and (words[0] == "--root" or words[0].startswith("--root=")):
        count = 2 if words[0] == "--root" else 1
        ahead, words = ahead + words[:count], words[count:]
    if words and words[0] in COMMANDS:
        return words[0], ahead + words[1:]
    return "build", list(argv)


def _image_command(name: str, args: Sequence[str]) -> int:
    from builder.cli.commands import images

    command: Callable[[Sequence[str], images.Tools], int] = getattr(images, name)
    return command(args, images.Tools(Parser, _print, _sink, _enter, _warn))


def _cancel(number: int, frame: object) -> NoReturn:
    threading.Thread(target=_insist, daemon=True).start()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Cancelled


def _insist() -> None:
    """End this process, should it not end by itself: what it writes to may have stopped reading.

    The helpers end with it, and with them all steps.
    """
    time.sleep(_PATIENCE)
    if select.select([], [2], [], 0)[1]:
        os.write(2, b"pybuild: cancelled\n")
    os._exit(Cancelled.exit_code)


def _say(text: str) -> None:
    try:
        sys.stderr.write(text + "\n")
    except OSError:
        pass


def _warn(text: str) -> None:
    from builder.progress.lines import printable
    from grammar.redact import redacted

    _say(f"warning: {printable(redacted(text))}")


def _print(text: str) -> None:
    """Write a line of results to standard output. Raises BuildError when it cannot be written."""
    try:
        write_all(1, (text + "\n").encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise BuildError(f"writing to standard output: {error.strerror}") from None


def _explain(error: BuildError | CacheError, code: int, excerpt: str) -> int:
    from builder.progress.lines import printable
    from grammar.redact import redacted

    if excerpt:
        _say("\n".join(printable(line) for line in excerpt.split("\n")))
    _say(f"error: {printable(redacted(error.message))}")
    if error.hint:
        _say(f"hint: {printable(redacted(error.hint))}")
    return code


def _open_store(options: argparse.Namespace) -> Store:
    return Store(options.root or default_root())


# -- build ---------------------------------------------------------------------------------


def _build(args: Sequence[str], argv: Sequence[str], look: SeenContext | None) -> int:
    options = build_parser().parse_args(args)
    method, as_json = call_method("check" if options.check else options.call)
    if method != "build":
        return _call(method, as_json, options)
    for path in (options.iidfile, options.metadata_file):
        _forget(path)
    if any(output.kind == "docker" and not output.dest for output in outputs(options)):
        from builder.export.daemon import prepare

        prepare()
    isolation = _enter(options)
    # The helpers are forked while this process is small and has no threads.
    from builder.build.helpers import Session

    words = _words(options)
    network = options.network == "default" and b"run" in words
    copies = b"copy" in words or b"add" in words
    opened, isolation = _store_for_containers(options, isolation)
    with opened as store, Session(store, network, copies, isolation) as session:
        request = build_request(options)
        from builder.build.inputs import read_inputs
        from builder.build.metadata import Recorder
        from builder.build.pipeline import build, shown_findings, warn_unused
        from builder.environment import Workshop
        from builder.replay.record import remember

        sink = _sink(options)
        recorder = Recorder(sink)
        workshop = Workshop(
            store, session.launcher, session.packer, request.secrets, request.ssh, recorder, isolation
        )
        workshop.shares_network = session.shares_network
        findings: list[Any] = []
        try:
            inputs = read_inputs(request, workshop)
            try:
                result, plan, solver = build(request, inputs, workshop, session, look, findings)
            except (BuildError, CacheError) as error:
                if not isinstance(error, ChecksFailed):
                    _tell(shown_findings(findings, inputs), sink, options)
                raise
            warn_unused(result, sink)
            if request.metadata_file:
                recorder.write(request.metadata_file, result, request.names)
            if options.progress == "rawjson":
                _tell(result.warnings, sink, options)
        finally:
            sink.close()
        if options.progress != "rawjson":  # which is asked for to be told
            remember(argv, request, inputs, result, plan, solver, workshop, options.quiet, _silent(options))
    _conclude(options, result, request.names)
    return 0


def _forget(path: str) -> None:
    """Have nothing of an earlier build in the result file *path*: should this one fail, there is none.

    Of a link, what it leads to is emptied; devices and pipes stay. Raises BuildError.
    """
    try:
        kind = os.lstat(path).st_mode if path else 0
        if stat.S_ISREG(kind):
            os.unlink(path)
        elif stat.S_ISLNK(kind) and os.path.isfile(path):
            os.truncate(path, 0)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise BuildError(f"removing the old {path}: {error.strerror}") from None


def _call(method: str, as_json: bool, options: argparse.Namespace) -> int:
    if not os.path.isdir(options.context):
        _enter(options)  # what is fetched or read is unpacked
    from builder.build.inputs import read_inputs
    from builder.cli.commands.check import call
    from builder.environment import Workshop
    from builder.progress.quiet import Quiet

    with _open_store(options) as store:
        request = build_request(options)
        workshop = Workshop(store, None, None, request.secrets, request.ssh, Quiet(sys.stderr))
        answer, code = call(method, request, read_inputs(request, workshop), workshop, as_json)
    _print(answer.removesuffix("\n"))
    return code


def _words(options: argparse.Namespace) -> bytes:
    """The Dockerfile's text in lower case: which steps it can have at all, before it is parsed."""
    if options.context == "-" or options.file == "-":
        return b"run copy"  # that will be seen when it is read
    names = [options.file] if options.file else ["Dockerfile", "dockerfile"]
    from cache.kernel import read_regular

    for name in names:
        with contextlib.suppress(OSError):  # the build says why
            path = os.path.join("" if options.file else options.context, name)
            real = os.path.realpath(path) if options.file else path
            return read_regular(real, _DOCKERFILE_PEEK).lower()
    return b""


def _silent(options: argparse.Namespace) -> bool:
    return bool(options.quiet or options.progress == "quiet")


def _sink(options: argparse.Namespace) -> Any:
    if _silent(options):
        from builder.progress.quiet import Quiet

        return Quiet(sys.stderr)
    if options.progress == "rawjson":
        from builder.progress.rawjson import RawJson

        return RawJson(sys.stderr)
    if options.progress == "tty" or (options.progress == "auto" and sys.stderr.isatty()):
        from builder.progress.tty import Tty

        return Tty(sys.stderr)
    from builder.progress.plain import Plain

    return Plain(sys.stderr)


def _conclude(options: argparse.Namespace, result: Any, tags: tuple[str, ...]) -> None:
    from builder.progress.lines import conclusion

    if options.quiet:
        if not any(output.dest == "-" for output in outputs(options)):  # which is that output's alone
            _print(result.image)
    elif not _silent(options) and options.progress != "rawjson":
        shown = list(conclusion(result.image, tags, result.warnings))
        _say("\n".join([*shown, *(f"image {image} for {platform}" for platform, image in result.images)]))


def _tell(warnings: Sequence[str], sink: Any, options: argparse.Namespace) -> None:
    """Say what the checks have found, also of a build that failed."""
    if options.progress == "rawjson" and not options.quiet:
        for warning in warnings:
            sink.warn(warning)
    elif not _silent(options):
        from builder.progress.lines import found

        sink.close()
        for text in found(warnings):
            _say(text)


def _enter(options: argparse.Namespace) -> str:
    """Be root, as we are or in a user namespace of our own, and return how steps are isolated.

    The store stays that of the user who started this. Raises BuildError.
    """
    from builder.runtime import isolation, probe
    from builder.runtime.rootless import is_real_root, leave_chroot

    wanted = getattr(options, "isolation", "auto")
    if wanted == isolation.CHROOT:
        if missing := probe.missing_for_chroot():
            raise BuildError(f"--isolation=chroot cannot be had here: {missing}", _no_isolation_hint(missing))
        return isolation.CHROOT
    if is_real_root():
        leave_chroot()
        return isolation.NAMESPACES
    if os.geteuid() == 0 and wanted == "auto" and probe.missing_for_namespaces():
        if not (missing := probe.missing_for_chroot()):
            return isolation.CHROOT
        raise BuildError(
            f"this place allows neither namespaces nor what stands in for them: {missing}",
            _no_isolation_hint(missing),
        )
    os.environ["PYBUILD_ROOT"] = options.root or default_root()
    _enter_namespace()
    return isolation.NAMESPACES


def _no_isolation_hint(missing: str) -> str:
    """What to change where steps cannot even be chrooted."""
    if "CAP_" not in missing:
        return "pybuild doctor says what this place allows, and docs/containers.md what to change"
    return (
        "give root of the container the capabilities CHOWN, DAC_OVERRIDE, FOWNER, SETGID, SETUID and "
        "SYS_CHROOT, as docker and podman do, or user namespaces (a pod with hostUsers: false); "
        "docs/containers.md has more"
    )


def _enter_namespace() -> None:
    from builder.runtime.rootless import RootlessError, enter

    try:
        enter()
    except RootlessError as error:
        raise BuildError(error.message, error.hint) from None


def _store_for_containers(options: argparse.Namespace, isolation: str) -> tuple[Store, str]:
    """The store, and how steps on it are isolated: by *isolation*, or by chroot where nothing can be mounted.

    For namespaces its file system must be mountable with mapped ids; else root, too, enters one of its own.
    """
    from builder.runtime.isolation import CHROOT, NAMESPACES
    from builder.runtime.probe import (
        can_map_mounts,
        can_overlay,
        missing_for_chroot,
        missing_for_namespaces,
    )
    from builder.runtime.rootless import entered

    store = _open_store(options)
    if isolation == NAMESPACES and not entered() and not _remembered(store, "mapped mounts", can_map_mounts):
        if (
            getattr(options, "isolation", "auto") == "auto"
            and missing_for_namespaces()
            and not missing_for_chroot()
        ):
            isolation = CHROOT
        else:
            store.close()
            _enter_namespace()
            store = _open_store(options)
    store.check_owners()
    if isolation == CHROOT and os.statvfs(store.root).f_flag & os.ST_NOEXEC:
        store.close()
        raise BuildError(
            f"programs may not be executed on the file system of {store.root} (noexec)",
            "use another --root or PYBUILD_ROOT",
        )
    store.overlays = isolation == NAMESPACES and _remembered(store, "overlays", can_overlay)
    return store, isolation


def _remembered(store: Store, what: str, probe: Callable[[str], bool]) -> bool:
    """What a probe says of the store's file system; that it can is asked once in each boot and by each user.

    Users are told apart by their ids where a namespace was entered, else by the namespace.
    """
    from builder.runtime.rootless import entered

    who = os.readlink("/proc/self/ns/user")
    if entered():
        with open("/proc/self/uid_map", encoding="ascii") as file:
            who = " ".join(file.read().split())
    device = os.stat(store.root).st_dev
    if store.memos.probe_succeeded(what, who, device):
        return True
    if not probe(store.temporary()):
        return False
    store.memos.set_probe_succeeded(what, who, device)
    return True


# -- images --------------------------------------------------------------------------------


def _save(args: Sequence[str]) -> int:
    parser = Parser(
        prog="pybuild save",
        description="Write images to an archive that docker, podman and containerd load.",
    )
    parser.add_argument("name", nargs="+", metavar="NAME")
    parser.add_argument(
        "-o", "--output", default="-", metavar="FILE", help="where to (default: standard output)"
    )
    options = parser.parse_args(args)
    from builder.export.archive import write_archive
    from builder.export.image import Form, form, picture
    from builder.images.local import find, names_for
    from builder.oci.model import ImageConfig
    from cache.digest import Digest

    options.progress, options.quiet = "auto", False
    _enter(options)
    with _open_store(options) as store:
        wanted: dict[Digest, tuple[ImageConfig, dict[str, None]]] = {}  # an image once, under all its names
        for name in options.name:
            image, config = find(store, name)
            names = wanted.setdefault(image, (config, {}))[1]
            names |= dict.fromkeys(names_for(store, name, image))
        sink = _sink(options)
        try:
            images = []
            for image, (config, names) in wanted.items():
                formed = form(store, image, config, Form(), sink)
                images.append((picture(store, [(formed, config.platform)]), tuple(names)))
            write_archive(store, images, options.output, sink, docker=True)
        finally:
            sink.close()
    return 0


def _load(args: Sequence[str]) -> int:
    parser = Parser(prog="pybuild load", description="Load an OCI or docker archive into the store.")
    parser.add_argument(
        "file",
        nargs="?",
        default="",
        metavar="FILE",
        help="an archive, or an OCI layout folder (default: standard input)",
    )
    parser.add_argument("-i", "--input", default="-", metavar="FILE", help="the same, as docker has it")
    options = parser.parse_args(args)
    if options.file and options.input != "-":
        raise UsageError(
            "two archives are given", f"load {options.file} and {options.input} one after the other"
        )
    place = options.file or options.input
    if place == "-" and sys.stdin.isatty():
        raise UsageError("no archive is given", "name a file, or redirect standard input")
    from builder.images.load import load, load_folder

    _enter(options)
    if os.path.isdir(place):
        with _open_store(options) as store:
            for name in load_folder(store, place):
                _print(f"loaded {name}")
            store.sync()
        return 0
    with _open_store(options) as store, _input(place) as file, _metered(file, "loading") as read:
        for name in load(store, read):
            _print(f"loaded {name}")
        store.sync()
    return 0


def _import(args: Sequence[str]) -> int:
    parser = Parser(
        prog="pybuild import",
        description="Make an image of one layer from a root file system's tar (gz, xz, zst too).",
    )
    parser.add_argument("file", metavar="TAR", help='the tar, "-" for standard input')
    parser.add_argument("name", metavar="NAME")
    options = parser.parse_args(args)
    from builder.images.local import from_root, new_name, rename
    from cache.kernel import ONE_ID, keeps_owners
    from cache.layer.blobs import add_tar

    _enter(options)
    name = new_name(options.name)
    if not keeps_owners():
        _say(f"warning: {ONE_ID}")
    with _open_store(options) as store, _input(options.file) as file, _metered(file, "importing") as read:
        image = from_root(store, add_tar(store, read), os.path.basename(options.file))
        store.sync()
        rename(store, name, image)
    _print(image)
    return 0


def _input(path: str) -> Any:
    try:
        return open(0 if path == "-" else path, "rb")
    except OSError as error:
        raise BuildError(f"reading {path}: {error.strerror}{why_missing(path)}") from None


@contextlib.contextmanager
def _metered(file: Any, label: str) -> Iterator[Callable[[int], bytes]]:
    """A read function over *file*, with a bar on a terminal."""
    if not sys.stderr.isatty():
        yield file.read
        return
    from builder.events import Meter
    from builder.progress.tty import Tty

    sink = Tty(sys.stderr)
    meter = Meter(label, os.fstat(file.fileno()).st_size, sink)

    def read(count: int) -> bytes:
        data: bytes = file.read(count)
        meter.add(len(data))
        return data

    try:
        yield read
    finally:
        sink.close()


# -- run -----------------------------------------------------------------------------------


def _run(args: Sequence[str]) -> int:
    parser = Parser(
        prog="pybuild run",
        description="Run a container from an image; what it writes is thrown away at its end.",
    )
    from builder.cli.run_options import add_run_options, changes

    parser.add_argument("--network", default="default", choices=("default", "none", "host"))
    add_isolation(parser)
    add_run_options(parser)
    add_options(parser)
    parser.add_argument("-i", "--interactive", action="store_true", help="pass standard input on")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="CMD")
    options = parser.parse_args(args)
    wanted = changes(options)
    isolation = _enter(options)
    from builder.build.helpers import Session
    from builder.request import HOST_GATEWAY

    opened, isolation = _store_for_containers(options, isolation)
    with opened as store, Session(store, options.network == "default", isolation=isolation) as session:
        from builder.cli.commands.run import run_image
        from builder.steps.run import SHARED_NETWORK, check_shared_network

        if options.network == "default" and session.shares_network:
            check_shared_network()
            options.network = SHARED_NETWORK
        if options.network in ("default", "none") and any(
            at == HOST_GATEWAY for _, at in sandbox(options).hosts
        ):
            _warn("--add-host: the container cannot reach this machine; --network=host lets it")
        return run_image(
            store,
            session.launcher,
            options.name,
            tuple(options.command),
            options.network,
            sys.stdin.fileno() if options.interactive else -1,
            sandbox(options),
            wanted,
            isolation,
        )


# -- doctor --------------------------------------------------------------------------------


def _doctor(args: Sequence[str]) -> int:
    parser = Parser(
        prog="pybuild doctor",
        description="Say what this machine can do for builds, by trying, and what to change for the rest.",
    )
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    options = parser.parse_args(args)
    from builder.cli.commands.doctor import as_json, examine, table

    checks = examine(options.root or default_root())
    _print(as_json(checks) if options.json else table(checks))
    return 0 if all(check.works != "no" for check in checks) else 1
