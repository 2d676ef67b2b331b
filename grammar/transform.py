"""Convert trees of lark to nodes: one function for each rule of ``dockerfile.lark``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from grammar import ast
from grammar.errors import DockerfileError
from grammar.expansion import valid_text
from grammar.flags import Given, check_flags
from grammar.lines import LogicalLine, bare_words, first_word, parse_heredoc
from grammar.span import Span
from grammar.structs import replace, struct

_STAGE_FIRST = frozenset("abcdefghijklmnopqrstuvwxyz")
_STAGE_REST = _STAGE_FIRST | frozenset("0123456789-_.")
# Flags of RUN with few values, and the message for any other value.
_MODES = (
    ("network", ("default", "none", "host"), 'invalid network mode "{}"'),
    ("security", ("sandbox", "insecure"), 'security "{}" is not valid'),
)
_FORBIDDEN_TRIGGERS = ("FROM", "MAINTAINER")


ParseLine = Callable[[LogicalLine, str], ast.Instruction]


@struct
class Line:
    """A parsed line: its keyword, checked flags, and argument tokens (lark.Token)."""

    keyword: str
    given: Given
    tokens: tuple[Any, ...]
    source: LogicalLine
    escape: str
    parse_line: ParseLine  # for the instruction inside an ONBUILD

    @property
    def span(self) -> Span:
        return self.source.span()

    @property
    def rest(self) -> str:
        """The argument text of a rule that takes the rest of the line."""
        return str(self.tokens[-1]) if self.tokens else ""

    def at(self, token: Any) -> Span:
        """Return the span of one token."""
        return self.source.span(token.start_pos, len(str(token).split("\n")[0]))

    def error(self, message: str, token: Any = None, hint: str = "") -> DockerfileError:
        where = self.at(token) if token is not None else self.source.span(0, len(self.keyword))
        return DockerfileError(message, where, hint)


def transform(tree: Any, source: LogicalLine, escape: str, parse_line: ParseLine) -> ast.Instruction:
    """Return the node of a tree from the parser; *parse_line* parses the instruction of an ONBUILD.

    Raises DockerfileError.
    """
    rule = tree.children[0]
    keyword_token, *tokens = rule.children
    keyword = str(keyword_token).upper()
    flags = [_flag(token, source, escape) for token in tokens if token.type == "FLAG"]
    arguments = tuple(token for token in tokens if token.type != "FLAG")
    if keyword == "ARG" or (keyword == "HEALTHCHECK" and arguments and arguments[0].type == "NONE"):
        flags = []  # BuildKit ignores them
    line = Line(keyword, check_flags(keyword, flags), arguments, source, escape, parse_line)
    return RULES[str(rule.data)](line)


def _flag(token: Any, source: LogicalLine, escape: str) -> ast.Flag:
    name, equals, value = _unquote(str(token)[2:], escape).partition("=")
    span = source.span(token.start_pos, len(str(token)))
    return ast.Flag(name, value if equals else None, span)


def _unquote(text: str, escape: str) -> str:
    """Return *text* without quotes and escapes, as BuildKit reads flags."""
    out = []
    quote = ""
    escaped = False
    for char in text:
        if escaped:
            out.append(char)
            escaped = False
        elif char == escape and quote != "'":
            escaped = True
        elif char in "'\"" and quote in ("", char):
            quote = "" if quote else char
        else:
            out.append(char)
    return "".join(out)


# -- commands ------------------------------------------------------------------------------


def json_array(line: Line) -> tuple[str, ...] | None:
    """Return the rest of the line as a JSON array of strings; None if it is not JSON (it is then shell).

    Raises DockerfileError for an array with other values.
    """
    text = line.rest.strip()
    if not text.startswith("["):
        return None
    try:
        value = json.loads(text, parse_int=lambda _digits: 0, parse_constant=_reject)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, list):
        return None
    if not all(isinstance(item, str) for item in value):
        raise line.error(
            "when using JSON array syntax, arrays must be comprised of strings only", line.tokens[-1]
        )
    if any("\0" in item for item in value):
        raise line.error("an argument holds a NUL character", line.tokens[-1])
    return tuple(map(valid_text, value))


def _reject(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def _command(line: Line) -> ast.Command:
    argv = json_array(line)
    return ast.ShellForm(line.rest) if argv is None else ast.ExecForm(argv)


def _run(line: Line) -> ast.Run:
    command = _command(line)
    texts = [command.text] if isinstance(command, ast.ShellForm) else []
    heredocs = line.source.heredocs
    script = len(heredocs) == 1 and heredocs[0].content.startswith("#!")
    if not script:  # a script becomes a file, which may have any bytes
        texts += [heredoc.body for heredoc in heredocs]
    _only_text(texts, line)
    for name, known, wrong in _MODES:
        if name in line.given.flags and (value := line.given.text(name)) not in known:
            hint = f"it is {', '.join(known[:-1])} or {known[-1]}"
            raise DockerfileError(wrong.format(value), line.given.all(name)[0].span, hint)
    return ast.Run(
        line.span,
        command,
        line.source.heredocs,
        line.given.all("mount"),
        line.given.text("network"),
        line.given.text("security"),
        line.given.texts("device"),
    )


def _only_text(command: list[str], line: Line) -> None:
    """Raise DockerfileError for a command with bytes that are not UTF-8."""
    try:
        for text in command:
            text.encode()
    except UnicodeEncodeError:
        hint = "save the file as UTF-8, or have printf make such bytes"
        raise line.error("the command holds bytes that are not UTF-8", hint=hint) from None


def _cmd(line: Line) -> ast.Cmd:
    return ast.Cmd(line.span, _command(line))


def _entrypoint(line: Line) -> ast.Entrypoint:
    return ast.Entrypoint(line.span, _command(line))


def _shell(line: Line) -> ast.Shell:
    argv = json_array(line)
    if argv is None and line.rest.strip():
        raise line.error(
            "SHELL requires the arguments to be in JSON form", hint='for example: SHELL ["/bin/bash", "-c"]'
        )
    if not argv:
        raise line.error("SHELL requires at least one argument")
    return ast.Shell(line.span, argv)


def _healthcheck(line: Line) -> ast.Healthcheck:
    if not line.tokens:
        raise line.error("HEALTHCHECK requires at least one argument")
    first = line.tokens[0]
    names = ("interval", "timeout", "start-period", "start-interval", "retries")
    settings = [line.given.text(name) for name in names]
    if first.type == "NONE":
        if len(line.tokens) > 1:
            raise line.error("HEALTHCHECK NONE takes no arguments", line.tokens[1])
        return ast.Healthcheck(line.span, None)  # its flags have no effect
    if first.type != "TEST":
        kind = str(first).split(None, 1)[0].upper()
        raise line.error(f'Unknown type "{kind}" in HEALTHCHECK (try CMD)', first)
    if len(line.tokens) < 2:
        raise line.error("Missing command after HEALTHCHECK CMD", first)
    command = _command(line)
    if command == ast.ExecForm(()):
        raise line.error("Missing command after HEALTHCHECK CMD", first)
    return ast.Healthcheck(line.span, command, *settings)


# -- files ---------------------------------------------------------------------------------


@struct
class _Paths:
    sources: tuple[str, ...]
    dest: str
    heredocs: tuple[ast.Heredoc, ...]
    spans: tuple[Span, ...]


def _paths(line: Line) -> _Paths:
    """Return the sources and the destination of COPY and ADD. Here-documents are listed separately."""
    argv = json_array(line)
    words: list[tuple[str, Span]] = []
    if argv is not None:
        words = [(item, line.at(line.tokens[-1])) for item in argv]
    elif line.tokens:
        words = list(_bare_words(line, line.tokens[-1]))
    if len(words) < 2:
        raise line.error(
            f"{line.keyword} requires at least two arguments, but only one was provided. "
            "Destination could not be determined"
        )
    *sources, (dest, dest_span) = words
    if argv is not None:
        return _Paths(tuple(text for text, _ in sources), dest, (), tuple(span for _, span in sources))
    if parse_heredoc(dest) is not None:
        raise DockerfileError(f"{line.keyword} cannot accept a heredoc as a destination", dest_span)
    plain = [(text, span) for text, span in sources if parse_heredoc(text) is None]
    named = {text for text, _ in sources}
    return _Paths(
        tuple(text for text, _ in plain),
        dest,
        tuple(heredoc for heredoc in line.source.heredocs if heredoc.raw in named),
        tuple(span for _, span in plain),
    )


def _bare_words(line: Line, token: Any) -> list[tuple[str, Span]]:
    out = []
    offset = 0
    text = str(token)
    for word in bare_words(text):
        offset = text.index(word, offset)
        out.append((word, line.source.span(token.start_pos + offset, len(word))))
        offset += len(word)
    return out


def _copy(line: Line) -> ast.Copy:
    paths, given = _paths(line), line.given
    return ast.Copy(
        line.span,
        paths.sources,
        paths.dest,
        paths.heredocs,
        given.text("from"),
        given.text("chown"),
        given.text("chmod"),
        bool(given.truth("link")),
        bool(given.truth("parents")),
        given.texts("exclude"),
        paths.spans,
    )


def _add(line: Line) -> ast.Add:
    paths, given = _paths(line), line.given
    return ast.Add(
        line.span,
        paths.sources,
        paths.dest,
        paths.heredocs,
        given.text("chown"),
        given.text("chmod"),
        bool(given.truth("link")),
        given.texts("exclude"),
        given.text("checksum"),
        given.truth("keep-git-dir"),
        given.truth("unpack"),
        paths.spans,
    )


def _volume(line: Line) -> ast.Volume:
    argv = json_array(line)
    paths = tuple(bare_words(line.rest)) if argv is None else argv
    if not paths:
        raise line.error("VOLUME requires at least one argument")
    paths = tuple(path.strip() for path in paths)
    if not all(paths):
        raise line.error("VOLUME specified can not be an empty string", line.tokens[-1])
    return ast.Volume(line.span, paths)


# -- variables -----------------------------------------------------------------------------


def _key_values(line: Line) -> tuple[tuple[ast.Pair, ...], bool]:
    """Return the pairs of ``k=v k2=v2``, or of the legacy ``k rest of the line``; and True for the latter."""
    if not line.tokens:
        raise line.error(f"{line.keyword} requires at least one argument")
    first = line.tokens[0]
    if "=" not in str(first):
        text = line.source.text.rstrip()[first.start_pos :]
        key = first_word(text)
        value = text[len(key) :].strip()
        if not value:
            raise line.error(f"{line.keyword} must have two arguments", first)
        return (ast.Pair(key, value, line.at(first)),), True
    pairs = []
    for token in line.tokens:
        key, equals, value_text = str(token).partition("=")
        if not equals:
            raise line.error(
                f'Syntax error - can\'t find = in "{token}". Must be of the form: name=value', token
            )
        if not key:
            raise line.error(f"{line.keyword} names can not be blank", token)
        pairs.append(ast.Pair(key, value_text, line.at(token)))
    return tuple(pairs), False


def _env(line: Line) -> ast.Env:
    return ast.Env(line.span, *_key_values(line))


def _label(line: Line) -> ast.Label:
    return ast.Label(line.span, *_key_values(line))


def _arg(line: Line) -> ast.Arg:
    if not line.tokens:
        raise line.error("ARG requires at least one argument")
    pairs = []
    for token in line.tokens:
        key, equals, value = str(token).partition("=")
        if not key:
            raise line.error("ARG names can not be blank", token)
        pairs.append(ast.Pair(key, value if equals else None, line.at(token)))
    return ast.Arg(line.span, tuple(pairs))


# -- the rest ------------------------------------------------------------------------------


def _from(line: Line) -> ast.From:
    words = line.tokens
    name = ""
    if len(words) == 3 and str(words[1]).lower() == "as":
        name = str(words[2]).lower()
        if name[0] not in _STAGE_FIRST or not _STAGE_REST.issuperset(name):
            raise line.error(
                f'invalid name for build stage: "{words[2]}", '
                "name can't start with a number or contain symbols",
                words[2],
            )
    elif len(words) != 1:
        raise line.error("FROM requires either one or three arguments", hint="FROM image [AS name]")
    return ast.From(line.span, str(words[0]), name, line.given.text("platform"), line.at(words[0]))


def _one(line: Line) -> str:
    if not line.rest:
        raise line.error(f"{line.keyword} requires exactly one argument")
    return line.rest


def _workdir(line: Line) -> ast.Workdir:
    return ast.Workdir(line.span, _one(line))


def _user(line: Line) -> ast.User:
    return ast.User(line.span, _one(line))


def _stopsignal(line: Line) -> ast.StopSignal:
    return ast.StopSignal(line.span, _one(line))


def _maintainer(line: Line) -> ast.Maintainer:
    return ast.Maintainer(line.span, _one(line))


def _expose(line: Line) -> ast.Expose:
    if not line.tokens:
        raise line.error("EXPOSE requires at least one argument")
    return ast.Expose(line.span, tuple(str(token) for token in line.tokens))


def _onbuild(line: Line) -> ast.Onbuild:
    if not line.rest:
        raise line.error("ONBUILD requires at least one argument")
    token = line.tokens[-1]
    keyword = first_word(line.rest).upper()
    if keyword == "ONBUILD":
        raise line.error("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed", token)
    if keyword in _FORBIDDEN_TRIGGERS:
        raise line.error(f"{keyword} isn't allowed as an ONBUILD trigger", token)
    start = token.start_pos
    pieces = tuple((offset - start, number, column) for offset, number, column in line.source.pieces)
    trigger: ast.Instruction | None = None
    try:
        trigger = line.parse_line(replace(line.source, text=line.rest, pieces=pieces), line.escape)
    except DockerfileError:
        if keyword in ("ENV", "LABEL", "ARG") and line.rest.split()[1:]:
            raise  # BuildKit checks only the name of the others; they fail in the build that they trigger
    bodies = "".join(f"\n{heredoc.body}{heredoc.name}" for heredoc in line.source.heredocs)
    text = line.source.text[start:]  # with its trailing blanks
    return ast.Onbuild(line.span, text + bodies, trigger)


RULES: dict[str, Callable[[Line], ast.Instruction]] = {
    "from": _from,
    "run": _run,
    "cmd": _cmd,
    "entrypoint": _entrypoint,
    "copy": _copy,
    "add": _add,
    "env": _env,
    "label": _label,
    "arg": _arg,
    "workdir": _workdir,
    "user": _user,
    "expose": _expose,
    "volume": _volume,
    "stopsignal": _stopsignal,
    "shell": _shell,
    "healthcheck": _healthcheck,
    "onbuild": _onbuild,
    "maintainer": _maintainer,
}
