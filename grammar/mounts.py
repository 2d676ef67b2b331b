"""RUN --mount: comma-separated options to a ``Mount``, checked in BuildKit's order and with its words."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from typing import Literal, assert_never, get_args

from grammar.booleans import truth
from grammar.errors import DockerfileError
from grammar.span import Span
from grammar.structs import struct
from grammar.suggest import suggestion

MountType = Literal["bind", "cache", "tmpfs", "secret", "ssh"]
TYPES: tuple[MountType, ...] = get_args(MountType)
SHARING = ("shared", "private", "locked")
_KEYS = (
    *("type", "from", "source", "target", "readonly", "id", "sharing", "required", "mode", "uid", "gid"),
    *("src", "dst", "destination", "ro", "rw", "readwrite", "size", "env"),
)
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+) ?([kmgtpKMGTP]?)(?:[iI]?[bB])?")


@struct
class Bind:
    """``type=bind``: files of a stage, an image or a context."""

    target: str
    from_: str
    source: str
    read_only: bool


@struct
class Cache:
    """``type=cache``. ``mode``, ``uid`` and ``gid`` are those of a new directory, None if not given."""

    target: str
    from_: str
    source: str
    read_only: bool
    id: str
    sharing: str
    mode: int | None
    uid: int | None
    gid: int | None


@struct
class Tmpfs:
    """``type=tmpfs``; ``size`` is in bytes, 0 for the kernel's default."""

    target: str
    size: int
    read_only: bool


@struct
class Secret:
    """``type=secret``; ``env`` is the variable that holds it, None for a file only."""

    target: str
    id: str
    source: str
    env: str | None
    required: bool
    mode: int | None
    uid: int | None
    gid: int | None


@struct
class Ssh:
    """``type=ssh``: the socket of an agent."""

    target: str
    id: str
    required: bool
    mode: int | None
    uid: int | None
    gid: int | None


Mount = Bind | Cache | Tmpfs | Secret | Ssh


@struct(frozen=False)
class _Options:
    """The options read so far. Those not given are "", or None where "" or 0 is a value."""

    type: MountType = "bind"
    from_: str = ""
    source: str = ""
    target: str = ""
    read_only: bool | None = None
    id: str = ""
    sharing: str = ""
    required: bool = False
    size: int = 0
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    env: str | None = None


def parse_mount(text: str, span: Span, expand: Callable[[str], str]) -> Mount:
    """Parse the value of a ``--mount``; *expand* replaces variables. Raises DockerfileError."""

    def fail(message: str, close: tuple[str, ...] = (), word: str = "") -> DockerfileError:
        return DockerfileError(message + suggestion(word, close), span)

    options = _Options()
    for field in _fields(text, span):
        key, equals, value = field.partition("=")
        key = key.lower()
        if not equals:
            if key not in ("readonly", "ro", "readwrite", "rw", "required"):
                raise fail(f"invalid field '{field}' must be a key=value pair")
            value = "true"
        elif key == "from":
            if re.search(r"\$.", value):
                raise fail("'from' doesn't support variable expansion, define alias stage instead")
        else:
            value = expand(value)
        try:
            _set(options, key, value)
        except KeyError:
            if key in _KEYS:
                raise fail(f"unexpected key '{key}' for mount type '{options.type}'") from None
            raise fail(f"unexpected key '{key}' in '{field}'", _KEYS, key) from None
        except ValueError as error:
            words = {"type": TYPES, "sharing": SHARING}.get(key, ())
            raise fail(str(error) or f"invalid value for {key}: {value}", words, value) from None
    _check(options, fail)
    return _made(options)


def _fields(text: str, span: Span) -> list[str]:
    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error as error:
        raise DockerfileError(f"failed to parse csv mounts: {error}", span) from None
    if not rows or not rows[0]:
        raise DockerfileError("failed to parse csv mounts: EOF", span)
    return rows[0]


def _set(options: _Options, key: str, value: str) -> None:
    """Set one option. Raises KeyError for one that the type does not have, ValueError for a bad value."""
    match key:
        case "type":
            found = next((name for name in TYPES if name == value.lower()), None)
            if found is None:
                raise ValueError(f'unsupported mount type "{value}"')
            options.type = found
        case "from":
            options.from_ = value
        case "source" | "src":
            options.source = value
        case "target" | "dst" | "destination":
            options.target = value
        case "readonly" | "ro":
            options.read_only = _truth(value)
        case "readwrite" | "rw":
            options.read_only = not _truth(value)
        case "required" if options.type in ("secret", "ssh"):
            options.required = _truth(value)
        case "size" if options.type == "tmpfs":
            options.size = _bytes(value)
        case "env" if options.type == "secret":
            options.env = value
        case "id":
            options.id = value
        case "sharing":
            if value.lower() not in SHARING:
                raise ValueError(f'unsupported sharing value "{value}"')
            options.sharing = value.lower()
        case "mode":
            if not re.fullmatch("[0-7]{1,11}", value) or int(value, 8) >= 1 << 32:
                raise ValueError(f"invalid value {value} for mode")
            options.mode = int(value, 8)
        case "uid":
            options.uid = _id(value, "uid")
        case "gid":
            options.gid = _id(value, "gid")
        case _:
            raise KeyError(key)


def _truth(value: str) -> bool:
    found = truth(value)
    if found is None:
        raise ValueError
    return found


def _id(value: str, what: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", value) or int(value) >= 1 << 32:
        raise ValueError(f"invalid value {value} for {what}")
    return int(value)


def _bytes(value: str) -> int:
    """Return the bytes of ``64m`` or ``1.5GiB``: powers of 1024, as docker reads memory sizes."""
    found = _SIZE.fullmatch(value) if len(value) < 40 else None
    if found is None:
        raise ValueError
    return int(float(found[1]) * 1024 ** " kmgtp".index(found[2].lower() or " "))


def _check(options: _Options, fail: Callable[[str], DockerfileError]) -> None:
    """Refuse options that do not fit the type or each other."""
    kind = options.type
    if kind not in ("secret", "ssh", "cache"):
        for name, value in (("mode", options.mode), ("uid", options.uid), ("gid", options.gid)):
            if value is not None:
                raise fail(f'{name} not allowed for "{kind}" type mounts')
    if kind == "secret":
        if options.from_:
            raise fail("secret mount should not have a from")
        if options.sharing:
            raise fail("secret mount should not define sharing")
        if not options.source and not options.target and not options.id:
            raise fail("invalid secret mount. one of source, target required")
        if options.source and options.id:
            raise fail("both source and id can't be set")
    if options.sharing and kind != "cache":
        raise fail(f"invalid cache sharing set for {kind} mount")


def _made(given: _Options) -> Mount:
    """Return the mount of checked options, with the defaults of its type."""
    owner = (given.mode, given.uid, given.gid)
    match given.type:
        case "cache":
            read_only, sharing = given.read_only is True, given.sharing or SHARING[0]
            return Cache(given.target, given.from_, given.source, read_only, given.id, sharing, *owner)
        case "tmpfs":
            return Tmpfs(given.target, given.size, given.read_only is True)
        case "secret":
            return Secret(given.target, given.id, given.source, given.env, given.required, *owner)
        case "ssh":
            return Ssh(given.target, given.id, given.required, *owner)
        case "bind":
            return Bind(given.target, given.from_, given.source, given.read_only is not False)
    assert_never(given.type)
