"""The nodes of a Dockerfile: an immutable one for each instruction, with text before expansion.

Each node has the Span of its text. Nodes are values without behaviour.
"""

from __future__ import annotations

import re

from grammar.span import Span
from grammar.structs import field, struct


@struct
class Heredoc:
    """A here-document: ``<<NAME`` with its body.

    ``expand`` is False if the name is quoted; ``chomp`` is True for ``<<-``; ``fd`` is the number before
    ``<<``, or -1; ``raw`` is the word as written, ``<<-"EOF"``; ``body`` is as written, with its line ends.
    """

    name: str
    body: str
    expand: bool = True
    chomp: bool = False
    fd: int = -1
    raw: str = ""

    @property
    def content(self) -> str:
        """The content: the body, with ``<<-`` without leading tabs."""
        return re.sub(r"(?m)^\t+", "", self.body) if self.chomp else self.body


@struct
class ShellForm:
    """A command line for the SHELL, as written, with joined continuations."""

    text: str


@struct
class ExecForm:
    """A JSON array of arguments, run without a shell."""

    argv: tuple[str, ...]


Command = ShellForm | ExecForm


@struct
class Flag:
    """``--name`` or ``--name=value``; ``value`` is None for the bare form."""

    name: str
    value: str | None
    span: Span


@struct
class Pair:
    """One ``key=value`` of ENV, LABEL or ARG; ``value`` is None for a bare ``ARG key``."""

    key: str
    value: str | None
    span: Span


@struct
class From:
    """FROM: ``base`` is unexpanded, ``name`` is in lower case or ""."""

    span: Span
    base: str
    name: str = ""
    platform: str = ""
    base_span: Span | None = None


@struct
class Run:
    """RUN; ``mounts`` are the unparsed values of its ``--mount`` flags."""

    span: Span
    command: Command
    heredocs: tuple[Heredoc, ...] = ()
    mounts: tuple[Flag, ...] = ()
    network: str = ""
    security: str = ""
    devices: tuple[str, ...] = ()


@struct
class Copy:
    """COPY; a heredoc source appears in ``heredocs``, not in ``sources``."""

    span: Span
    sources: tuple[str, ...]
    dest: str
    heredocs: tuple[Heredoc, ...] = ()
    from_: str = ""
    chown: str = ""
    chmod: str = ""
    link: bool = False
    parents: bool = False
    exclude: tuple[str, ...] = ()
    source_spans: tuple[Span, ...] = ()


@struct
class Add:
    """ADD; ``unpack`` is None when the flag was not given."""

    span: Span
    sources: tuple[str, ...]
    dest: str
    heredocs: tuple[Heredoc, ...] = ()
    chown: str = ""
    chmod: str = ""
    link: bool = False
    exclude: tuple[str, ...] = ()
    checksum: str = ""
    keep_git_dir: bool | None = None
    unpack: bool | None = None
    source_spans: tuple[Span, ...] = ()


@struct
class Env:
    span: Span
    pairs: tuple[Pair, ...]
    legacy: bool = False


@struct
class Label:
    span: Span
    pairs: tuple[Pair, ...]
    legacy: bool = False


@struct
class Arg:
    span: Span
    pairs: tuple[Pair, ...]


@struct
class Workdir:
    span: Span
    path: str


@struct
class User:
    span: Span
    user: str


@struct
class Cmd:
    span: Span
    command: Command


@struct
class Entrypoint:
    span: Span
    command: Command


@struct
class Shell:
    span: Span
    argv: tuple[str, ...]


@struct
class Expose:
    """EXPOSE; ``ports`` are unexpanded words."""

    span: Span
    ports: tuple[str, ...]


@struct
class Volume:
    span: Span
    paths: tuple[str, ...]


@struct
class StopSignal:
    span: Span
    signal: str


@struct
class Healthcheck:
    """HEALTHCHECK; ``command`` is None for NONE. The settings are as written, "" if absent."""

    span: Span
    command: Command | None
    interval: str = ""
    timeout: str = ""
    start_period: str = ""
    start_interval: str = ""
    retries: str = ""


@struct
class Onbuild:
    """ONBUILD; ``text`` is the trigger as the image config stores it.

    ``trigger`` is None if it is invalid: it can be stored, but not executed.
    """

    span: Span
    text: str
    trigger: Instruction | None


@struct
class Maintainer:
    span: Span
    text: str


Instruction = (
    From
    | Run
    | Copy
    | Add
    | Env
    | Label
    | Arg
    | Workdir
    | User
    | Cmd
    | Entrypoint
    | Shell
    | Expose
    | Volume
    | StopSignal
    | Healthcheck
    | Onbuild
    | Maintainer
)


@struct
class Directives:
    """Parser directives at the top of the file; ``check`` and ``syntax`` are unparsed."""

    syntax: str = ""
    escape: str = "\\"
    check: str = ""


@struct
class Stage:
    """A stage: a FROM and the instructions after it."""

    start: From
    instructions: tuple[Instruction, ...]


@struct
class Dockerfile:
    """A parsed file: the ARGs before the first FROM, then its stages in order.

    ``text`` is the text of the file. ``sources`` maps the first line of an instruction to the instruction on
    one line, for progress; ``comments`` maps it to the comments directly before it. ``empty_continuations``
    are the final lines of commands that have an empty line in them.
    """

    text: str
    directives: Directives
    global_args: tuple[Arg, ...]
    stages: tuple[Stage, ...]
    sources: dict[int, str] = field(factory=dict)
    comments: dict[int, tuple[str, ...]] = field(factory=dict)
    empty_continuations: tuple[int, ...] = ()
