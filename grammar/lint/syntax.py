"""The rules that a file's syntax decides."""

from __future__ import annotations

import re
from collections.abc import Iterator

from grammar import ast
from grammar.lint import rules
from grammar.lint.linter import Linter
from grammar.span import Span

RESERVED = ("context", "scratch")  # no names for stages
_SECRET = re.compile(
    r"(?:_|^)(?:apikey|auth|credentials?|key|password|pword|passwd|secret|token)(?:_|$)", re.IGNORECASE
)
_NO_SECRET = re.compile(r"(?:_|^)(?:public|file|version)(?:_|$)", re.IGNORECASE)


def check_file(file: ast.Dockerfile, linter: Linter) -> None:
    """Apply the rules that do not depend on what is built."""
    for line in file.empty_continuations:
        linter.warn(rules.NO_EMPTY_CONTINUATION, Span(line, line))
    seen: set[str] = set()
    for arg in file.global_args:
        _describe("ARG", [pair.key for pair in arg.pairs], arg.span, file, linter)
    for stage in file.stages:
        start = stage.start
        words = file.sources[start.span.first].split()
        if start.name:
            _stage_name(words, start, linter)
            if start.name in RESERVED:
                linter.warn(rules.RESERVED_STAGE_NAME, start.span, start.name)
            if start.name in seen:
                linter.warn(rules.DUPLICATE_STAGE_NAME, start.span, start.name)
            seen.add(start.name)
            _describe("FROM", [start.name], start.span, file, linter)
        for node in stage.instructions:
            if isinstance(node, ast.Maintainer):
                linter.warn(rules.MAINTAINER_DEPRECATED, node.span)
            elif isinstance(node, ast.Arg):
                _describe("ARG", [pair.key for pair in node.pairs], node.span, file, linter)
    _casing(file, linter)


def _stage_name(words: list[str], start: ast.From, linter: Linter) -> None:
    keyword, as_, name = words[0], words[-2], words[-1]
    if name != name.lower():
        linter.warn(rules.STAGE_NAME_CASING, start.span, name)
    same = as_.islower() if keyword.islower() else as_.isupper() or not keyword.isupper()
    if not same:
        linter.warn(rules.FROM_AS_CASING, start.span, keyword, as_)


def _describe(keyword: str, names: list[str], span: Span, file: ast.Dockerfile, linter: Linter) -> None:
    comment = (file.comments.get(span.first) or ("",))[-1]
    if comment and comment.split(" ")[0] not in names and not comment.startswith("check="):
        shown = names[0] if len(names) == 1 else "<arg_key>"
        linter.warn(rules.INVALID_DEFINITION_DESCRIPTION, span, keyword, shown)


def _casing(file: ast.Dockerfile, linter: Linter) -> None:
    keywords = [(file.sources[node.span.first].split()[0], node.span) for node in _instructions(file)]
    lower = sum(keyword.islower() for keyword, _ in keywords) > sum(k.isupper() for k, _ in keywords)
    for keyword, span in keywords:
        if not (keyword.islower() if lower else keyword.isupper()):
            case = "lowercase" if lower else "uppercase"
            linter.warn(rules.CONSISTENT_INSTRUCTION_CASING, span, keyword, case)


def _instructions(file: ast.Dockerfile) -> Iterator[ast.Instruction]:
    for stage in file.stages:
        yield stage.start
        yield from stage.instructions


def check_stage(stage: ast.Stage, linter: Linter) -> None:
    """Apply the rules for the instructions of a stage that is built."""
    last: dict[str, Span] = {}
    given: set[str] = set()
    for node in stage.instructions:
        match node:
            case ast.Env() | ast.Label():
                keyword = type(node).__name__.upper()
                if node.legacy:
                    linter.warn(rules.LEGACY_KEY_VALUE_FORMAT, node.span, keyword)
                if isinstance(node, ast.Env):
                    _secrets(keyword, node.pairs, node.span, linter)
                    given |= {pair.key for pair in node.pairs}
            case ast.Arg():
                _secrets("ARG", node.pairs, node.span, linter)
                for pair in node.pairs:
                    if pair.key in given and pair.value is not None:
                        linter.warn(rules.ARG_HIDES_ENV, node.span, pair.key)
            case ast.Cmd() | ast.Entrypoint() | ast.Healthcheck():
                keyword = type(node).__name__.upper()
                if keyword in last:
                    linter.warn(rules.MULTIPLE_INSTRUCTIONS_DISALLOWED, last[keyword], keyword)
                last[keyword] = node.span
            case ast.Copy() | ast.Add():
                several = len(node.sources) + len(node.heredocs) > 1
                if (
                    several
                    and node.dest not in ("", ".", "..")
                    and not node.dest.endswith(("/", "/.", "/.."))
                ):
                    keyword = type(node).__name__.upper()
                    linter.warn(rules.COPY_SEVERAL_TO_ONE_FILE, node.span, keyword, node.dest)
            case _:
                pass


def _secrets(keyword: str, pairs: tuple[ast.Pair, ...], span: Span, linter: Linter) -> None:
    for pair in pairs:
        if _SECRET.search(pair.key) and not _NO_SECRET.search(pair.key):
            linter.warn(rules.SECRETS_USED_IN_ARG_OR_ENV, span, keyword, pair.key)
