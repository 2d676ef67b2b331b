"""Commands on images and registries: pull, push, login, logout, images, tag, rmi, inspect, history."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from builder.cli.options import add_timeout
from builder.errors import BuildError, UsageError
from builder.images.local import (
    config_of,
    find,
    named,
    new_name,
    reference,
    remember_platform,
    rename,
    size,
    tar_size,
)
from builder.oci.model import ImageConfig, asked_platform, host
from builder.support.format_template import show
from cache.digest import Digest
from cache.errors import CacheError
from cache.store import Store, default_root


class Tools:
    """What the command line lends: a parser, a way to print, progress."""

    def __init__(
        self,
        parser: Callable[..., argparse.ArgumentParser],
        show: Callable[[str], None],
        sink: Callable[[argparse.Namespace], Any],
        enter: Callable[[argparse.Namespace], object],
        warn: Callable[[str], None],
    ) -> None:
        self.parser = parser
        self.show = show
        self.sink = sink
        self.enter = enter
        self.warn = warn


def pull(args: Sequence[str], tools: Tools) -> int:
    parser = _transfer_parser(tools, "pull", "Pull images from a registry.")
    parser.add_argument(
        "--platform", default="", metavar="OS/ARCH", help="which of several (default: this machine's)"
    )
    options = parser.parse_args(args)
    try:
        platform = asked_platform(options.platform) if options.platform else host()
    except ValueError as error:
        raise UsageError(f"--platform: {error}") from None
    tools.enter(options)
    from builder.images.pull import pull as fetch

    def one(store: Store, name: str, sink: Any) -> tuple[dict[str, str], str]:
        wanted = reference(name)
        image = fetch(store, wanted, platform, sink, frozenset(options.insecure_registry))
        if platform != host():
            remember_platform(store, wanted, platform, image)
        return {"Name": wanted.familiar, "ID": image}, f"{wanted.familiar} {image}"

    return _transfer(options, tools, one)


def push(args: Sequence[str], tools: Tools) -> int:
    options = _transfer_parser(tools, "push", "Push images to the registries in their names.").parse_args(
        args
    )
    tools.enter(options)
    from builder.export.image import Form, form, picture
    from builder.export.push import push as send

    def one(store: Store, name: str, sink: Any) -> tuple[dict[str, str], str]:
        image, config = find(store, name)
        wanted = reference(name)
        shown = picture(store, [(form(store, image, config, Form(), sink), config.platform)])
        send(store, shown, wanted, sink, frozenset(options.insecure_registry))
        done = {"Name": wanted.familiar, "Digest": shown.top.digest, "ID": image}
        return done, f"{wanted.name}@{shown.top.digest}"

    return _transfer(options, tools, one)


def _transfer(
    options: argparse.Namespace,
    tools: Tools,
    one: Callable[[Store, str, Any], tuple[dict[str, str], str]],
) -> int:
    """Do *one* to each name with progress, and show what it returns: for ``--json``, and as a line."""
    sink = tools.sink(options)
    done: list[dict[str, str]] = []
    try:
        with _store(options) as store:
            for name in options.name:
                facts, line = one(store, name, sink)
                done.append(facts)
                if not options.json:
                    tools.show(line)
            store.sync()
    finally:
        sink.close()
    if options.json:
        tools.show(json.dumps(done, indent=2))
    return 0


def login(args: Sequence[str], tools: Tools) -> int:
    parser = tools.parser(
        prog="pybuild login",
        description="Keep credentials for a registry where docker keeps them, after trying them.",
    )
    parser.add_argument("registry", nargs="?", default="docker.io", metavar="REGISTRY")
    parser.add_argument("-u", "--username", default="", metavar="NAME")
    parser.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    _add_server_options(parser)
    options = parser.parse_args(args)
    from builder.registry.client import Registry
    from builder.registry.credentials import Credentials, CredentialStore

    registry = _registry(options.registry)
    if options.password_stdin:
        if not options.username:
            raise UsageError("--password-stdin needs --username")
        user, password = options.username, sys.stdin.readline().rstrip("\r\n")
    elif sys.stdin.isatty():
        user = options.username or input("Username: ")
        password = getpass.getpass("Password: ")
    else:
        raise UsageError("there is no terminal to ask for the password", "give it with --password-stdin")
    if not user or not password:
        raise UsageError("the name and the password have to be something")
    with Registry(
        registry, frozenset(options.insecure_registry), credentials=Credentials(user, password)
    ) as client:
        client.check_login()
    place = CredentialStore().store(registry, user, password)
    tools.show(f"logged in to {registry}; the credentials are in {place}")
    return 0


def logout(args: Sequence[str], tools: Tools) -> int:
    parser = tools.parser(prog="pybuild logout", description="Forget the credentials for a registry.")
    parser.add_argument("registry", nargs="?", default="docker.io", metavar="REGISTRY")
    options = parser.parse_args(args)
    from builder.registry.credentials import CredentialStore

    registry = _registry(options.registry)
    found = CredentialStore().erase(registry)
    tools.show(f"logged out of {registry}" if found else f"there were no credentials for {registry}")
    return 0


def tag(args: Sequence[str], tools: Tools) -> int:
    parser = tools.parser(prog="pybuild tag", description="Give an image another name.")
    parser.add_argument("name", metavar="NAME", help="a name, or the start of an image ID")
    parser.add_argument("new", metavar="NEW")
    options = parser.parse_args(args)
    new = new_name(options.new)
    with _store(options) as store:
        image, _config = find(store, options.name)
        rename(store, new, image)
    return 0


def rmi(args: Sequence[str], tools: Tools) -> int:
    parser = tools.parser(prog="pybuild rmi", description="Take names from images. What is cached stays.")
    parser.add_argument(
        "name", nargs="+", metavar="NAME", help="a name; or the start of an image ID, for all"
    )
    parser.add_argument("-f", "--force", action="store_true", help="pass over what is not there")
    options = parser.parse_args(args)
    with _store(options) as store:
        for name in options.name:
            if options.force and not _is_there(store, name):
                continue
            for found in _names(store, name):
                store.untag(found)
                store.memos.forget_platform_images(found)
                tools.show(f"untagged {reference(found).familiar}")
    return 0


def reset(args: Sequence[str], tools: Tools) -> int:
    parser = tools.parser(
        prog="pybuild reset",
        description="Remove all that the store holds: images, cached steps, cache mounts.",
    )
    options = parser.parse_args(args)
    root = options.root or default_root()
    if not os.path.exists(os.path.join(root, "version")):
        raise BuildError(f"there is no store in {root}")
    tools.enter(options)
    with _store(options) as store:
        store.reset()
    tools.show(f"removed what the store {root} held")
    return 0


def _is_there(store: Store, name: str) -> bool:
    try:
        find(store, name)
    except BuildError:
        return False
    return True


def _names(store: Store, name: str) -> list[str]:
    """The canonical name, or every name of the image with that ID."""
    image, _config = find(store, name)
    canonical = ""
    try:
        canonical = str(reference(name))
    except BuildError:
        pass
    if canonical and store.resolve(canonical) == image:
        return [canonical]
    return [other for other, its in named(store, []) if its == image]


def inspect(args: Sequence[str], tools: Tools) -> int:
    parser = tools.parser(prog="pybuild inspect", description="Show what images are, as docker inspect does.")
    parser.add_argument("name", nargs="+", metavar="NAME")
    _add_shape(parser, "Id", json_too=False)
    options = parser.parse_args(args)
    with _store(options) as store:
        out = [_inspected(store, *find(store, name)) for name in options.name]
    if not show(out, False, options.format, tools.show):
        tools.show(json.dumps(out, indent=2))
    return 0


def _inspected(store: Store, image: Digest, config: ImageConfig) -> dict[str, Any]:
    """An image in docker's words."""
    value = json.loads(store.read_blob(image))
    return {
        "Id": image,
        "RepoTags": [reference(other).familiar for other, its in named(store, []) if its == image],
        "Created": config.created,
        "Author": config.author,
        "Architecture": config.platform.architecture,
        "Variant": config.platform.variant,
        "Os": config.platform.os,
        "Size": size(store, config),
        "Config": value.get("config") or {},
        "RootFS": {"Type": "layers", "Layers": list(config.diff_ids)},
        "History": value.get("history") or [],
    }


def history(args: Sequence[str], tools: Tools) -> int:
    parser = tools.parser(prog="pybuild history", description="Show how an image was made, newest first.")
    parser.add_argument("name", metavar="NAME")
    _add_shape(parser, "CreatedBy")
    options = parser.parse_args(args)
    with _store(options) as store:
        image, _config = find(store, options.name)
        config = config_of(store, image)
        sizes = [tar_size(store, layer) for layer in config.diff_ids]
    rows: list[dict[str, Any]] = []
    for line in config.history:
        length = 0 if line.empty_layer or not sizes else sizes.pop(0)
        row: dict[str, Any] = {
            "CreatedAt": line.created,
            "CreatedBy": line.created_by,
            "Size": length,
            "Comment": line.comment,
        }
        rows.insert(0, row)
    if show(rows, options.json, options.format, tools.show):
        return 0
    from builder.progress.lines import printable

    for row in rows:
        created = row["CreatedAt"][:19].replace("T", " ") or "-"
        shown = f"{row['Size'] / 1e6:.1f} MB"
        tools.show(f"{created:19}  {shown:>12}  {printable(row['CreatedBy'])}")
    return 0


def images(args: Sequence[str], tools: Tools) -> int:
    parser = tools.parser(prog="pybuild images", description="List the images of the store.")
    parser.add_argument(
        "name", nargs="?", default="", metavar="NAME", help="a repository, or one of its tags (default: all)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="the IDs alone")
    parser.add_argument("--no-trunc", action="store_true", help="whole IDs")
    _add_shape(parser, "Name")
    options = parser.parse_args(args)
    from builder.progress.lines import printable

    damaged: list[BuildError | CacheError] = []
    rows: list[dict[str, Any]] = []
    with _store(options) as store:
        for name, image in named(store, damaged):
            try:
                config = config_of(store, image)
                length = size(store, config)
            except (BuildError, CacheError) as error:
                damaged.append(error)
                continue
            parsed = reference(name)
            repository, _, tag = parsed.familiar.rpartition(":")
            if options.name and options.name not in (repository, parsed.familiar, parsed.name, name):
                continue
            rows.append(
                {
                    "Name": parsed.familiar,
                    "Repository": repository,
                    "Tag": tag,
                    "ID": image if options.no_trunc or options.json else image[7:19],
                    "CreatedAt": config.created,
                    "Size": length,
                    "Platform": str(config.platform),
                }
            )
    if options.quiet:
        for image_id in dict.fromkeys(row["ID"] for row in rows):
            tools.show(image_id)
    elif not show(rows, options.json, options.format, tools.show):
        for line in _table(rows):
            tools.show(printable(line))
    for unreadable in damaged:
        tools.warn(f"{unreadable.message} ({unreadable.hint})")
    return 0


def _table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [("NAME", "IMAGE ID", "CREATED", "SIZE")]
    for row in rows:
        created = row["CreatedAt"][:19].replace("T", " ") or "-"
        lines.append((row["Name"], row["ID"], created, f"{row['Size'] / 1e6:.1f} MB"))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


# -- options -------------------------------------------------------------------------------


def _transfer_parser(tools: Tools, name: str, about: str) -> argparse.ArgumentParser:
    parser = tools.parser(prog=f"pybuild {name}", description=about)
    parser.add_argument("name", nargs="+", metavar="NAME")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="what was done as JSON, for programs")
    parser.add_argument("--progress", default="auto", choices=("auto", "tty", "plain", "quiet", "rawjson"))
    _add_server_options(parser)
    return parser


def _add_shape(parser: argparse.ArgumentParser, example: str, json_too: bool = True) -> None:
    """``--json`` and ``--format``; *example* is a field that templates may name."""
    if json_too:
        parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    parser.add_argument(
        *(() if json_too else ("-f",)),
        "--format",
        default="",
        metavar="TEMPLATE",
        help=f"a template as docker has them, such as {{{{.{example}}}}}, or json",
    )


def _add_server_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--insecure-registry",
        action="append",
        default=[],
        metavar="HOST",
        help="speak HTTP with HOST, or HTTPS with any certificate (repeatable)",
    )
    add_timeout(parser)


def _store(options: argparse.Namespace) -> Store:
    return Store(options.root or default_root())


def _registry(text: str) -> str:
    """``host[:port]``, as users and docker write it."""
    name = text.removeprefix("https://").removeprefix("http://").rstrip("/")
    if name in ("index.docker.io/v1", "index.docker.io", "registry-1.docker.io", "hub.docker.com"):
        return "docker.io"
    probe = reference(f"{name}/x")
    if probe.registry != name or os.sep in name:
        raise UsageError(f"{text!r} is not the name of a registry", "for example: registry.example.com:5000")
    return name
