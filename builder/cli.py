"""The command line: arguments to requests, exceptions to messages and exit codes.

The only module that prints errors and decides how the process ends.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from builder import VERSION
from builder.errors import BuildError, Cancelled, UsageError
from builder.replay import Look
from cache.errors import CacheError
from cache.store import Store, default_root

_COMMANDS = ("build", "images", "save", "load", "import", "run")
_METHODS = ("build", "check", "lint", "outline", "targets")
_PRIVILEGES = ("network.host", "security.insecure")
_DEFAULT_JOBS = 8
_DOCKERFILE_PEEK = 16 << 20


def run(argv: Sequence[str], look: Look | None = None) -> int:
    """Run the command line *argv*; returns the exit code. *look* is what replay has seen."""
    signal.signal(signal.SIGTERM, _cancel)
    signal.signal(signal.SIGHUP, _cancel)
    name = argv[0] if argv and argv[0] in _COMMANDS else "build"
    rest = argv[1:] if argv and argv[0] in _COMMANDS else argv
    try:
        commands: dict[str, Callable[[Sequence[str]], int]] = {
            "build": lambda args: _build(args, argv, look),
            "images": _images,
            "save": _save,
            "load": _load,
            "import": _import,
            "run": _run,
        }
        return commands[name](rest)
    except (KeyboardInterrupt, Cancelled):
        kept = "; nothing was tagged, finished steps stay cached" if name == "build" else ""
        _say(f"pybuild: cancelled{kept}")
        return Cancelled.exit_code
    except BuildError as error:
        return _explain(error, error.exit_code, error.excerpt)
    except CacheError as error:
        return _explain(error, BuildError.exit_code, "")


def _cancel(number: int, frame: object) -> NoReturn:
    raise Cancelled


def _say(text: str) -> None:
    try:
        sys.stderr.write(text + "\n")
    except OSError:
        pass


def _print(text: str) -> None:
    """Write a line of results to standard output. Raises BuildError when it cannot be written."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except OSError as error:
        raise BuildError(f"writing to standard output: {error.strerror}") from None


def _explain(error: BuildError | CacheError, code: int, excerpt: str) -> int:
    from builder.progress.lines import printable

    if excerpt:
        _say("\n".join(printable(line) for line in excerpt.split("\n")))
    _say(f"error: {printable(error.message)}")
    if error.hint:
        _say(f"hint: {printable(error.hint)}")
    return code


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are ours; options are not abbreviated, so that adding one breaks nobody."""

    def __init__(self, **given: Any) -> None:
        super().__init__(allow_abbrev=False, **given)
        self.add_argument("--root", metavar="DIR", help="the store (default: PYBUILD_ROOT, or by user)")

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} --help lists the options")


def _open_store(options: argparse.Namespace) -> Store:
    return Store(options.root or default_root())


# -- build ---------------------------------------------------------------------------------


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="pybuild",
        description="Build a container image from a Dockerfile.",
        epilog="Other commands: pybuild images | save | load | import | run (each with --help)",
    )
    add = parser.add_argument
    add("context", metavar="CONTEXT", help="what COPY reads from: a folder, a URL, - for standard input")
    add("-t", "--tag", action="append", default=[], metavar="NAME", help="name the image (repeatable)")
    add(
        "-f", "--file", metavar="FILE", help="the Dockerfile (default: CONTEXT/Dockerfile; -: standard input)"
    )
    add("--target", default="", metavar="STAGE", help="build up to this stage")
    add("--build-arg", action="append", default=[], metavar="NAME[=VALUE]", help="set an ARG (repeatable)")
    add("--label", action="append", default=[], metavar="NAME=VALUE", help="label the image (repeatable)")
    add(
        "-o",
        "--output",
        action="append",
        default=[],
        metavar="type=oci,dest=FILE",
        help="export (repeatable)",
    )
    add("--no-cache", action="store_true", help="execute every step, and cache the results anew")
    add(
        "--no-cache-filter",
        action="append",
        default=[],
        metavar="STAGE",
        help="the same for one stage (repeatable)",
    )
    add(
        "--build-context",
        action="append",
        default=[],
        metavar="NAME=SOURCE",
        help="another context: a folder, a URL, docker-image://IMAGE, oci-layout://FOLDER (repeatable)",
    )
    add("--network", default="default", choices=("default", "none", "host"), help="network of RUN steps")
    add(
        "--secret",
        action="append",
        default=[],
        metavar="id=ID[,src=FILE|env=NAME]",
        help="a secret for RUN --mount=type=secret (repeatable)",
    )
    add(
        "--allow",
        action="append",
        default=[],
        metavar="PRIVILEGE",
        help=f"let steps ask for {' or '.join(_PRIVILEGES)} (repeatable)",
    )
    add(
        "--ssh",
        action="append",
        default=[],
        metavar="ID[=SOCKET|KEY[,KEY]]",
        help="an ssh agent, or keys, for RUN --mount=type=ssh (repeatable)",
    )
    add("--check", action="store_true", help="check the Dockerfile without building anything")
    add("--call", default="build", metavar="METHOD", help=f"{', '.join(_METHODS)}; with ,format=json as JSON")
    add("--pull", action="store_true", help="ask registries for base images that are here already")
    add("--iidfile", default="", metavar="FILE", help="write the image ID to a file")
    add("-q", "--quiet", action="store_true", help="print only the image ID")
    add("--progress", default="auto", choices=("auto", "tty", "plain", "quiet"), help="how to show progress")
    add("--jobs", type=int, default=_DEFAULT_JOBS, metavar="N", help="steps at once (default: %(default)s)")
    add("--insecure-registry", action="append", default=[], metavar="HOST", help="pull from HOST over HTTP")
    add("--version", action="version", version=f"pybuild {VERSION}")
    return parser


def _build(args: Sequence[str], argv: Sequence[str], look: Look | None) -> int:
    options = _build_parser().parse_args(args)
    method, as_json = _method("check" if options.check else options.call)
    if method != "build":
        return _call(method, as_json, options)
    _need_root("building")
    # The helpers are forked while this process is small and has no threads.
    from builder.session import Session

    words = _words(options)
    network = options.network == "default" and b"run" in words
    copies = b"copy" in words or b"add" in words
    with _open_store(options) as store, Session(store, network, copies) as session:
        request = _request(options)
        from builder.build import build, warn_unused
        from builder.execute.workshop import Workshop
        from builder.inputs import read_inputs
        from builder.memo import remember

        sink = _sink(options)
        workshop = Workshop(store, session.launcher, session.packer, request.secrets, request.ssh, sink)
        try:
            inputs = read_inputs(request, workshop)
            result, plan, solver = build(request, inputs, workshop, session, look)
            warn_unused(result, sink)
        finally:
            sink.close()
        asked = request.outputs or request.no_cache or request.no_cache_stages or request.pull
        if not asked and not result.unused_args:
            silent = _silent(options)
            remember(argv, request, inputs, result, plan, solver, workshop, options.quiet, silent)
    _conclude(options, result, request.tags)
    return 0


def _method(text: str) -> tuple[str, bool]:
    """``--call``: the method, and whether its answer is JSON."""
    method, *rest = text.split(",")
    fields = dict(_pair(item, "--call") for item in rest)
    shape = fields.pop("format", "text")
    if method not in _METHODS or fields or shape not in ("text", "json"):
        methods = ", ".join(_METHODS)
        raise UsageError(f"--call {text!r} is not one of {methods}, with ,format=json or without")
    return method, shape == "json"


def _call(method: str, as_json: bool, options: argparse.Namespace) -> int:
    from builder.check import call
    from builder.execute.workshop import Workshop
    from builder.inputs import read_inputs
    from builder.progress.quiet import Quiet

    with _open_store(options) as store:
        request = _request(options)
        workshop = Workshop(store, None, None, request.secrets, request.ssh, Quiet(sys.stderr))
        answer, code = call(method, request, read_inputs(request, workshop), workshop, as_json)
    _print(answer.removesuffix("\n"))
    return code


def _words(options: argparse.Namespace) -> bytes:
    """The Dockerfile's text in lower case: which steps it can have at all, before it is parsed."""
    if options.context == "-" or options.file == "-":
        return b"run copy"  # that will be seen when it is read
    names = [options.file] if options.file else ["Dockerfile", "dockerfile"]
    for name in names:
        with contextlib.suppress(OSError):  # the build says why
            path = os.path.join("" if options.file else options.context, name)
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # it may be a fifo
            with open(fd, "rb") as file:
                return file.read(_DOCKERFILE_PEEK).lower()
    return b""


def _silent(options: argparse.Namespace) -> bool:
    return bool(options.quiet or options.progress == "quiet")


def _sink(options: argparse.Namespace) -> Any:
    if _silent(options):
        from builder.progress.quiet import Quiet

        return Quiet(sys.stderr)
    if options.progress == "tty" or (options.progress == "auto" and sys.stderr.isatty()):
        from builder.progress.tty import Tty

        return Tty(sys.stderr)
    from builder.progress.plain import Plain

    return Plain(sys.stderr)


def _conclude(options: argparse.Namespace, result: Any, tags: tuple[str, ...]) -> None:
    from builder.progress.lines import conclusion

    if options.quiet:
        _print(result.image)
    elif not _silent(options):
        _say("\n".join(conclusion(result.image, tags, result.warnings)))


def _request(options: argparse.Namespace) -> Any:
    from builder.image.local import reference
    from builder.request import STDIN, BuildRequest

    if options.jobs < 1:
        raise UsageError("--jobs must be at least 1")
    arguments = _build_args(options.build_arg)
    context, remote = _context(options.context)
    file = options.file or ""
    if file == STDIN and remote == STDIN:
        raise UsageError("standard input cannot be both the build context and the Dockerfile")
    return BuildRequest(
        context=context,
        remote=remote,
        dockerfile=os.path.abspath(file) if file not in ("", STDIN) and not remote else file,
        tags=tuple(dict.fromkeys(str(reference(tag)) for tag in options.tag)),
        target=options.target,
        build_args=arguments,
        labels=dict(_pair(item, "--label") for item in options.label),
        outputs=tuple(_output(item) for item in options.output),
        network=options.network,
        no_cache=options.no_cache,
        no_cache_stages=frozenset(
            name.lower() for item in options.no_cache_filter for name in item.split(",")
        ),
        pull=options.pull,
        iidfile=os.path.abspath(options.iidfile) if options.iidfile else "",
        jobs=options.jobs,
        insecure_registries=frozenset(options.insecure_registry),
        secrets=dict(_secret(item) for item in options.secret),
        allow=_allowed(options.allow),
        ssh=dict(_ssh(item) for item in options.ssh),
        contexts=dict(_named_context(item) for item in options.build_context),
        epoch=_epoch(arguments),
    )


def _context(text: str) -> tuple[str, str]:
    """The context: a folder, or else what it is instead."""
    if text == "-":
        return "", text
    if os.path.isdir(text):
        return os.path.abspath(text), ""
    from builder.execute.context import is_remote

    if is_remote(text):
        return "", text
    raise UsageError(f"the context {text} is not a folder", "it is a folder, a URL, or - for standard input")


def _named_context(item: str) -> tuple[str, Any]:
    """``name=folder``, or with docker-image://, oci-layout://, target:, or a URL for the folder."""
    from builder.execute.context import is_remote
    from builder.image.local import reference
    from builder.request import NamedContext

    name, value = _pair(item, "--build-context")
    name = reference(name).familiar.removesuffix(":latest")
    for prefix, kind in (("docker-image://", "image"), ("oci-layout://", "layout"), ("target:", "target")):
        if value.startswith(prefix):
            return name, NamedContext(kind, value.removeprefix(prefix))
    if os.path.isdir(value):
        return name, NamedContext("local", os.path.abspath(value))
    if is_remote(value):
        return name, NamedContext("url", value)
    raise UsageError(f"--build-context {item!r}: {value!r} is neither a folder nor a URL")


def _build_args(items: list[str]) -> dict[str, str]:
    """``NAME=VALUE``, or ``NAME`` with its value from the environment (absent: not given)."""
    out = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not name:
            raise UsageError(f"--build-arg {item!r} has no name")
        if equals:
            out[name] = value
        elif name in os.environ:
            out[name] = os.environ[name]
    return out


def _epoch(arguments: dict[str, str]) -> int | None:
    """SOURCE_DATE_EPOCH, as a build argument or from the environment."""
    text = arguments.get("SOURCE_DATE_EPOCH", os.environ.get("SOURCE_DATE_EPOCH", ""))
    if not text:
        return None
    from builder.plan.scope import parse_epoch

    try:
        return parse_epoch(text)
    except BuildError as error:
        raise UsageError(error.message) from None


def _pair(item: str, option: str) -> tuple[str, str]:
    name, _, value = item.partition("=")
    if not name:
        raise UsageError(f"{option} {item!r} has no name")
    return name, value


def _secret(text: str) -> tuple[str, Any]:
    """``id=ID`` with ``src=FILE`` or ``env=NAME``; with neither, a variable or file of that name."""
    from builder.request import Secret

    fields = dict(_pair(item, "--secret") for item in text.split(","))
    name, kind = fields.pop("id", ""), fields.pop("type", "")
    file = fields.pop("src", "") or fields.pop("source", "")
    variable = fields.pop("env", "")
    if not name or fields or kind not in ("", "file", "env") or (file and variable):
        raise UsageError(f"--secret {text!r} is not id=ID[,src=FILE|env=NAME]")
    if not file and not variable:
        if kind != "file" and name in os.environ:
            variable = name
        else:
            file = name
    elif kind == "env" and file:
        file, variable = "", file
    if file and not os.path.isfile(file):
        raise UsageError(f"--secret {text!r}: there is no file {file}")
    if variable and variable not in os.environ:
        raise UsageError(f"--secret {text!r}: the environment has no variable {variable}")
    return name, Secret(os.path.abspath(file) if file else "", variable)


def _allowed(items: list[str]) -> frozenset[str]:
    names = frozenset(name for item in items for name in item.split(","))
    if unknown := names - set(_PRIVILEGES):
        raise UsageError(f"--allow {min(unknown)!r} is not one of {', '.join(_PRIVILEGES)}")
    return names


def _ssh(text: str) -> tuple[str, Any]:
    """``ID``, or ``ID=PATH[,PATH]`` with the socket of an agent or key files."""
    from builder.request import Ssh

    name, _, places = text.partition("=")
    paths = [path for path in places.split(",") if path] or [os.environ.get("SSH_AUTH_SOCK", "")]
    if not name:
        raise UsageError(f"--ssh {text!r} has no id", "for example: --ssh default")
    if not paths[0]:
        raise UsageError(f"--ssh {text}: there is no agent", "start one, so that SSH_AUTH_SOCK is set")
    for path in paths:
        if not os.path.exists(path):
            raise UsageError(f"--ssh {text!r}: there is no {path}")
    sockets = [path for path in paths if stat.S_ISSOCK(os.stat(path).st_mode)]
    if sockets and len(paths) > 1:
        raise UsageError(f"--ssh {text!r}: an agent's socket stands alone")
    if sockets:
        return name, Ssh(os.path.abspath(sockets[0]))
    return name, Ssh("", tuple(map(os.path.abspath, paths)))


def _output(text: str) -> Any:
    """``type=oci,dest=FILE``; a bare FILE means an OCI archive there."""
    from builder.request import Output

    fields = dict(_pair(item, "--output") for item in text.split(",")) if "=" in text else {"dest": text}
    kind, dest = fields.pop("type", "oci"), fields.pop("dest", "")
    if kind not in ("oci", "docker"):
        raise UsageError(f"output type {kind!r} is not supported yet", "use type=oci or type=docker")
    rewrite = fields.pop("rewrite-timestamp", "false").lower()
    if rewrite not in ("true", "false", "1", "0"):
        raise UsageError(f"--output {text!r}: rewrite-timestamp is true or false")
    if fields:
        raise UsageError(f"output option {next(iter(fields))!r} is not supported yet")
    if not dest:
        raise UsageError(f"--output {text!r} has no dest", "for example: -o type=oci,dest=app.tar")
    return Output(kind, dest if dest == "-" else os.path.abspath(dest), rewrite in ("true", "1"))


def _need_root(what: str) -> None:
    if os.geteuid() != 0:
        raise UsageError(
            f"{what} needs root in this version", "run it with sudo; rootless builds are being worked on"
        )


# -- images --------------------------------------------------------------------------------


def _images(args: Sequence[str]) -> int:
    parser = _Parser(prog="pybuild images", description="List the images of the store.")
    options = parser.parse_args(args)
    from builder.image.local import config_of, named, reference, size
    from builder.progress.lines import printable

    damaged: list[BuildError | CacheError] = []
    with _open_store(options) as store:
        rows = [("NAME", "IMAGE ID", "CREATED", "SIZE")]
        for name, image in named(store, damaged):
            try:
                config = config_of(store, image)
                length = f"{size(store, config) / 1e6:.1f} MB"
            except (BuildError, CacheError) as error:
                damaged.append(error)
                continue
            created = config.created[:19].replace("T", " ") or "-"
            rows.append((reference(name).familiar, image[7:19], created, length))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        _print(printable(line.rstrip()))
    for unreadable in damaged:
        _say(f"warning: {printable(unreadable.message)} ({printable(unreadable.hint)})")
    return 0


def _save(args: Sequence[str]) -> int:
    parser = _Parser(
        prog="pybuild save",
        description="Write an image to an archive that docker, podman and containerd load.",
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "-o", "--output", default="-", metavar="FILE", help="where to (default: standard output)"
    )
    options = parser.parse_args(args)
    from builder.export.archive import write_archive
    from builder.image.local import find, names_for

    options.progress, options.quiet = "auto", False
    with _open_store(options) as store:
        image, config = find(store, options.name)
        names = names_for(store, options.name, image)
        sink = _sink(options)
        try:
            write_archive(store, image, config, names, options.output, sink, docker=True)
        finally:
            sink.close()
    return 0


def _load(args: Sequence[str]) -> int:
    parser = _Parser(prog="pybuild load", description="Load an OCI or docker archive into the store.")
    parser.add_argument("file", metavar="FILE", help='an archive, "-" for standard input')
    options = parser.parse_args(args)
    from builder.image.load import load

    _need_root("unpacking layers")
    with _open_store(options) as store, _input(options.file) as file, _metered(file, "loading") as read:
        for name in load(store, read):
            _print(f"loaded {name}")
        store.sync()
    return 0


def _import(args: Sequence[str]) -> int:
    parser = _Parser(
        prog="pybuild import",
        description="Make an image of one layer from a root file system's tar (gz, xz, zst too).",
    )
    parser.add_argument("file", metavar="TAR", help='the tar, "-" for standard input')
    parser.add_argument("name", metavar="NAME")
    options = parser.parse_args(args)
    from builder.image.local import from_root, reference
    from cache.layers import add_tar

    _need_root("unpacking a root file system")
    name = str(reference(options.name))
    with _open_store(options) as store, _input(options.file) as file, _metered(file, "importing") as read:
        image = from_root(store, add_tar(store, read), os.path.basename(options.file))
        store.sync()
        store.tag(name, image)
    _print(image)
    return 0


def _input(path: str) -> Any:
    try:
        return open(0 if path == "-" else path, "rb")
    except OSError as error:
        raise BuildError(f"reading {path}: {error.strerror}") from None


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
    parser = _Parser(
        prog="pybuild run",
        description="Run a container from an image; what it writes is thrown away at its end.",
    )
    parser.add_argument("--network", default="default", choices=("default", "none", "host"))
    parser.add_argument("-i", "--interactive", action="store_true", help="pass standard input on")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="CMD")
    options = parser.parse_args(args)
    _need_root("running a container")
    from builder.session import Session

    with _open_store(options) as store, Session(store, options.network == "default") as session:
        from builder.container import run_image

        return run_image(
            store,
            session.launcher,
            options.name,
            tuple(options.command),
            options.network,
            sys.stdin.fileno() if options.interactive else -1,
        )
