"""The records of a shared cache: written, read, and refused where they are malformed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from builder.errors import BuildError
from builder.shared_cache.records import Record, Records, encode, parse, to_bytes
from cache.descriptor import Descriptor
from cache.digest import DiffId, digest_of

LAYER = DiffId(digest_of(b"layer"))
BLOB = Descriptor("application/vnd.oci.image.layer.v1.tar+zstd", digest_of(b"blob"), 4)
KEY = "a" * 64


def test_what_is_written_is_read() -> None:
    records = Records(
        (Record(KEY, LAYER, 7, LAYER), Record("b" * 64, "", 0, LAYER)),
        {"c" * 64: "nothing", "d" * 64: "e" * 64},
        {"f" * 64: BLOB},
    )
    assert parse(to_bytes(encode(records, [(LAYER, BLOB)])), "it") == (records, {LAYER: BLOB})
    assert to_bytes(encode(records)) == to_bytes(encode(records))
    assert parse(to_bytes(encode(Records())), "it") == (Records(), {})


def changed(**changes: Any) -> bytes:
    step = {"key": KEY, "run": "", "created": 1, "layer": LAYER}
    value: dict[str, Any] = {"version": 1, "steps": [step]}
    for name, item in changes.items():
        if name in step:
            step[name] = item
        else:
            value[name] = item
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"steps": {}},
        {"steps": [3]},
        {"key": "A" * 64},
        {"key": "a"},
        {"created": -1},
        {"created": True},
        {"created": 1 << 63},
        {"layer": "md5:0"},
        {"run": "sha256:0"},
        {"contents": []},
        {"contents": {"a": "nothing"}},
        {"contents": {KEY: "x"}},
        {"mounts": {KEY: {}}},
        {"layers": {"x": {}}},
    ],
)
def test_malformed_records_are_refused(changes: dict[str, Any]) -> None:
    assert parse(changed(), "it")[0].steps[0].key == KEY
    with pytest.raises(BuildError, match=r"it|descriptor"):
        parse(changed(**changes), "it")


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"version": 1, "version": 1}'])
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(BuildError):
        parse(data, "it")
