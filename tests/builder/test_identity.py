"""Every field of every op changes its key, or is on the list of those that must not."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

from builder.plan.identity import identity
from builder.plan.ops import CopyFiles, FromImage, MakeDir, Op, RunCommand
from cache.digest import digest_of
from cache.keys import derive

SAMPLES: list[Op] = [
    FromImage("name", digest_of(b"image"), (digest_of(b"layer"),)),
    RunCommand(("a",), (("k", "v"),), "/", "", "none", "host", (("http_proxy", "x"),)),
    CopyFiles(("a",), "/b", True, "1:2", "755"),
    MakeDir("/w", "5"),
]

# Names only show in messages; a base is its layers; a proxy reaches a step undeclared (T98).
WITHOUT_EFFECT = {("FromImage", "name"), ("FromImage", "image"), ("RunCommand", "proxies")}

CASES = [(op, field.name) for op in SAMPLES for field in dataclasses.fields(op)]


def other(value: object) -> object:
    """A value of the same type that differs."""
    match value:
        case bool():
            return not value
        case str():
            return value + "x"
        case tuple():
            return (*value, *value)
        case _:
            raise AssertionError(f"how does a {type(value).__name__} differ?")


def test_every_op_has_a_sample() -> None:
    assert {type(op) for op in SAMPLES} == set(get_args(Op))


@pytest.mark.parametrize(("op", "field"), CASES, ids=[f"{type(op).__name__}.{field}" for op, field in CASES])
def test_field(op: Op, field: str) -> None:
    changed = dataclasses.replace(op, **{field: other(getattr(op, field))})  # type: ignore[arg-type]
    same = derive(*identity(op)) == derive(*identity(changed))
    assert same is ((type(op).__name__, field) in WITHOUT_EFFECT)
