"""Whole Dockerfiles: cases/<name>/Dockerfile must read as cases/<name>/expected says.

One line per instruction, ``first-last KIND``, then its fields that are not at their default.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from grammar import ast, structs
from grammar.parse import parse
from grammar.span import Span

CASES = sorted((Path(__file__).parent / "cases").iterdir())


def render(made: ast.Dockerfile) -> str:
    lines = [f"directives {field}" for field in _fields(made.directives)]
    for arg in made.global_args:
        lines += _node(arg, "global ")
    for number, stage in enumerate(made.stages):
        lines += ["", f"stage {number}", *_node(stage.start)]
        for instruction in stage.instructions:
            lines += _node(instruction)
    return "\n".join(lines).lstrip("\n") + "\n"


def _node(node: ast.Instruction, prefix: str = "") -> list[str]:
    head = f"{prefix}{node.span.first}-{node.span.last} {type(node).__name__.upper()}"
    return [head, *(f"    {field}" for field in _fields(node))]


def _fields(value: ast.Instruction | ast.Directives) -> Iterator[str]:
    for field, default in structs.fields(value).items():
        item = getattr(value, field)
        if field.endswith(("span", "spans")) or item == default:
            continue
        if isinstance(item, tuple) and item and not isinstance(item[0], str):
            yield from (f"{field} {_text(each)}" for each in item)
        else:
            yield f"{field} {_text(item)}"


def _text(item: object) -> str:
    match item:
        case ast.ShellForm(text):
            return f"shell {text!r}"
        case ast.ExecForm(argv):
            return f"exec {list(argv)!r}"
        case ast.Pair(key, value):
            return f"{key} = {value!r}"
        case ast.Flag(_, value):
            return repr(value)
        case ast.Heredoc(name, _, expand, chomp, fd):
            marks = [
                mark for mark, on in (("literal", not expand), ("chomp", chomp), (f"fd{fd}", fd >= 0)) if on
            ]
            return " ".join([name, *marks, repr(item.content)])
        case tuple():
            return repr(list(item))
        case _ if structs.fields(item) and not isinstance(item, type | Span):
            inner = [line.strip() for line in _node(item)]  # type: ignore[arg-type]
            return "; ".join(inner)
        case _:
            return repr(item)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Path) -> None:
    text = (case / "Dockerfile").read_bytes().decode("utf-8")
    assert render(parse(text)) == (case / "expected").read_text(encoding="utf-8")
