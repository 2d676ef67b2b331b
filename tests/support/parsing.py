"""One instruction after a FROM, parsed, and the error of a file that is refused."""

from __future__ import annotations

import pytest

from grammar import ast
from grammar.errors import DockerfileError
from grammar.parse import parse

HEAD = "FROM scratch\n"


def second(text: str) -> ast.Instruction:
    """The one instruction after a FROM; its first line is 2."""
    (found,) = parse(HEAD + text).stages[0].instructions
    return found


def fault(text: str) -> DockerfileError:
    with pytest.raises(DockerfileError) as caught:
        parse(text)
    return caught.value


def command(text: str) -> ast.Command | None:
    node = second(text)
    assert isinstance(node, ast.Run | ast.Cmd | ast.Entrypoint | ast.Healthcheck)
    return node.command


def pairs(text: str) -> list[tuple[str, str | None]]:
    node = second(text)
    assert isinstance(node, ast.Env | ast.Label | ast.Arg)
    return [(pair.key, pair.value) for pair in node.pairs]


def copied(text: str) -> tuple[tuple[str, ...], str]:
    node = second(text)
    assert isinstance(node, ast.Copy | ast.Add)
    return node.sources, node.dest
