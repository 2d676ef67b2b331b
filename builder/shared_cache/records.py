"""The records of a shared cache: the results of steps by their keys, and their JSON form.

Records are untrusted. A key is a hash of everything that a step depends on, so a record applies only to a
step for which this build derives the same key. Layers are verified against their digests and diff IDs when
they are fetched. Records hold nothing else of the Dockerfile, its arguments or its environment.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from builder.errors import SharedCacheError
from builder.oci.manifest import parse_descriptor
from builder.support.json_strict import loads
from builder.support.json_types import Json, JsonObject
from cache.descriptor import Descriptor
from cache.digest import DiffId, digest
from cache.errors import CacheError
from grammar.structs import field, struct

INLINE = "pybuild.cache"  # the field of an image's config
LIMIT = 32 << 20  # bytes of what is read
_VERSION = 1
_HEX = frozenset("0123456789abcdef")


@struct
class Record:
    """The result of a step: its ``layer``, made at ``created`` (ns), above RUNs with the layers ``run``."""

    key: str
    run: str
    created: int
    layer: DiffId


@struct
class Records:
    """A whole cache: results of steps, digests of files by content key, blobs of cache mounts by name."""

    steps: tuple[Record, ...] = ()
    contents: dict[str, str] = field(factory=dict)
    mounts: dict[str, Descriptor] = field(factory=dict)


def encode(records: Records, layers: Iterable[tuple[DiffId, Descriptor]] = ()) -> JsonObject:
    """Return the records as JSON. *layers* are the blobs of diff IDs; an image's own config needs none."""
    out: JsonObject = {
        "version": _VERSION,
        "steps": [
            {
                "key": record.key,
                "run": record.run,
                "created": record.created,
                "layer": record.layer,
            }
            for record in records.steps
        ],
    }
    if records.contents:
        out["contents"] = dict(sorted(records.contents.items()))
    if records.mounts:
        out["mounts"] = {name: item.to_json() for name, item in sorted(records.mounts.items())}
    blobs = {layer: item.to_json() for layer, item in layers}
    if blobs:
        out["layers"] = dict(sorted(blobs.items()))
    return out


def to_bytes(value: JsonObject) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def parse(data: bytes, what: str) -> tuple[Records, dict[DiffId, Descriptor]]:
    """Return the records in *data* and the blobs of their layers. Raises BuildError."""
    value = loads(data, what, LIMIT)
    if not isinstance(value, dict):
        raise SharedCacheError(f"{what} is not a JSON object")
    return decode(value, what)


def decode(value: JsonObject, what: str) -> tuple[Records, dict[DiffId, Descriptor]]:
    """Return what ``parse`` does, from JSON that is already read. Raises BuildError."""
    if value.get("version") != _VERSION:
        raise SharedCacheError(f"{what} is of version {value.get('version')!r}, not {_VERSION}")
    try:
        steps = tuple(map(_record, _typed(value, "steps", list)))
        contents = {_hex(key): _content(item) for key, item in _typed(value, "contents", dict).items()}
        mounts = {
            _hex(name): parse_descriptor(item, "a cache mount")
            for name, item in _typed(value, "mounts", dict).items()
        }
        layers = {
            DiffId(digest(layer)): parse_descriptor(item, "a layer")
            for layer, item in _typed(value, "layers", dict).items()
        }
    except (TypeError, CacheError) as error:
        raise SharedCacheError(f"{what} is not what a cache is: {error}") from None
    return Records(steps, contents, mounts), layers


def _record(item: Json) -> Record:
    if not isinstance(item, dict):
        raise TypeError("a step is not an object")
    created, run = item.get("created"), item.get("run", "")
    if type(created) is not int or not 0 <= created < 1 << 63:
        raise TypeError("a step has no date")
    run = digest(str(run)) if run else ""
    return Record(_hex(item.get("key")), run, created, DiffId(digest(str(item.get("layer")))))


def _hex(value: object) -> str:
    if not isinstance(value, str) or len(value) != 64 or not _HEX.issuperset(value):
        raise TypeError(f"{str(value)[:80]!r} is not a key")
    return value


def _content(value: object) -> str:
    return "nothing" if value == "nothing" else _hex(value)


def _typed(value: JsonObject, name: str, kind: type) -> Json:
    item = value.get(name, kind())
    if not isinstance(item, kind):
        raise TypeError(f"{name!r} is not a {kind.__name__}")
    return item
