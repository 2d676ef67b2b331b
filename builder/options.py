"""The options of a build, and the request that they make; whatever is wrong with them is said here."""

from __future__ import annotations

import argparse
import csv
import os
import stat
from typing import Any, NoReturn

from builder import VERSION
from builder.errors import BuildError, UsageError
from builder.runtime.isolation import WAYS
from builder.sandbox import add_options, sandbox

_METHODS = ("build", "check", "lint", "outline", "targets")
_PRIVILEGES = ("network.host", "security.insecure")
_DEFAULT_JOBS = 8
# --pull=VALUE and its like, for argparse, which would take the context for a value of --pull
_PULL, _SBOM, _PROVENANCE = "--pull-policy", "--sbom-form", "--provenance-mode"
_WITH_VALUES = {"--pull": _PULL, "--sbom": _SBOM, "--provenance": _PROVENANCE}


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours; options are not abbreviated, so that adding one breaks nobody."""

    def __init__(self, **given: Any) -> None:
        super().__init__(allow_abbrev=False, **given)
        self.add_argument("--root", metavar="DIR", help="the store (default: PYBUILD_ROOT, or by user)")

    def _get_formatter(self) -> argparse.HelpFormatter:
        """argparse wants one for every option that is added, and imports much to learn its width."""
        try:
            columns = int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size().columns
        except (ValueError, OSError):
            columns = 80
        return argparse.HelpFormatter(self.prog, width=columns - 2)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; an option that may have a value, or not, has it behind an equals sign."""
        return super().parse_args(list(map(_with_value, args)), namespace)

    def error(self, message: str) -> NoReturn:
        for name, inner in _WITH_VALUES.items():
            message = message.replace(inner, name)
        raise UsageError(message, f"{self.prog} --help lists the options")


def _with_value(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"{_WITH_VALUES[name]}={value}" if equals and name in _WITH_VALUES else word


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


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="pybuild",
        description="Build a container image from a Dockerfile.",
        epilog="Other commands: pybuild images | pull | push | login | logout | tag | rmi | inspect | "
        "history | save | load | import | run | doctor (each with --help)",
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
        help="oci, docker, tar, local or registry (repeatable; docs/outputs.md)",
    )
    add(
        "--annotation",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="annotate what is written: manifest:KEY=VALUE, or manifest-descriptor:... (repeatable)",
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
        help="leave them in local,dest=FOLDER or registry,ref=NAME, or inline (repeatable)",
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
    add("--insecure-registry", action="append", default=[], metavar="HOST", help="pull from HOST over HTTP")
    add_options(parser)
    for name in ("--rm", "--force-rm"):  # of docker's scripts: nothing is ever left
        add(name, action="store_true", help=argparse.SUPPRESS)
    add("--version", action="version", version=f"pybuild {VERSION}")
    return parser


def _pull(text: str) -> str:
    """The value of ``--pull=``; true and false are those of docker's flag."""
    policy = {"true": "always", "false": "missing"}.get(text, text)
    if policy not in ("always", "missing", "never", "newer"):
        raise argparse.ArgumentTypeError(f"{text!r} is not always, missing, never or newer")
    return policy


def build_request(options: argparse.Namespace) -> Any:
    from builder.attest.ask import asked
    from builder.image.local import reference
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
        tags=tuple(dict.fromkeys(str(reference(tag)) for tag in options.tag)),
        target=options.target,
        build_args=arguments,
        labels=dict(_pair(item, "--label") for item in options.label),
        outputs=outputs(options),
        network=options.network,
        no_cache=options.no_cache,
        no_cache_stages=frozenset(
            name.lower() for item in options.no_cache_filter for name in item.split(",")
        ),
        pull=options.pull,
        iidfile=os.path.abspath(options.iidfile) if options.iidfile else "",
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
    raise UsageError(f"the context {text} is not a folder", "it is a folder, a URL, or - for standard input")


def _named_context(item: str) -> tuple[str, Any]:
    """``name=folder``, or with docker-image://, oci-layout://, target:, or a URL for the folder."""
    from builder.image.local import reference
    from builder.plan.remote import is_remote
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


_ARCHIVES = ("oci", "docker")
_KINDS = (*_ARCHIVES, "tar", "local", "registry", "image")


def outputs(options: argparse.Namespace) -> tuple[Any, ...]:
    """The values of ``-o``, ``--push`` and ``--load``. Raises UsageError."""
    found = [_output(text) for text in options.output if text != "type=cacheonly"]  # it is cached anyway
    if options.push and not any(output.kind == "registry" for output in found):
        found.append(_output("type=registry"))
    if options.load and not any(output.kind == "docker" and not output.dest for output in found):
        found.append(_output("type=docker"))
    return tuple(_annotated(found, options.annotation))


def _annotated(found: list[Any], items: list[str]) -> list[Any]:
    """The outputs with what ``--annotation`` says, where they have a manifest to say it in."""
    from grammar.structs import replace

    own, of_index = _annotations("--annotation", dict(_annotation(item) for item in items))
    kinds = (*_ARCHIVES, "registry")
    if items and not any(output.kind in kinds for output in found):
        raise UsageError(
            "--annotation: nothing is written that has a manifest", "add --push or -o type=oci,..."
        )
    return [
        replace(
            output,
            annotations=tuple(sorted({**dict(own), **dict(output.annotations)}.items())),
            index_annotations=tuple(sorted({**dict(of_index), **dict(output.index_annotations)}.items())),
        )
        if output.kind in kinds
        else output
        for output in found
    ]


def _annotation(item: str) -> tuple[str, str]:
    """``[PLACE:]KEY=VALUE`` as the field of an output."""
    key, value = _pair(item, "--annotation")
    place, colon, name = key.partition(":")
    if colon and place.startswith(("manifest", "index")):
        return f"annotation-{place}.{name}", value
    return f"annotation.{key}", value


def _output(text: str) -> Any:
    """``type=...,dest=...`` and what else docker's buildx has; a bare name is a folder that is there,
    or the file of an OCI archive.
    """
    from builder.image.local import reference
    from builder.request import Output

    if "=" not in text:
        kind = "local" if text.endswith("/") or os.path.isdir(text) else "oci"
        return Output(kind, text if text == "-" else os.path.abspath(text))
    fields: dict[str, str] = {}
    for item in next(csv.reader([text])):
        name, value = _pair(item, "--output")
        fields[name.lower() if not name.startswith("annotation") else name] = value
    kind, dest = fields.pop("type", "oci"), fields.pop("dest", "")
    if kind not in _KINDS:
        raise UsageError(f"output type {kind!r} is not one of {', '.join(_KINDS)}")

    def switch(name: str, default: bool = False) -> bool:
        value = fields.pop(name, str(default)).lower()
        if value not in ("true", "false", "1", "0"):
            raise UsageError(f"--output {text!r}: {name} is true or false")
        return value in ("true", "1")

    push = switch("push", kind == "registry")
    if kind == "image":
        if not push:
            raise UsageError(
                f"--output {text!r}: images are in the store in any case", "add push=true, or leave it out"
            )
        kind = "registry"
    names = tuple(str(reference(name)) for name in fields.pop("name", "").split(",") if name)
    compression, level = _compression(text, fields)
    own, of_index = _annotations(text, fields)
    made = Output(
        kind,
        dest if dest == "-" else os.path.abspath(dest) if dest else "",
        switch("rewrite-timestamp"),
        names,
        compression,
        level,
        switch("force-compression"),
        not switch("oci-mediatypes", True),
        own,
        of_index,
        not switch("tar", True),
    )
    if fields:
        raise UsageError(f"output option {next(iter(fields))!r} is not supported")
    if not dest and kind not in ("registry", "docker"):  # those have somewhere else to go
        raise UsageError(f"--output {text!r} has no dest", "for example: -o type=oci,dest=app.tar")
    if made.folder and (kind != "oci" or dest == "-"):
        raise UsageError(f"--output {text!r}: tar=false makes a folder of type=oci")
    if kind == "local" and dest == "-":
        raise UsageError(f"--output {text!r}: a folder cannot be written to standard output", "type=tar can")
    return made


def _platforms(items: list[str]) -> tuple[str, ...]:
    from builder.image.model import asked_platform

    try:
        found = [str(asked_platform(word)) for item in items for word in item.split(",")]
    except ValueError as error:
        raise UsageError(f"--platform: {error}") from None
    return tuple(dict.fromkeys(found))


def _caches_to(items: list[str], arguments: dict[str, str]) -> tuple[Any, ...]:
    """The ``--cache-to``; the build argument BUILDKIT_INLINE_CACHE is one too, as in docker's buildx."""
    found = tuple(_cache(text, "--cache-to") for text in items)
    from builder.request import TRUE

    wanted = arguments.get("BUILDKIT_INLINE_CACHE") in TRUE
    if not wanted or any(place.kind == "inline" for place in found):
        return found
    return (*found, _cache("type=inline", "--cache-to"))


def _cache(text: str, option: str) -> Any:
    """``type=local|registry|inline`` with what else docker's buildx has; a bare name is a registry's."""
    from builder.image.local import reference
    from builder.request import CachePlace

    given = text if "=" in text else f"type=registry,ref={text}"
    fields = {
        name.lower(): value for name, value in (_pair(item, option) for item in next(csv.reader([given])))
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


def _compression(text: str, fields: dict[str, str]) -> tuple[str, int]:
    from cache.compression import GZIP, LEVELS

    kind, level = fields.pop("compression", GZIP), fields.pop("compression-level", "0")
    if kind not in LEVELS:
        raise UsageError(f"--output {text!r}: compression is one of {', '.join(LEVELS)}")
    if not (level.isascii() and level.isdigit()) or int(level) not in LEVELS[kind]:
        raise UsageError(f"--output {text!r}: {kind} has levels 1 to {LEVELS[kind].stop - 1}")
    return kind, int(level)


def _annotations(
    text: str, fields: dict[str, str]
) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """``annotation.KEY`` and ``annotation-manifest.KEY``; those of descriptors, which name the manifest."""
    found: dict[str, list[tuple[str, str]]] = {"manifest": [], "descriptor": []}
    for name in [name for name in fields if name.startswith("annotation")]:
        head, _, key = name.partition(".")
        place = {"annotation": "manifest", "annotation-manifest": "manifest"}.get(head, "")
        if head == "annotation-manifest-descriptor":
            place = "descriptor"
        if not place or not key:
            raise UsageError(f"{text!r}: {name!r} is no annotation of a manifest or its descriptor")
        found[place].append((key, fields.pop(name)))
    return tuple(sorted(found["manifest"])), tuple(sorted(found["descriptor"]))


def call_method(text: str) -> tuple[str, bool]:
    """``--call``: the method, and whether its answer is JSON."""
    method, *rest = text.split(",")
    fields = dict(_pair(item, "--call") for item in rest)
    shape = fields.pop("format", "text")
    if method not in _METHODS or fields or shape not in ("text", "json"):
        methods = ", ".join(_METHODS)
        raise UsageError(f"--call {text!r} is not one of {methods}, with ,format=json or without")
    return method, shape == "json"
