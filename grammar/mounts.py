"""RUN --mount: comma-separated options to a value, in BuildKit's order and words."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable

from grammar.booleans import truth
from grammar.errors import DockerfileError
from grammar.span import Span
from grammar.structs import struct
from grammar.suggest import suggestion

TYPES = ("bind", "cache", "tmpfs", "secret", "ssh")
SHARING = ("shared", "private", "locked")
_KEYS: tuple[str, ...] = (
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "mode",
    "uid",
    "gid",
)
_KEYS += ("src", "dst", "destination", "ro", "rw", "readwrite", "size", "env")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+) ?([kmgtpKMGTP]?)(?:[iI]?[bB])?")


@struct(frozen=False)
class Mount:
    """One ``--mount``. Options that were not given are empty, or None where that is a value.

    ``read_only`` has the default of the type; ``size`` is in bytes.
    """

    type: str = "bind"
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
    """Read the value of a ``--mount``; *expand* replaces variables. Raises DockerfileError."""

    def fail(message: str, close: tuple[str, ...] = (), word: str = "") -> DockerfileError:
        return DockerfileError(message + suggestion(word, close), span)

    mount = Mount()
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
            _set(mount, key, value)
        except KeyError:
            if key in _KEYS:
                raise fail(f"unexpected key '{key}' for mount type '{mount.type}'") from None
            raise fail(f"unexpected key '{key}' in '{field}'", _KEYS, key) from None
        except ValueError as error:
            words = {"type": TYPES, "sharing": SHARING}.get(key, ())
            raise fail(str(error) or f"invalid value for {key}: {value}", words, value) from None
    _check(mount, fail)
    return mount


def _fields(text: str, span: Span) -> list[str]:
    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error as error:
        raise DockerfileError(f"failed to parse csv mounts: {error}", span) from None
    if not rows:
        raise DockerfileError("failed to parse csv mounts: EOF", span)
    return rows[0]


def _set(mount: Mount, key: str, value: str) -> None:
    """Set one option. Raises KeyError for one the type does not have, ValueError for a bad value."""
    match key:
        case "type":
            if value.lower() not in TYPES:
                raise ValueError(f'unsupported mount type "{value}"')
            mount.type = value.lower()
        case "from":
            mount.from_ = value
        case "source" | "src":
            mount.source = value
        case "target" | "dst" | "destination":
            mount.target = value
        case "readonly" | "ro":
            mount.read_only = _truth(value)
        case "readwrite" | "rw":
            mount.read_only = not _truth(value)
        case "required" if mount.type in ("secret", "ssh"):
            mount.required = _truth(value)
        case "size" if mount.type == "tmpfs":
            mount.size = _bytes(value)
        case "env" if mount.type == "secret":
            mount.env = value
        case "id":
            mount.id = value
        case "sharing":
            if value.lower() not in SHARING:
                raise ValueError(f'unsupported sharing value "{value}"')
            mount.sharing = value.lower()
        case "mode":
            if not re.fullmatch("[0-7]{1,11}", value) or int(value, 8) >= 1 << 32:
                raise ValueError(f"invalid value {value} for mode")
            mount.mode = int(value, 8)
        case "uid":
            mount.uid = _id(value, "uid")
        case "gid":
            mount.gid = _id(value, "gid")
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
    """``64m``, ``1.5GiB``: powers of 1024, as docker reads memory sizes."""
    found = _SIZE.fullmatch(value) if len(value) < 40 else None
    if found is None:
        raise ValueError
    return int(float(found[1]) * 1024 ** " kmgtp".index(found[2].lower() or " "))


def _check(mount: Mount, fail: Callable[[str], DockerfileError]) -> None:
    """What fits together, and the defaults of the type."""
    kind = mount.type
    if kind not in ("secret", "ssh", "cache"):
        for name, value in (("mode", mount.mode), ("uid", mount.uid), ("gid", mount.gid)):
            if value is not None:
                raise fail(f'{name} not allowed for "{kind}" type mounts')
    if mount.read_only is None:
        mount.read_only = kind not in ("cache", "tmpfs")
    if kind == "secret":
        if mount.from_:
            raise fail("secret mount should not have a from")
        if mount.sharing:
            raise fail("secret mount should not define sharing")
        if not mount.source and not mount.target and not mount.id:
            raise fail("invalid secret mount. one of source, target required")
        if mount.source and mount.id:
            raise fail("both source and id can't be set")
    if mount.sharing and kind != "cache":
        raise fail(f"invalid cache sharing set for {kind} mount")
