"""The options of a build, and the request that they make; whatever is wrong with them is said here."""

from __future__ import annotations

import argparse
import csv
import os
import stat
from collections.abc import Sequence
from typing import Any, NoReturn

from builder import VERSION
from builder.cli.output_options import outputs, pair
from builder.cli.sandbox_options import add_options, sandbox
from builder.errors import BuildError, UsageError
from builder.registry import limits
from builder.registry.step_proxies import for_containers
from builder.runtime.isolation import WAYS
from builder.support import debug
from builder.support.paths import why_missing
from grammar.booleans import truth
from grammar.suggest import suggestion

COMMANDS = (
    *(
        "build",
        "run",
        "images",
        "inspect",
        "history",
        "tag",
        "rmi",
        "reset",
        "pull",
        "push",
        "login",
        "logout",
    ),
    *("save", "load", "import", "doctor"),
)
_METHODS = ("build", "check", "lint", "outline", "targets")
_PRIVILEGES = ("network.host", "security.insecure")
_DEFAULT_JOBS = 8
# --pull=VALUE and its like, for argparse, which would take the context for a value of --pull
_TOO_MANY = "unrecognized arguments: "
_PULL, _SBOM, _PROVENANCE = "--pull-policy", "--sbom-form", "--provenance-mode"
_WITH_VALUES = {"--pull": _PULL, "--sbom": _SBOM, "--provenance": _PROVENANCE}


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours; options are not abbreviated, so that adding one breaks nobody."""

    def __init__(self, **given: Any) -> None:
        super().__init__(allow_abbrev=False, **given)
        self.add_argument("--root", metavar="DIR", help="the store (default: PYBUILD_ROOT, or by user)")
        self.add_argument(
            debug.OPTION,
            action="store_true",
            help="print keys, lookups, container set-up and timings (or set PYBUILD_DEBUG=1)",
        )

    def _get_formatter(self) -> argparse.HelpFormatter:
        """argparse wants one for every option that is added, and imports much to learn its width."""
        try:
            columns = int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size().columns
        except (ValueError, OSError):
            columns = 80
        return argparse.HelpFormatter(self.prog, width=columns - 2)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, of words that are spelled as docker takes them, too."""
        found = super().parse_args(self._spelled(args), namespace)
        if found.debug:
            debug.enable()
        if seconds := getattr(found, "timeout", None):
            limits.set_timeout(seconds)
        return found

    def _spelled(self, words: Sequence[str]) -> list[str]:
        """The words as argparse takes them; those of a container's command stay as they are.

        An option that may have a value, or not, has it behind an equals sign. A switch may have one there
        that says whether it is on: the last one counts. Raises UsageError for options that there are not.
        """
        remainder = any(action.nargs == argparse.REMAINDER for action in self._actions)
        shorts = {name for name in self._option_string_actions if len(name) == 2}
        out: list[tuple[str, argparse.Action | None]] = []
        rest = list(words)
        while rest:
            word = rest.pop(0)
            name, equals, value = word.partition("=")
            action = self._option_string_actions.get(name)
            if word == "--" or (action is None and remainder and not word.startswith("-")):
                return [*(kept for kept, _ in out), word, *rest]
            if action is None and word.startswith("-") and word != "-" and word[:2] not in shorts:
                raise UsageError(
                    f"{self.prog} has no option {name}{suggestion(name, self._option_string_actions, 0.7)}",
                    f"{self.prog} --help lists the options",
                )
            if equals and name in _WITH_VALUES and action is not None:
                out.append((f"{_WITH_VALUES[name]}={value}", None))
            elif equals and isinstance(action, argparse._StoreTrueAction):
                wanted = truth(value)
                if wanted is None:
                    raise UsageError(f"{name} is true or false, not {value!r}")
                out = [item for item in out if item[1] is not action]
                out += [(name, action)] if wanted else []
            else:
                out.append((word, action))
                if action is not None and action.nargs is None and not equals and rest:
                    out.append((rest.pop(0), None))
        return [word for word, _ in out]

    def error(self, message: str) -> NoReturn:
        for name, inner in _WITH_VALUES.items():
            message = message.replace(inner, name)
        message = message.removeprefix("argument ")
        if message.startswith(_TOO_MANY):
            message = f"more arguments than {self.prog} takes: {message.removeprefix(_TOO_MANY)}"
        raise UsageError(message, f"{self.prog} --help lists the options")


def add_isolation(parser: argparse.ArgumentParser) -> None:
    """The option that says how containers are kept apart from this machine."""
    ways = ("auto", *WAYS)
    wanted = os.environ.get("PYBUILD_ISOLATION") or "auto"
    if wanted not in ways:
        raise UsageError(f"PYBUILD_ISOLATION is {wanted!r}", f"it can be {', '.join(ways)}")
    parser.add_argument(
        "--isolation",
        default=wanted,
        choices=ways,
        help="how steps are isolated: namespaces, or chroot where a container forbids them (default: "
        "PYBUILD_ISOLATION, else auto: the best that can be had)",
    )


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """The option that says how long servers are waited for."""
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="TIME",
        help="give a server up that keeps us waiting for so long, all tries together (default: 2m)",
    )


def _seconds(text: str) -> float:
    try:
        return limits.seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="pybuild",
        description="Build a container image from a Dockerfile.",
        epilog="Other commands: pybuild images | pull | push | login | logout | tag | rmi | inspect | "
        "history | reset | save | load | import | run | doctor (each with --help)",
    )
    add = parser.add_argument
    add("context", metavar="CONTEXT", help="what COPY reads from: a folder, a URL, - for standard input")
    add("-t", "--tag", action="append", default=[], metavar="NAME", help="name the image (repeatable)")
    add(
        "-f", "--file", metavar="FILE", help="the Dockerfile (default: CONTEXT/Dockerfile; -: standard input)"
    )
    add(
        "--platform",
        action="append",
        default=[],
        metavar="OS/ARCH[,...]",
        help="what to build for (default: this machine's)",
    )
    add("--target", default="", metavar="STAGE", help="build up to this stage")
    add("--build-arg", action="append", default=[], metavar="NAME[=VALUE]", help="set an ARG (repeatable)")
    add("--label", action="append", default=[], metavar="NAME=VALUE", help="label the image (repeatable)")
    add(
        "-o",
        "--output",
        action="append",
        default=[],
        metavar="type=TYPE,dest=FILE",
        help="oci, docker, tar, local, registry or image (repeatable; docs/outputs.md)",
    )
    add(
        "--annotation",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="annotate what is written; index:KEY=VALUE and others say where (repeatable; docs/outputs.md)",
    )
    add("--push", action="store_true", help="push the image under its names")
    add("--load", action="store_true", help="load the image into docker or podman")
    add(
        "--cache-from",
        action="append",
        default=[],
        metavar="type=TYPE,...",
        help="take results of steps from local,src=FOLDER or registry,ref=NAME (repeatable; docs/cache.md)",
    )
    add(
        "--cache-to",
        action="append",
        default=[],
        metavar="type=TYPE,...",
        help="write the build cache to local,dest=FOLDER or registry,ref=NAME, or inline (repeatable)",
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
    add_isolation(parser)
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
    add(
        "--pull",
        action="store_const",
        const="always",
        default="missing",
        help="ask registries for base images that are here; or --pull=always|missing|never|newer",
    )
    add(_PULL, dest="pull", type=_pull, help=argparse.SUPPRESS)
    add(
        "--sbom",
        action="append_const",
        const="",
        default=[],
        help="put a list of its packages beside the image; or --sbom=spdx|cyclonedx (docs/attestations.md)",
    )
    add(_SBOM, dest="sbom", action="append", help=argparse.SUPPRESS)
    add(
        "--provenance",
        action="append_const",
        const="",
        default=[],
        help="put beside the image how it was built; or --provenance=mode=min|max",
    )
    add(_PROVENANCE, dest="provenance", action="append", help=argparse.SUPPRESS)
    add(
        "--attest",
        action="append",
        default=[],
        metavar="type=sbom|provenance,...",
        help="either of them, as docker spells it (repeatable)",
    )
    add("--iidfile", default="", metavar="FILE", help="write the image ID to a file")
    add("--metadata-file", default="", metavar="FILE", help="write what came out, as JSON, to a file")
    add("-q", "--quiet", action="store_true", help="print only the image ID")
    add(
        "--progress",
        default="auto",
        choices=("auto", "tty", "plain", "quiet", "rawjson"),
        help="how to show progress",
    )
    add("--jobs", type=int, default=_DEFAULT_JOBS, metavar="N", help="steps at once (default: %(default)s)")
    add(
        "--insecure-registry",
        action="append",
        default=[],
        metavar="HOST",
        help="speak HTTP with HOST, or HTTPS with any certificate, for pulls, pushes and caches (repeatable)",
    )
    add_timeout(parser)
    add_options(parser)
    for name in ("--rm", "--force-rm"):  # of docker's scripts: nothing is ever left
        add(name, action="store_true", help=argparse.SUPPRESS)
    add("--version", action="version", version=f"pybuild {VERSION}")
    return parser


def _pull(text: str) -> str:
    """The value of ``--pull=``; true and false are those of docker's flag."""
    on = truth(text)
    policy = text if on is None else "always" if on else "missing"
    if policy not in ("always", "missing", "never", "newer"):
        raise argparse.ArgumentTypeError(f"{text!r} is not always, missing, never or newer")
    return policy


def build_request(options: argparse.Namespace) -> Any:
    from builder.attest.options import asked
    from builder.images.local import new_name
    from builder.request import STDIN, BuildRequest

    wanted = asked(options.sbom, options.provenance, options.attest)
    if options.jobs < 1:
        raise UsageError("--jobs must be at least 1")
    arguments = _build_args(options.build_arg)
    epoch = _take_epoch(arguments)
    context, remote = _context(options.context)
    file = options.file or ""
    if file == STDIN and remote == STDIN:
        raise UsageError("standard input cannot be both the build context and the Dockerfile")
    return BuildRequest(
        context=context,
        remote=remote,
        dockerfile=os.path.abspath(file) if file not in ("", STDIN) and not remote else file,
        tags=tuple(dict.fromkeys(new_name(tag) for tag in options.tag)),
        target=options.target,
        build_args=arguments,
        labels=dict(pair(item, "--label") for item in options.label),
        outputs=outputs(options),
        network=options.network,
        no_cache=options.no_cache,
        no_cache_stages=frozenset(
            name.lower() for item in options.no_cache_filter for name in item.split(",")
        ),
        pull=options.pull,
        iidfile=os.path.abspath(options.iidfile) if options.iidfile else "",
        quiet=options.quiet,
        metadata_file=os.path.abspath(options.metadata_file) if options.metadata_file else "",
        jobs=options.jobs,
        insecure_registries=frozenset(options.insecure_registry),
        secrets=dict(_secret(item) for item in options.secret),
        allow=_allowed(options.allow),
        ssh=dict(_ssh(item) for item in options.ssh),
        contexts=dict(_named_context(item) for item in options.build_context),
        epoch=epoch,
        sandbox=sandbox(options),
        platforms=_platforms(options.platform),
        cache_from=tuple(_cache(text, "--cache-from") for text in options.cache_from),
        cache_to=_caches_to(options.cache_to, arguments),
        sbom=wanted.sbom,
        provenance=wanted.provenance,
        builder_id=wanted.builder_id,
    )


def _context(text: str) -> tuple[str, str]:
    """The context: a folder, or else what it is instead."""
    if text == "-":
        return "", text
    if os.path.isdir(text):
        return os.path.abspath(text), ""
    from builder.plan.remote import is_remote

    if is_remote(text):
        return "", text
    raise _no_context(text)


def _no_context(text: str) -> UsageError:
    """Why *text* cannot be a context, and what may have been meant."""
    hint = "it is a folder, a URL, or - for standard input"
    if os.path.isfile(text):
        return UsageError(
            f"the context {text} is a file, not a folder", f"name a Dockerfile by -f {text}, and a folder"
        )
    if why := why_missing(text):
        return UsageError(f"the context {text} is not there{why}", hint)
    if text in COMMANDS:
        return UsageError(
            f"there is no folder {text}, and a command comes first", f"for example: pybuild {text} --help"
        )
    if "/" not in text:
        return UsageError(
            f"the context {text} is not a folder, nor is it a command{suggestion(text, COMMANDS)}",
            f"commands are {', '.join(COMMANDS)}; a context {hint.removeprefix('it ')}",
        )
    return UsageError(f"the context {text} is not there", hint)


def _named_context(item: str) -> tuple[str, Any]:
    """``name=folder``, or with docker-image://, oci-layout://, target:, or a URL for the folder."""
    from builder.images.local import reference
    from builder.plan.remote import is_remote
    from builder.request import NamedContext

    name, value = pair(item, "--build-context")
    name = reference(name).familiar.removesuffix(":latest")
    for prefix, kind in (("docker-image://", "image"), ("oci-layout://", "layout"), ("target:", "target")):
        if value.startswith(prefix):
            return name, NamedContext(kind, value.removeprefix(prefix))
    if os.path.isdir(value):
        return name, NamedContext("local", os.path.abspath(value))
    if is_remote(value):
        return name, NamedContext("url", value)
    raise UsageError(f"--build-context {item!r}: {value!r} is neither a folder nor a URL{why_missing(value)}")


def _build_args(items: list[str]) -> dict[str, str]:
    """``NAME=VALUE``, or ``NAME`` with its value from the environment (absent: not given); and the proxies of
    docker's configuration.
    """
    out = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not name:
            raise UsageError(f"--build-arg {item!r} has no name")
        if equals:
            out[name] = value
        elif name in os.environ:
            out[name] = os.environ[name]
    given = {name.lower() for name in out}
    for name, value in for_containers(os.environ).items():
        if name.lower() not in given:  # as docker does
            out |= {name: value, name.lower(): value}
    return out


def _take_epoch(arguments: dict[str, str]) -> int | None:
    """SOURCE_DATE_EPOCH, as a build argument or from the environment, which gives the argument."""
    text = arguments.pop("SOURCE_DATE_EPOCH", os.environ.get("SOURCE_DATE_EPOCH", ""))
    if text in ("", "context"):  # the time of a context: a folder has none, as in BuildKit
        return None
    arguments["SOURCE_DATE_EPOCH"] = text
    from builder.plan.scope import parse_epoch

    try:
        return parse_epoch(text)
    except BuildError as error:
        raise UsageError(error.message) from None


def _secret(text: str) -> tuple[str, Any]:
    """``id=ID`` with ``src=FILE`` or ``env=NAME``; with neither, a variable or file of that name."""
    from builder.request import Secret

    fields = dict(item.partition("=")[::2] for item in text.split(","))
    name, kind = fields.pop("id", ""), fields.pop("type", "")
    file = fields.pop("src", "") or fields.pop("source", "")
    variable = fields.pop("env", "")
    if not name or fields or kind not in ("", "file", "env") or (file and variable):
        raise UsageError(  # nothing of it is shown: somebody may have put the secret itself here
            f"--secret{f' of id {name!r}' if name else ''} is not id=ID[,src=FILE|env=NAME]",
            "a secret is read from a file or a variable; it is no argument, which others could see",
        )
    if not file and not variable:
        if kind != "file" and name in os.environ:
            variable = name
        else:
            file = name
    elif kind == "env" and file:
        file, variable = "", file
    if file and not os.path.isfile(file):
        raise UsageError(f"--secret {text!r}: there is no file {file}{why_missing(file)}")
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
            raise UsageError(f"--ssh {text!r}: there is no {path}{why_missing(path)}")
    sockets = [path for path in paths if stat.S_ISSOCK(os.stat(path).st_mode)]
    if sockets and len(paths) > 1:
        raise UsageError(f"--ssh {text!r}: an agent's socket stands alone")
    if sockets:
        return name, Ssh(os.path.abspath(sockets[0]))
    return name, Ssh("", tuple(map(os.path.abspath, paths)))


def _platforms(items: list[str]) -> tuple[str, ...]:
    from builder.oci.model import asked_platform

    try:
        found = [str(asked_platform(word)) for item in items for word in item.split(",")]
    except ValueError as error:
        raise UsageError(f"--platform: {error}") from None
    return tuple(dict.fromkeys(found))


def _caches_to(items: list[str], arguments: dict[str, str]) -> tuple[Any, ...]:
    """The ``--cache-to``; the build argument BUILDKIT_INLINE_CACHE is one too, as in docker's buildx."""
    found = tuple(_cache(text, "--cache-to") for text in items)
    wanted = truth(arguments.get("BUILDKIT_INLINE_CACHE", ""))
    if not wanted or any(place.kind == "inline" for place in found):
        return found
    return (*found, _cache("type=inline", "--cache-to"))


def _cache(text: str, option: str) -> Any:
    """``type=local|registry|inline`` with what else docker's buildx has; a bare name is a registry's."""
    from builder.images.local import reference
    from builder.request import CachePlace

    given = text if "=" in text else f"type=registry,ref={text}"
    fields = {
        name.lower(): value for name, value in (pair(item, option) for item in next(csv.reader([given])))
    }
    kind, writes = fields.pop("type", ""), option == "--cache-to"
    for name in ("image-manifest", "oci-mediatypes"):  # ours are, always
        fields.pop(name, None)
    where = {"local": "dest" if writes else "src", "registry": "ref"}.get(kind, "")
    place = fields.pop(where, "") if where else ""
    if (
        kind not in ("local", "registry", "inline")
        or (kind == "inline" and not writes)
        or (where and not place)
    ):
        wanted = f"type=local,{'dest' if writes else 'src'}=FOLDER or type=registry,ref=NAME"
        hint = "keep a local folder with the workflow's own cache: docs/ci.md" if kind == "gha" else ""
        raise UsageError(f"{option} {text!r} is not {wanted}" + (" or type=inline" if writes else ""), hint)
    if writes and kind == "registry" and reference(place).digest:
        raise UsageError(f"{option} {text!r}: a cache is written under a tag, not a digest")
    mounts = fields.pop("mounts", "false")
    made = CachePlace(
        kind,
        os.path.abspath(place) if kind == "local" else str(reference(place)) if place else "",
        fields.pop("tag", "latest"),
        fields.pop("digest", ""),
        fields.pop("mode", "min"),
        tuple(item for item in mounts.split(";") if item) if mounts not in ("true", "false") else (),
        mounts == "true",
        fields.pop("compression", "zstd"),
        fields.pop("ignore-error", "false") == "true",
    )
    if fields or made.mode not in ("min", "max"):
        odd = next(iter(fields), f"mode={made.mode}")
        raise UsageError(f"{option} {text!r}: {odd!r} is not supported")
    if made.compression not in ("gzip", "zstd", "uncompressed"):
        raise UsageError(f"{option} {text!r}: compression is gzip, zstd or uncompressed")
    return made


def call_method(text: str) -> tuple[str, bool]:
    """``--call``: the method, and whether its answer is JSON."""
    method, *rest = text.split(",")
    fields = dict(pair(item, "--call") for item in rest)
    shape = fields.pop("format", "text")
    if method not in _METHODS or fields or shape not in ("text", "json"):
        methods = ", ".join(_METHODS)
        raise UsageError(f"--call {text!r} is not one of {methods}, with ,format=json or without")
    return method, shape == "json"
