"""registries.conf: mirrors and other places of images, and registries that are blocked.

Version 2 of containers-registries.conf(5), that is its ``[[registry]]`` tables. Short names are
docker.io's, as for docker, so what the file says of those is not read.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from typing import Any

from builder.errors import RegistryConfigError
from builder.registry.errors import Blocked
from grammar.errors import ReferenceError_
from grammar.reference import Reference, parse_reference
from grammar.structs import struct

_LIMIT = 1 << 20
_SYSTEM = "/etc/containers"
_PULLS = ("all", "digest-only", "tag-only")


@struct
class Endpoint:
    """A repository at a registry that an image can be read from."""

    registry: str
    repository: str
    insecure: bool


@struct
class Mirror:
    """A ``[[registry.mirror]]``; ``pulls`` is one of all, digest-only, tag-only."""

    location: str
    insecure: bool
    pulls: str


@struct
class Table:
    """A ``[[registry]]``, and the file it is from. ``location`` is "" where names stay as they are."""

    file: str
    prefix: str
    location: str
    insecure: bool
    blocked: bool
    mirrors: tuple[Mirror, ...]


# -- from a name to the places to ask --------------------------------------------------------


def endpoints(reference: Reference, tables: tuple[Table, ...], insecure: frozenset[str]) -> list[Endpoint]:
    """Return the places to read *reference* from, in order. Hosts in *insecure* are marked as insecure.

    Only the table with the longest prefix applies. Raises Blocked, and BuildError for a location that
    makes no name.
    """
    table, length = _table(reference, tables)
    if table is None:
        return [_endpoint(reference.registry, reference.repository, False, insecure)]
    if table.blocked:
        raise Blocked(f"{reference.familiar} may not be used: {table.file} blocks {table.prefix}")
    wanted = "digest-only" if reference.digest else "tag-only"
    places = [mirror for mirror in table.mirrors if mirror.pulls in ("all", wanted)]
    rest = reference.name[length:]
    found = []
    for location, its_insecure in [
        *((mirror.location, mirror.insecure) for mirror in places),
        (table.location or reference.name[:length], table.insecure),
    ]:
        registry, repository = _moved(location, rest, table)
        found.append(_endpoint(registry, repository, its_insecure, insecure))
    return found


def _table(reference: Reference, tables: tuple[Table, ...]) -> tuple[Table | None, int]:
    """Return the table for a reference, and how many characters of the name its prefix covers."""
    found = max(tables, key=lambda table: _covered(str(reference), table.prefix), default=None)
    length = _covered(str(reference), found.prefix) if found else 0
    return (found, length) if length else (None, 0)


def _covered(name: str, prefix: str) -> int:
    """How many characters of *name* a prefix covers; 0: it is not for this name."""
    length = len(prefix)
    if prefix.startswith("*."):
        place = name.find(prefix[1:])
        if place < 1 or "/" in name[:place]:
            return 0
        length += place - 1
    elif not name.startswith(prefix):
        return 0
    return length if name[length : length + 1] in ("", ":", "/", "@") else 0


def _endpoint(registry: str, repository: str, its_insecure: bool, insecure: frozenset[str]) -> Endpoint:
    return Endpoint(registry, repository, its_insecure or registry in insecure)


def _moved(location: str, rest: str, table: Table) -> tuple[str, str]:
    """Return registry and repository of a location joined with the rest of a name. Raises BuildError."""
    name = location + rest
    try:
        moved = parse_reference(name)
    except ReferenceError_ as error:
        raise RegistryConfigError(f"{table.file}: {location!r} makes the name {name!r}: {error}") from None
    if moved.registry != name.partition("/")[0] or moved.digest or moved.tag != "latest":
        raise RegistryConfigError(f"{table.file}: {location!r} makes {name!r}, which is no host/name")
    return moved.registry, moved.repository


# -- from files to tables --------------------------------------------------------------------


def read_tables(environ: Mapping[str, str]) -> tuple[Table, ...]:
    """Read the file of CONTAINERS_REGISTRIES_CONF; else the user's file and its drop-in directory; else the
    system's file and both drop-in directories. Of equal prefixes the last wins. Raises BuildError.
    """
    if path := environ.get("CONTAINERS_REGISTRIES_CONF"):
        return tuple(_read(path))
    home = environ.get("HOME", "")
    own = os.path.join(home, ".config/containers") if home else ""
    if own and os.path.exists(f"{own}/registries.conf"):
        places = [f"{own}/registries.conf", *_folder(own)]
    else:
        system = f"{_SYSTEM}/registries.conf"
        places = [system] if os.path.exists(system) else []
        places += [*_folder(_SYSTEM), *(_folder(own) if own else [])]
    tables: dict[str, Table] = {}
    for place in places:
        tables |= {table.prefix: table for table in _read(place)}
    return tuple(tables.values())


def _folder(parent: str) -> list[str]:
    folder = f"{parent}/registries.conf.d"
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".conf"))
    except OSError:
        return []
    return [f"{folder}/{name}" for name in names if os.path.isfile(f"{folder}/{name}")]


def _read(path: str) -> list[Table]:
    try:
        with open(path, "rb") as file:
            data = file.read(_LIMIT + 1)
        if len(data) > _LIMIT:
            raise RegistryConfigError(f"{path} is larger than {_LIMIT} bytes")
        value = tomllib.loads(data.decode("utf-8"))
        if "registries" in value:
            raise ValueError("it is of the old version 1, with [registries...]; write [[registry]] tables")
        made = [_parsed(path, item) for item in _tables(value, "registry")]
        prefixes = [table.prefix for table in made]
        if twice := next((prefix for prefix in prefixes if prefixes.count(prefix) > 1), ""):
            raise ValueError(f"there are two [[registry]] tables for {twice}")
        return made
    except OSError as error:
        raise RegistryConfigError(f"reading {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise RegistryConfigError(f"{path}: {error}") from None


def _parsed(path: str, item: dict[str, Any]) -> Table:
    location, prefix = _place(item, "location"), _text(item, "prefix").rstrip("/")
    prefix = prefix or location
    if not prefix:
        raise ValueError("a [[registry]] has neither prefix nor location")
    if "*" in prefix and (not prefix.startswith("*.") or prefix.count("*") > 1 or set(":/@") & set(prefix)):
        raise ValueError(f"the prefix {prefix!r}: a * can only begin a host, as in *.example.com")
    by_digest = _flag(item, "mirror-by-digest-only")
    mirrors = []
    for each in _tables(item, "mirror"):
        pulls = _text(each, "pull-from-mirror")
        if pulls and by_digest:
            raise ValueError(f"{prefix}: pull-from-mirror and mirror-by-digest-only exclude each other")
        pulls = pulls or ("digest-only" if by_digest else "all")
        if pulls not in _PULLS:
            raise ValueError(f"{prefix}: pull-from-mirror is one of {', '.join(_PULLS)}, not {pulls!r}")
        place = _place(each, "location")
        if not place:
            raise ValueError(f"{prefix}: a mirror has no location")
        mirrors.append(Mirror(place, _flag(each, "insecure"), pulls))
    return Table(path, prefix, location, _flag(item, "insecure"), _flag(item, "blocked"), tuple(mirrors))


def _place(item: dict[str, Any], key: str) -> str:
    """A ``host[:port][/path]``. Raises ValueError for a URL."""
    text = _text(item, key).rstrip("/")
    if "://" in text or "*" in text:
        raise ValueError(f"the {key} {text!r} is not of the form host[:port][/path]")
    return text


def _text(item: dict[str, Any], key: str) -> str:
    value = item.get(key, "")
    if not isinstance(value, str):
        raise ValueError(f"{key} is not a text: {value!r}")
    return value


def _flag(item: dict[str, Any], key: str) -> bool:
    value = item.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{key} is neither true nor false: {value!r}")
    return value


def _tables(item: dict[str, Any], key: str) -> list[dict[str, Any]]:
    value = item.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ValueError(f"{key} is not a list of tables, as [[{key}]] makes them")
    return value
