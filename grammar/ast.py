"""One frozen node per Dockerfile instruction; text is unexpanded.

Every node carries the Span it was read from. Nodes are values: they hold what the file
says and nothing of what it does.
"""

from __future__ import annotations

import re

from grammar.span import Span
from grammar.structs import field, struct


@struct
class Heredoc:
    """One ``<<NAME`` with its body.

    ``expand`` is false when the name was quoted; ``chomp`` is true for ``<<-``; ``fd`` is the
    number before ``<<`` or -1; ``raw`` is the word as written, ``<<-"EOF"``; ``body`` is as
    written, its line ends too.
    """

    name: str
    body: str
    expand: bool = True
    chomp: bool = False
    fd: int = -1
    raw: str = ""

    @property
    def content(self) -> str:
        """What the here-document holds: with ``<<-`` without its leading tabs."""
        return re.sub(r"(?m)^\t+", "", self.body) if self.chomp else self.body


@struct
class ShellForm:
    """A command line for the SHELL, as written, continuations joined."""

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
    """FROM: ``base`` unexpanded, ``name`` lower-cased or ""."""

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
    """EXPOSE; the port words, unexpanded."""

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
    """HEALTHCHECK; ``command`` is None for NONE. Durations are the texts written, "" when absent."""

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

    ``trigger`` is None for one that can be stored but not be executed.
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
    """Parser directives at the top of the file; ``check`` and ``syntax`` unparsed."""

    syntax: str = ""
    escape: str = "\\"
    check: str = ""


@struct
class Stage:
    """A FROM and what follows it. ``source`` is the text as written, for display."""

    start: From
    instructions: tuple[Instruction, ...]


@struct
class Dockerfile:
    """A parsed file: the ARGs before the first FROM, then its stages in order.

    ``text`` is the file's text; ``sources`` maps an instruction's first line to the
    instruction as one line (continuations joined by single spaces), for progress display;
    ``comments`` maps it to the comments that stand right before it. ``empty_continuations``
    are the lines where a command ends that has an empty line in it.
    """

    text: str
    directives: Directives
    global_args: tuple[Arg, ...]
    stages: tuple[Stage, ...]
    sources: dict[int, str] = field(factory=dict)
    comments: dict[int, tuple[str, ...]] = field(factory=dict)
    empty_continuations: tuple[int, ...] = ()
