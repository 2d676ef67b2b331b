"""The options of ``pybuild run`` that override the image's config."""

from __future__ import annotations

import argparse
import ipaddress
import os

from builder.cli.parser import add_repeatable
from builder.errors import BuildError, UsageError
from builder.runtime.network.publish import Port
from builder.runtime.spec import MOST_VOLUMES
from grammar.structs import struct

_FILE_LIMIT = 16 << 20
# Options of docker and podman without effect: volumes are private bind mounts and need no labels.
_NO_EFFECT = {
    *("", "z", "Z", "cached", "consistent", "delegated", "nocopy"),
    *("private", "rprivate", "bind", "rbind", "copy"),
}
_BLANKS = " \t\v\f\r\x85\xa0"
_LAST_PORT = (1 << 16) - 1


@struct
class Changes:
    """What the command line sets instead of the image's config; ``entrypoint`` None is the image's.

    ``volumes`` are absolute paths of this machine, the paths in the container, and whether read-only.
    """

    env: tuple[tuple[str, str], ...] = ()
    cwd: str = ""
    user: str = ""
    entrypoint: tuple[str, ...] | None = None
    volumes: tuple[tuple[str, str, bool], ...] = ()
    ports: tuple[Port, ...] = ()


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add_repeatable(parser, "-e --env", "NAME[=VALUE]", "set an environment variable")
    add_repeatable(parser, "--env-file", "FILE", "read environment variables from a file")
    add_repeatable(parser, "-v --volume", "PATH:TARGET[:ro]", "bind mount a file or directory of the host")
    add("-w", "--workdir", default="", metavar="DIR", help="working directory")
    add("-u", "--user", default="", metavar="USER[:GROUP]", help="name or UID")
    add_repeatable(
        parser, "-p --publish", "[ADDRESS:]PORT:PORT", "publish a TCP port of the container (binds 127.0.0.1)"
    )
    add("--entrypoint", metavar="COMMAND", help='override the ENTRYPOINT of the image; "" for none')
    add("--rm", action="store_true", help="remove the container at its end (always on)")


def changes(options: argparse.Namespace) -> Changes:
    """Return what the options change. Raises UsageError and BuildError."""
    if len(options.volume) > MOST_VOLUMES:
        raise UsageError(f"there are more than {MOST_VOLUMES} volumes")
    if options.publish and options.network == "host":
        raise UsageError(
            "--publish: it has no effect with --network=host: the container uses the host's ports"
        )
    volumes = tuple(map(_volume, options.volume))
    mounts = {"sys_admin", "all"} & set(_capabilities(options))
    if mounts and any(read_only for _, _, read_only in volumes):
        raise UsageError(
            "a container with CAP_SYS_ADMIN can make a read-only volume writable",
            "leave out :ro, or the capability",
        )
    if options.workdir and not options.workdir.startswith("/"):
        raise UsageError(f"--workdir {options.workdir!r} is not an absolute path")
    lines = [line for path in options.env_file for line in _lines(path)]
    pairs = (_variable(text) for text in (*lines, *options.env))
    return Changes(
        tuple(pair for pair in pairs if pair is not None),
        options.workdir,
        options.user,
        _entrypoint(options.entrypoint),
        volumes,
        tuple(map(_port, options.publish)),
    )


def _capabilities(options: argparse.Namespace) -> list[str]:
    return [word.lower().removeprefix("cap_") for item in options.cap_add for word in item.split(",")]


def _entrypoint(text: str | None) -> tuple[str, ...] | None:
    """Return one word, as docker does; none for an empty text."""
    return None if text is None else (text,) if text else ()


def _lines(path: str) -> list[str]:
    """Return the lines of an ``--env-file``, read as docker does.

    Blanks before a line, one carriage return at its end and a byte order mark are ignored. Raises UsageError
    and BuildError.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_FILE_LIMIT + 1)
    except OSError as error:
        raise BuildError(f"reading {path}: {error.strerror}") from None
    if len(data) > _FILE_LIMIT:
        raise BuildError(f"--env-file {path} is longer than {_FILE_LIMIT >> 20} MiB")
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    out = []
    lines = (line.removesuffix("\r").lstrip(_BLANKS) for line in text.split("\n"))
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        name = line.partition("=")[0]
        if not name or set(_BLANKS) & set(name):
            what = f"the name {name!r} has blanks" if name else "there is no name"
            raise UsageError(
                f"--env-file {path} line {number}: {what}",
                "write NAME=VALUE, without export and without blanks before the equals sign",
            )
        out.append(line)
    return out


def _variable(text: str) -> tuple[str, str] | None:
    """Return name and value; the value of a bare ``NAME`` is that of the environment, None if it has none."""
    name, equals, value = text.partition("=")
    if not name or "\0" in text:
        raise UsageError(f"--env {text!r} has no name")
    if equals:
        return name, value
    return (name, os.environ[name]) if name in os.environ else None


def _volume(text: str) -> tuple[str, str, bool]:
    source, _, rest = text.partition(":")
    target, _, flags = rest.partition(":")
    words = {word for word in flags.split(",") if word not in _NO_EFFECT}
    if not target.startswith("/"):
        raise UsageError(f"--volume {text!r} is not PATH:TARGET[:ro]", "for example: -v $PWD:/work")
    if unknown := sorted(words - {"ro", "rw"}):
        raise UsageError(f"--volume {text!r}: there is no option {unknown[0]!r}", "use ro or rw")
    if len(words) > 1:
        raise UsageError(f"--volume {text!r} is both ro and rw")
    target = os.path.normpath(target)
    if target in ("/", "//"):
        raise UsageError(f"--volume {text!r}: the root directory cannot be a volume")
    if "/" not in source and source not in (".", ".."):
        raise UsageError(
            f"--volume {text!r}: named volumes are not supported", f"write ./{source} for a directory"
        )
    if not os.path.exists(source):
        raise UsageError(f"--volume {text!r}: there is no {source}")
    return os.path.realpath(source), target, words == {"ro"}


def _port(text: str) -> Port:
    words = text.removesuffix("/tcp").rsplit(":", 2)
    if len(words) == 2:
        words.insert(0, "127.0.0.1")
    try:
        address, here, inside = words
        address = str(ipaddress.ip_address(address.removeprefix("[").removesuffix("]")))
        numbers = [int(word) for word in (here, inside) if word.isascii() and word.isdigit()]
        if len(numbers) != 2 or max(numbers) > _LAST_PORT or not numbers[1]:
            raise ValueError
    except ValueError:
        raise UsageError(
            f"--publish {text!r} is not [ADDRESS:]PORT:PORT", "for example: -p 8080:80"
        ) from None
    return Port(address, *numbers)
