"""The options of a build, and the request that they make."""

from __future__ import annotations

import argparse
import os

from builder import VERSION
from builder.cli.cache_options import caches_from, caches_to
from builder.cli.output_options import OUTPUT_HELP, outputs
from builder.cli.parser import (
    OPTIONAL_VALUES,
    Parser,
    add_isolation,
    add_progress,
    add_repeatable,
    add_server_options,
    client_options,
    pair,
)
from builder.cli.sandbox_options import add_sandbox_options, sandbox
from builder.cli.source_options import context, named_context, secret, ssh
from builder.errors import BuildError, UsageError
from builder.registry.step_proxies import for_containers
from builder.request import STDIN, BuildRequest
from builder.support.fields import parse_fields
from grammar.booleans import truth

METHODS = ("build", "check", "lint", "outline", "targets")
_PRIVILEGES = ("network.host", "security.insecure")
_PULL_POLICIES = ("always", "missing", "never", "newer")
_DEFAULT_JOBS = 8


def add_build_options(parser: Parser) -> None:
    """Add all options of a build."""
    parser.add_argument(
        "context", metavar="CONTEXT", help="build context: a directory, a URL, or - for standard input"
    )
    _add_inputs(parser)
    _add_results(parser)
    _add_cache(parser)
    _add_attestations(parser)
    _add_steps(parser)
    _add_output_of_the_command(parser)
    add_server_options(parser)
    add_sandbox_options(parser)
    for name in ("--rm", "--force-rm"):  # in docker's scripts; no container is ever left behind
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--version", action="version", version=f"pybuild {VERSION}", help="print the version and exit"
    )


def _add_inputs(parser: Parser) -> None:
    add = parser.add_argument
    add("-f", "--file", metavar="FILE", help="Dockerfile (default: CONTEXT/Dockerfile; -: standard input)")
    add_repeatable(parser, "--platform", "OS/ARCH[,...]", "target platform (default: this machine's)")
    add("--target", default="", metavar="STAGE", help="target build stage")
    add_repeatable(parser, "--build-arg", "NAME[=VALUE]", "set a build argument")
    add_repeatable(
        parser,
        "--build-context",
        "NAME=SOURCE",
        "additional build context: a directory, a URL, docker-image://IMAGE or oci-layout://DIR",
    )
    add(
        "--pull",
        action="store_const",
        const="always",
        default="missing",
        help="always pull base images; --pull=POLICY: " + ", ".join(_PULL_POLICIES),
    )
    add(OPTIONAL_VALUES["--pull"], dest="pull", type=_pull, help=argparse.SUPPRESS)


def _add_results(parser: Parser) -> None:
    add = parser.add_argument
    add_repeatable(parser, "-t --tag", "NAME", "name of the image")
    add_repeatable(parser, "--label", "NAME=VALUE", "label of the image")
    add_repeatable(parser, "-o --output", "type=TYPE,dest=FILE", OUTPUT_HELP)
    add_repeatable(
        parser,
        "--annotation",
        "KEY=VALUE",
        "annotation of the exported image; index:KEY=VALUE and others annotate elsewhere (docs/outputs.md)",
    )
    add("--push", action="store_true", help="push the image under its names")
    add("--load", action="store_true", help="load the image into docker or podman")
    add("--iidfile", default="", metavar="FILE", help="write the image ID to a file")
    add("--metadata-file", default="", metavar="FILE", help="write the build result as JSON to a file")


def _add_cache(parser: Parser) -> None:
    add = parser.add_argument
    add_repeatable(
        parser,
        "--cache-from",
        "type=TYPE,...",
        "import the build cache: type=local,src=DIR or type=registry,ref=NAME (docs/cache.md)",
    )
    add_repeatable(
        parser,
        "--cache-to",
        "type=TYPE,...",
        "export the build cache: type=local,dest=DIR, type=registry,ref=NAME or type=inline",
    )
    add("--no-cache", action="store_true", help="do not use the cache; execute every step")
    add_repeatable(parser, "--no-cache-filter", "STAGE[,...]", "do not use the cache for these stages")


def _add_attestations(parser: Parser) -> None:
    """Each has a hidden twin that takes the value behind an equals sign."""
    for name, about in (
        ("--sbom", "attach an SBOM to the image; --sbom=FORM: spdx, cyclonedx (docs/attestations.md)"),
        ("--provenance", "attach SLSA provenance to the image; --provenance=mode=min|max"),
    ):
        parser.add_argument(name, action="append_const", const="", default=[], help=about)
        parser.add_argument(
            OPTIONAL_VALUES[name], dest=name.strip("-"), action="append", help=argparse.SUPPRESS
        )
    add_repeatable(
        parser, "--attest", "type=sbom|provenance,...", "attach an attestation, as docker spells it"
    )


def _add_steps(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--network",
        default="default",
        choices=("default", "none", "host"),
        help="network of RUN instructions (default: default)",
    )
    add_isolation(parser)
    add_repeatable(
        parser, "--secret", "id=ID[,src=FILE|env=NAME]", "secret to expose to RUN --mount=type=secret"
    )
    add_repeatable(
        parser,
        "--ssh",
        "ID[=SOCKET|KEY[,KEY]]",
        "SSH agent socket or keys to expose to RUN --mount=type=ssh",
    )
    add_repeatable(parser, "--allow", "PRIVILEGE", f"allow a privilege: {', '.join(_PRIVILEGES)}")
    add(
        "--jobs",
        type=int,
        default=_DEFAULT_JOBS,
        metavar="N",
        help="most steps that run at once (default: %(default)s)",
    )


def _add_output_of_the_command(parser: Parser) -> None:
    add = parser.add_argument
    add("--check", action="store_true", help="check the Dockerfile without building")
    add(
        "--call",
        default="build",
        metavar="METHOD",
        help=f"evaluation method: {', '.join(METHODS)}; METHOD,format=json prints JSON",
    )
    add("-q", "--quiet", action="store_true", help="print only the image ID")
    add_progress(parser)


def _pull(text: str) -> str:
    """Return the policy of ``--pull=``; true and false are docker's values."""
    on = truth(text)
    policy = text if on is None else "always" if on else "missing"
    if policy not in _PULL_POLICIES:
        raise argparse.ArgumentTypeError(f"{text!r} is not always, missing, never or newer")
    return policy


def build_request(options: argparse.Namespace) -> BuildRequest:
    """Return the request that *options* make. Raises UsageError, and BuildError for names of images."""
    # Imported once the helper processes are forked, which share this one's memory.
    from builder.attest.options import parse_attestations
    from builder.images.local import new_name

    attestations = parse_attestations(options.sbom, options.provenance, options.attest)
    if options.jobs < 1:
        raise UsageError("--jobs must be at least 1")
    arguments = _build_args(options.build_arg)
    epoch = _take_epoch(arguments)
    directory, remote = context(options.context)
    file = options.file or ""
    if file == STDIN and remote == STDIN:
        raise UsageError("standard input cannot be both the build context and the Dockerfile")
    return BuildRequest(
        context=directory,
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
        client=client_options(options),
        secrets=dict(secret(item) for item in options.secret),
        allow=_allowed(options.allow),
        ssh=dict(ssh(item) for item in options.ssh),
        contexts=dict(named_context(item) for item in options.build_context),
        epoch=epoch,
        sandbox=sandbox(options),
        platforms=_platforms(options.platform),
        cache_from=caches_from(options.cache_from),
        cache_to=caches_to(options.cache_to, arguments),
        sbom=attestations.sbom,
        provenance=attestations.provenance,
        builder_id=attestations.builder_id,
    )


def _build_args(items: list[str]) -> dict[str, str]:
    """Return the build arguments: ``--build-arg``, and the proxies of docker's configuration.

    ``NAME`` without a value takes it from the environment, and is not given if it is not there.
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
    """Return SOURCE_DATE_EPOCH in seconds, from *arguments* or the environment, and set the argument."""
    text = arguments.pop("SOURCE_DATE_EPOCH", os.environ.get("SOURCE_DATE_EPOCH", ""))
    if text in ("", "context"):  # the time of the context: a directory has none, as in BuildKit
        return None
    arguments["SOURCE_DATE_EPOCH"] = text
    from builder.plan.scope import parse_epoch  # few builds set it

    try:
        return parse_epoch(text)
    except BuildError as error:
        raise UsageError(error.message) from None


def _allowed(items: list[str]) -> frozenset[str]:
    names = frozenset(name for item in items for name in item.split(","))
    if unknown := names - set(_PRIVILEGES):
        raise UsageError(f"--allow {min(unknown)!r} is not one of {', '.join(_PRIVILEGES)}")
    return names


def _platforms(items: list[str]) -> tuple[str, ...]:
    from builder.oci.model import platform_option

    try:
        found = [str(platform_option(word)) for item in items for word in item.split(",")]
    except ValueError as error:
        raise UsageError(f"--platform: {error}") from None
    return tuple(dict.fromkeys(found))


def call_method(text: str) -> tuple[str, bool]:
    """Return the method of ``--call``, and whether it prints JSON. Raises UsageError."""
    method, _, rest = text.partition(",")
    fields = parse_fields(rest, "--call")
    form = fields.pop("format", "text")
    if method not in METHODS or fields or form not in ("text", "json"):
        raise UsageError(f"--call {text!r} is not one of {', '.join(METHODS)}, with ,format=json or without")
    return method, form == "json"
