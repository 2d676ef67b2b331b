"""``pybuild build``: build an image from a Dockerfile, or check the Dockerfile."""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from builder.cli.build_options import add_build_options, build_request, call_method
from builder.cli.command_table import COMMANDS, Invocation
from builder.cli.isolation import enter_isolation, open_store, open_store_for_containers
from builder.cli.output_options import outputs
from builder.cli.parser import Parser
from builder.cli.terminal import is_silent, open_progress, print_result, say
from builder.errors import BuildError, ChecksFailed
from cache.errors import CacheError
from cache.kernel import read_regular

if TYPE_CHECKING:
    from builder.build.helpers import Session
    from builder.progress.forms import Progress
    from builder.request import BuildRequest, BuildResult
    from builder.runtime.isolation import Isolation
    from cache.store import Store
    from grammar.lint.linter import Finding

_DOCKERFILE_PEEK = 16 << 20  # bytes
_SEEN_WHEN_READ = b"run copy"


def parser() -> Parser:
    width = max(len(command.name) for command in COMMANDS)
    listed = "\n".join(f"  {command.name:{width}}  {command.about}" for command in COMMANDS)
    parser = Parser(
        "pybuild",
        "Build an image from a Dockerfile.",
        f"commands:\n{listed}\n\npybuild COMMAND --help lists the options of a command.",
    )
    add_build_options(parser)
    return parser


def run(options: argparse.Namespace, invocation: Invocation) -> int:
    method, as_json = call_method("check" if options.check else options.call)
    if method != "build":
        return _call(method, as_json, options)
    for path in (options.iidfile, options.metadata_file):
        _remove_old(path)
    if any(output.kind == "docker" and not output.dest for output in outputs(options)):
        from builder.export.daemon import prepare

        prepare()
    isolation = enter_isolation(options)
    # The helper processes are forked while this process is small and has no threads, so all that a build
    # needs is imported after that.
    from builder.build.helpers import Session

    words = _words(options)
    network = options.network == "default" and b"run" in words
    copies = b"copy" in words or b"add" in words
    opened, isolation = open_store_for_containers(options, isolation)
    with opened as store, Session(store, network, copies, isolation) as session:
        request = build_request(options)
        sink = open_progress(options)
        try:
            result = _build(request, _Resources(store, session, isolation, sink), options, invocation)
        except (BuildError, CacheError) as error:
            sink.failed(error.code, error.message, error.hint)
            raise
        finally:
            sink.close()
    _conclude(options, result, request.names)
    return 0


class _Resources(NamedTuple):
    """What a build works with, open until it ends."""

    store: Store
    session: Session
    isolation: Isolation
    sink: Progress


def _build(
    request: BuildRequest, resources: _Resources, options: argparse.Namespace, invocation: Invocation
) -> BuildResult:
    """Build *request*, show what the checks found, and leave a record for the next equal command."""
    from builder.build.inputs import read_inputs
    from builder.build.metadata import Recorder
    from builder.build.pipeline import build, warn_unused
    from builder.build.planning import shown_findings
    from builder.environment import Environment
    from builder.replay.record import Shown, remember

    store, session, isolation, sink = resources
    recorder = Recorder(sink)
    environment = Environment(
        store=store,
        sink=recorder,
        secrets=request.secrets,
        ssh=request.ssh,
        packer=session.packer,
        isolation=isolation,
        shares_network=session.shares_network,
        client=request.client,
        no_cache=request.no_cache,
    )
    findings: list[Finding] = []
    inputs = read_inputs(request, environment)
    try:
        done = build(request, inputs, environment, session, invocation.seen, findings)
    except (BuildError, CacheError) as error:
        if not isinstance(error, ChecksFailed):
            sink.findings(shown_findings(findings, inputs))
        raise
    result = done.result
    warn_unused(result, sink)
    if request.metadata_file:
        recorder.write(request.metadata_file, result, request.names)
    sink.findings(result.warnings)
    if options.progress != "rawjson":  # a program that reads events gets them from a real build
        shown = Shown(options.quiet, is_silent(options))
        remember(invocation.argv, request, inputs, done, store, shown)
    return result


def _remove_old(path: str) -> None:
    """Remove the result file *path* of an earlier build, so that a failed build leaves none.

    The target of a link is emptied; devices and pipes stay. Raises BuildError.
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
    """Evaluate *method* of ``--call`` and print its answer."""
    if not os.path.isdir(options.context):
        enter_isolation(options)  # the context is unpacked
    from builder.build.inputs import read_inputs
    from builder.cli.commands.check import call
    from builder.environment import Environment
    from builder.progress.quiet import Quiet

    with open_store(options) as store:
        request = build_request(options)
        environment = Environment(
            store=store,
            sink=Quiet(sys.stderr),
            secrets=request.secrets,
            ssh=request.ssh,
            client=request.client,
        )
        answer, code = call(method, request, read_inputs(request, environment), environment, as_json)
    print_result(answer.removesuffix("\n"))
    return code


def _words(options: argparse.Namespace) -> bytes:
    """Return the Dockerfile in lower case, to see before it is parsed which kinds of steps it can have."""
    if options.context == "-" or options.file == "-":
        return _SEEN_WHEN_READ
    names = [options.file] if options.file else ["Dockerfile", "dockerfile"]
    for name in names:
        with contextlib.suppress(OSError):  # the build reports it
            path = os.path.join("" if options.file else options.context, name)
            real = os.path.realpath(path) if options.file else path
            return read_regular(real, _DOCKERFILE_PEEK).lower()
    return b""


def _conclude(options: argparse.Namespace, result: BuildResult, tags: Sequence[str]) -> None:
    """Print the image ID: to standard output with ``-q``, else among the last lines of progress."""
    from builder.progress.lines import conclusion

    if options.quiet:
        to_stdout = any(output.dest == "-" for output in outputs(options))  # an archive is written there
        if result.image is not None and not to_stdout:
            print_result(result.image)
    elif not is_silent(options) and options.progress != "rawjson":
        shown = list(conclusion(result.image, tags, ()))
        say("\n".join([*shown, *(f"image {image} for {platform}" for platform, image in result.images)]))
