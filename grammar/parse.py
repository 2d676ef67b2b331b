"""Parse a Dockerfile's text to typed values (grammar.ast); every fault is a DockerfileError with a span."""

from __future__ import annotations

import functools
import os
import re
from typing import Any

from grammar import ast
from grammar.errors import DockerfileError
from grammar.lines import LogicalLine, first_word, split_lines
from grammar.span import Span
from grammar.suggest import suggestion

KEYWORDS = (
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
)


def parse(text: str) -> ast.Dockerfile:
    """Parse a whole Dockerfile. Raises DockerfileError."""
    directives, lines = split_lines(text)
    if not lines:
        raise DockerfileError("file with no instructions", hint="a Dockerfile starts with FROM")
    global_args: list[ast.Arg] = []
    stages: list[tuple[ast.From, list[ast.Instruction]]] = []
    sources: dict[int, str] = {}
    for line in lines:
        node = parse_line(line, directives.escape)
        sources[line.first] = _display(line)
        if isinstance(node, ast.From):
            stages.append((node, []))
        elif stages:
            stages[-1][1].append(node)
        elif isinstance(node, ast.Arg):
            global_args.append(node)
        else:
            raise DockerfileError("no build stage in current context", node.span, "put FROM before it")
    if not stages:
        raise DockerfileError("dockerfile contains no stages to build", hint="add a FROM instruction")
    made = tuple(ast.Stage(start, tuple(body)) for start, body in stages)
    comments = {line.first: line.comments for line in lines if line.comments}
    empty = tuple(line.empty_until for line in lines if line.empty_until)
    return ast.Dockerfile(text, directives, tuple(global_args), made, sources, comments, empty)


def parse_instruction(text: str, span: Span, escape: str = "\\") -> ast.Instruction:
    """Parse one instruction outside a file, such as a base image's trigger."""
    _directives, lines = split_lines(text, escape)
    if len(lines) != 1:
        raise DockerfileError(f"not one instruction: {text!r}", span)
    try:
        return parse_line(lines[0], escape)
    except DockerfileError as error:
        raise DockerfileError(error.message, span, error.hint) from None


def parse_line(line: LogicalLine, escape: str) -> ast.Instruction:
    """Parse one logical line."""
    from lark.exceptions import UnexpectedInput

    from grammar.transform import transform

    text = line.text.rstrip()
    keyword = first_word(text)
    if keyword.upper() not in KEYWORDS:
        guess = suggestion(keyword.upper(), KEYWORDS)
        raise DockerfileError(f"unknown instruction: {keyword}{guess}", line.span(0, len(keyword)))
    try:
        tree = _parser(escape).parse(text)
    except UnexpectedInput as error:
        place = min(max(error.pos_in_stream or 0, 0), len(text) - 1)
        raise DockerfileError(f"{keyword.upper()} cannot be read from here on", line.span(place, 1)) from None
    return transform(tree, line, escape, parse_line)


@functools.cache
def _parser(escape: str) -> Any:  # lark's parser, imported late
    """Return the parser for one escape character."""
    from lark import Lark

    with open(os.path.join(os.path.dirname(__file__), "dockerfile.lark"), encoding="utf-8") as file:
        grammar = file.read()
    grammar = "\n".join(
        line if line.startswith("//") else line.replace("ESC", re.escape(escape))
        for line in grammar.split("\n")
    )
    return Lark(grammar, parser="lalr", lexer="contextual", maybe_placeholders=False)


def _display(line: LogicalLine) -> str:
    """Return the instruction on one line, for progress."""
    return " ".join(line.text.split())
