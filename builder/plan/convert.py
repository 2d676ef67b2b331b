"""One instruction and the state of its stage give the next state of the stage.

The rules are BuildKit's (traps, T1 to T110, are cited where they bite). ``convert`` is one
match over the union of instructions: adding one makes the type checker point here.
"""

from __future__ import annotations

import posixpath
from typing import assert_never

from builder.errors import PlanError
from builder.oci.model import ImageConfig, host
from builder.plan.context import StageContext, number, unsupported
from builder.plan.graph import HistoryLine, Step
from builder.plan.modes import Mode
from builder.plan.mounts import convert_mounts
from builder.plan.ops import (
    CONTEXT,
    CopyFiles,
    FetchGit,
    FetchUrl,
    Inline,
    MakeDir,
    Picked,
    RunCommand,
    SshMount,
)
from builder.plan.ports import parse_ports
from builder.plan.remote import is_url, parse_git_ref, redacted, url_name
from builder.plan.scope import NOT_IN_ENV
from builder.plan.values import check_interval, check_retries, check_signal, show_duration
from cache.digest import digest
from cache.errors import CacheError
from grammar import ast
from grammar.errors import ExpansionError
from grammar.expansion import expand_word, expand_words
from grammar.span import Span
from grammar.structs import field, replace, struct

_SHELL = ["/bin/sh", "-c"]


@struct
class StageState:
    """What is known of a stage after some of its instructions; replaced, never changed.

    ``env`` is what words are expanded with and RUN sees: ENV and ARG in one namespace, the
    later one winning (T44). The image keeps only ENV: ``kept``, where it is not None, is what
    ``config`` will have of it. ``history`` is the last line so far.
    """

    config: ImageConfig
    root: Step | None = None
    env: dict[str, str] = field(factory=dict)
    args: tuple[tuple[str, str], ...] = ()
    history: HistoryLine | None = None
    cmd_set: bool = False
    workdir_set: bool = False
    kept: dict[str, str] | None = None

    def noted(self, created_by: str, step: Step | None = None) -> StageState:
        return replace(self, history=HistoryLine(created_by, step, self.history))

    def settled(self) -> StageState:
        """The same with ENV in the config: once for a stage, not once for each of its lines."""
        if self.kept is None:
            return self
        return replace(self, config=self.config.with_env(self.kept), kept=None)


def convert(node: ast.Instruction, state: StageState, context: StageContext) -> StageState:
    """Apply one instruction. Raises PlanError with its span."""
    match node:
        case ast.Run():
            return _run(node, state, context)
        case ast.Copy() | ast.Add():
            return _copy(node, state, context)
        case ast.Env():
            return _env(node, state, context)
        case ast.Arg():
            return _arg(node, state, context)
        case ast.Label():
            return _label(node, state, context)
        case ast.Workdir():
            return _workdir(node, state, context)
        case ast.User():
            user = _word(node.user, state, context, node.span)
            return replace(state, config=state.config.with_settings(User=user)).noted(f"USER {user}")
        case ast.Cmd():
            _recommend_json("CMD", node, state, context)
            argv = _argv(node.command, state)
            config = state.config.with_settings(Cmd=argv or None, ArgsEscaped=True)
            return replace(state, config=config, cmd_set=True).noted(f"CMD {_quoted(argv)}")
        case ast.Entrypoint():
            _recommend_json("ENTRYPOINT", node, state, context)
            return _entrypoint(node, state)
        case ast.Expose():
            return _expose(node, state, context)
        case ast.Onbuild():
            triggers = [*(state.config.settings.get("OnBuild") or []), node.text]
            return replace(state, config=state.config.with_settings(OnBuild=triggers))  # no history (T73)
        case ast.Healthcheck():
            return _healthcheck(node, state)
        case ast.Shell():
            config = state.config.with_settings(Shell=list(node.argv))
            return replace(state, config=config).noted(f"SHELL [{' '.join(node.argv)}]")
        case ast.StopSignal():
            return _stop_signal(node, state, context)
        case ast.Volume():
            return _volume(node, state, context)
        case ast.Maintainer():
            config = replace(state.config, author=node.text)
            return replace(state, config=config).noted(f"MAINTAINER {node.text}")
        case ast.From():
            raise AssertionError("a stage's own FROM is converted by the planner")
        case _:
            assert_never(node)


def _word(
    text: str,
    state: StageState,
    context: StageContext,
    span: Span,
    raw_quotes: bool = False,
    whole: Span | None = None,
) -> str:
    """*text* with its variables replaced; with *raw_quotes* it is the body of a here-document.

    *whole* is the span of the instruction, where *span* is only that of the text.
    """
    missing: set[str] = set()
    try:
        escape = "\\" if raw_quotes else context.escape
        return expand_word(text, state.env, escape, missing, raw_quotes)
    except ExpansionError as error:
        what = "the here-document" if raw_quotes else repr(text)
        raise PlanError(f"failed to process {what}: {error}", span) from None
    finally:
        _undefined(missing, state, context, whole or span)


def _undefined(missing: set[str], state: StageState, context: StageContext, span: Span) -> None:
    """What was used and nobody set, nor declared."""
    if missing:
        known = {key for key, _ in state.args} | NOT_IN_ENV
        context.linter.undefined(missing - known, state.env, span)


def _recommend_json(
    keyword: str, node: ast.Cmd | ast.Entrypoint, state: StageState, context: StageContext
) -> None:
    if isinstance(node.command, ast.ShellForm) and not state.config.settings.get("Shell"):
        context.linter.warn("JSONArgsRecommended", node.span, keyword)


def _argv(command: ast.Command, state: StageState) -> list[str]:
    """The arguments of a command; the shell form goes through the stage's SHELL."""
    if isinstance(command, ast.ExecForm):
        return list(command.argv)
    return [*(state.config.settings.get("Shell") or _SHELL), command.text]


def _quoted(argv: list[str]) -> str:
    """A list as history shows it: ["a" "b"], each item as Go's %q writes it (T88)."""
    return "[" + " ".join('"' + "".join(map(_quoted_char, item)) + '"' for item in argv) + "]"


_GO_ESCAPES = dict(zip('\a\b\f\n\r\t\v\\"', ("\\" + c for c in 'abfnrtv\\"'), strict=True))


def _quoted_char(char: str) -> str:
    code = ord(char)
    if char in _GO_ESCAPES:
        return _GO_ESCAPES[char]
    if char.isprintable():
        return char
    if code < 0x80:
        return f"\\x{code:02x}"
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # a byte that is no text
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _run(node: ast.Run, state: StageState, context: StageContext) -> StageState:
    if node.devices:
        raise unsupported("RUN --device", node.span)
    network, security = _privileges(node, context)
    command, scripts = _with_heredocs(node)
    argv = _argv(command, state)
    if not argv or not argv[0]:
        raise PlanError("RUN has no command", node.span)
    missing: set[str] = set()
    here = state.config.settings.get("WorkingDir") or "/"  # as written: links decide where .. leads
    mounts, sources = convert_mounts(node, state.env, here, missing, context)
    _undefined(missing, state, context, node.span)
    env = dict(state.env)
    if agents := [mount.target for mount in mounts if isinstance(mount, SshMount)]:
        env.setdefault("SSH_AUTH_SOCK", agents[0])
    op = RunCommand(
        tuple(argv),
        tuple(env.items()),
        here,
        state.config.settings.get("User") or "",
        context.network if network == "default" else network,
        context.hostname,
        context.scope.proxies(),
        scripts,
        mounts,
        security,
        context.sandbox,
        "" if (architecture := state.config.platform.architecture) == host().architecture else architecture,
    )
    step = context.new_step(op, state.root, sources, node.span)
    return replace(state, root=step).noted(f"RUN {_with_args(argv, state)} # buildkit", step)


def _privileges(node: ast.Run, context: StageContext) -> tuple[str, str]:
    """The network and security modes, which a Dockerfile cannot widen by itself."""
    network, security = node.network or "default", node.security or "sandbox"
    if network == "host" and context.network != "host" and "network.host" not in context.allow:
        hint = "build with --network=host, or with --allow network.host for such steps alone"
        raise PlanError("network.host is not allowed", node.span, hint)
    if security == "insecure" and "security.insecure" not in context.allow:
        raise PlanError("security.insecure is not allowed", node.span, "build with --allow security.insecure")
    return network, "" if security == "sandbox" else security


def _with_heredocs(node: ast.Run) -> tuple[ast.Command, tuple[Inline, ...]]:
    """The command with its here-documents: as the script itself where one is all there is, in
    a file of its own where that says what runs it, else for the shell to read.
    """
    if not node.heredocs or not isinstance(node.command, ast.ShellForm):
        return node.command, ()
    first = node.heredocs[0]
    if node.command.text.strip() != first.raw:
        bodies = "".join(f"\n{heredoc.body}{heredoc.name}" for heredoc in node.heredocs)
        return ast.ShellForm(node.command.text + bodies), ()
    if first.content.startswith("#!"):  # also behind tabs that <<- takes away
        _check_name(first, node.span)
        return ast.ShellForm(f"/dev/pipes/{first.name}"), (Inline(first.name, first.content, 0o755),)
    return ast.ShellForm(first.content), ()


def _check_name(heredoc: ast.Heredoc, span: Span) -> None:
    if "/" in heredoc.name or heredoc.name in (".", ".."):
        raise PlanError(f"a here-document cannot make a file called {heredoc.name!r}", span)


def _with_args(argv: list[str], state: StageState) -> str:
    """The command as history shows it, build arguments first (T88): ``|2 a=1 b=2 /bin/sh -c x``."""
    values = {key: state.env.get(key, value) for key, value in state.args}
    shown = [f"{key}={value}" for key, value in values.items()]
    return " ".join([f"|{len(shown)}", *shown, *argv] if shown else argv)


def _copy(node: ast.Copy | ast.Add, state: StageState, context: StageContext) -> StageState:
    written = _word(node.dest, state, context, node.span)
    chown = _word(node.chown, state, context, node.span)
    chmod = _word(node.chmod, state, context, node.span)
    if chmod:
        try:
            Mode(chmod)
        except ValueError as error:
            raise PlanError(str(error), node.span) from None
    shown, parents = [type(node).__name__.upper()], isinstance(node, ast.Copy) and node.parents
    shown += ["--parents"] * parents + [f"--chown={chown}"] * bool(chown) + [f"--chmod={chmod}"] * bool(chmod)
    check_from(node)
    place = node.from_ if isinstance(node, ast.Copy) else ""
    origin, name, sources = number(context.find_source(place, node.span, False), ())
    items: list[Picked | Inline] = []
    for text in node.sources:
        source = _word(text, state, context, node.span)
        shown.append(redacted(source))
        if (remote := _remote(node, source, state, context)) is not None:
            path = remote.name if isinstance(remote, FetchUrl) else "/"
            unpack = isinstance(node, ast.Add) and node.unpack is True and isinstance(remote, FetchUrl)
            items.append(Picked(path, len(sources), literal=True, unpack=unpack))
            sources = (*sources, context.new_source(remote, f"ADD {redacted(source)}", node.span))
            continue
        if isinstance(node, ast.Add) and node.checksum:
            raise PlanError("checksum requires HTTP(S) or Git sources", node.span)
        unpack = isinstance(node, ast.Add) and node.unpack is not False
        if origin == CONTEXT and not name:
            context.linter.copied(type(node).__name__, source, node.span)
        item = Picked(source, origin, unpack=unpack, context=name)
        items.append(_below_pivot(item) if parents else item)
    for heredoc in node.heredocs:
        _check_name(heredoc, node.span)
        shown.append(f"<<{heredoc.name}")
        body = heredoc.content
        if heredoc.expand:
            body = _word(body, state, context, node.span, True)
        items.append(Inline(heredoc.name, body))
    # With --chmod BuildKit makes an ordinary layer of a linked one.
    link = node.link and not chmod
    op = CopyFiles(
        tuple(items), _destination(written, state), chown, chmod, node.exclude, link, context.epoch
    )
    step = context.new_step(op, state.root, sources, node.span)
    return replace(state, root=step).noted(" ".join([*shown, written, "# buildkit"]), step)


def _remote(
    node: ast.Copy | ast.Add, source: str, state: StageState, context: StageContext
) -> FetchUrl | FetchGit | None:
    """The op that fetches a source of ADD which is elsewhere; None for one that is not."""
    try:
        git = parse_git_ref(source)
        if isinstance(node, ast.Copy):
            if git is not None:
                raise ValueError("source can't be a git ref for COPY")
            if is_url(source):
                raise ValueError("source can't be a URL for COPY")
            return None
        checksum = _word(node.checksum, state, context, node.span)
        if checksum and len(node.sources) + len(node.heredocs) > 1:
            raise ValueError("checksum can't be specified for multiple sources")
        if git is None:
            if not is_url(source):
                return None
            return FetchUrl(source, url_name(source), digest(checksum) if checksum else "")
        if checksum and git.checksum and checksum != git.checksum:
            raise ValueError(f'checksum mismatch "{checksum}" != "{git.checksum}"')
        kept = {keep for keep in (node.keep_git_dir, git.keep_git_dir) if keep is not None}
        if len(kept) > 1:
            raise ValueError("inconsistent keep-git-dir configuration")
    except (ValueError, CacheError) as error:
        hint = "ADD takes URLs and git repositories" if isinstance(node, ast.Copy) else ""
        raise PlanError(str(error), node.span, hint) from None
    return git.op(True in kept, checksum)


def check_from(node: ast.Copy | ast.Add) -> None:
    """Raises PlanError where --from holds a variable."""
    if isinstance(node, ast.Copy) and "$" in node.from_:
        raise PlanError(
            "variable expansion is not supported for --from, "
            "define a new stage with FROM using ARG from global scope as a workaround",
            node.span,
        )


def _below_pivot(item: Picked) -> Picked:
    """``--parents``: what is left of the first ``/./`` is where paths begin to be kept (T25)."""
    top, pivot, pattern = item.pattern.partition("/./")
    if not pivot:
        top, pattern = "/", item.pattern
    return replace(item, pattern=top, parents=(clean("/" + pattern).removeprefix("/"),))


def _destination(written: str, state: StageState) -> str:
    """The absolute destination; empty, "." and a trailing slash mean a directory (T3, T5)."""
    here = state.config.settings.get("WorkingDir") or "/"
    path = clean(posixpath.join("/", here, written))
    if written in ("", ".") or written.endswith(("/", "/.")):
        path = path.rstrip("/") + "/"
    return path


def clean(path: str) -> str:
    """An absolute path without dots, as text: links are not looked at."""
    return "/" + posixpath.normpath(path).lstrip("/")


def _env(node: ast.Env, state: StageState, context: StageContext) -> StageState:
    """Every value is expanded with what held before the line (T41)."""
    pairs = _pairs(node, state, context)
    kept = state.config.env if state.kept is None else state.kept
    shown = " ".join(f"{key}={value}" for key, value in pairs)
    return replace(state, env=state.env | dict(pairs), kept=kept | dict(pairs)).noted(f"ENV {shown}")


def _pairs(node: ast.Env | ast.Label, state: StageState, context: StageContext) -> list[tuple[str, str]]:
    def expanded(text: str, span: Span) -> str:
        return _word(text, state, context, span, whole=node.span)

    return [(expanded(pair.key, pair.span), expanded(pair.value or "", pair.span)) for pair in node.pairs]


def _label(node: ast.Label, state: StageState, context: StageContext) -> StageState:
    pairs = _pairs(node, state, context)
    labels = (state.config.settings.get("Labels") or {}) | dict(pairs)
    shown = " ".join(f"{key}={value}" for key, value in pairs)
    return replace(state, config=state.config.with_settings(Labels=labels)).noted(f"LABEL {shown}")


def _arg(node: ast.Arg, state: StageState, context: StageContext) -> StageState:
    """--build-arg wins, then the default, then the global ARG of that name (T45, T46)."""
    env, args, shown = dict(state.env), list(state.args), []
    for pair in node.pairs:
        before = replace(state, env=env)
        default = None
        if pair.value is not None and pair.key not in context.scope.build_args:
            default = _word(pair.value, before, context, pair.span, whole=node.span)
        value = context.scope.value_of(pair.key, default)
        if value is not None and pair.key not in NOT_IN_ENV:
            env[pair.key] = value
        args.append((pair.key, value or ""))
        shown.append(pair.key if value is None else f"{pair.key}={value}")
    return replace(state, env=env, args=tuple(args)).noted("ARG " + " ".join(shown))


def _workdir(node: ast.Workdir, state: StageState, context: StageContext) -> StageState:
    """Relative paths chain; the directory is made, owned by the current USER (T58, T59)."""
    written = _word(node.path, state, context, node.span)
    if not state.workdir_set and not written.startswith("/"):
        context.linter.warn("WorkdirRelativePath", node.span, written)
    here = state.config.settings.get("WorkingDir") or "/"
    # As BuildKit has it: an absolute path is kept as written, a relative one is joined and cleaned.
    path = written if written.startswith("/") else clean(posixpath.join("/", here, written))
    state = replace(state, config=state.config.with_settings(WorkingDir=path), workdir_set=True)
    if path == "/":
        return state.noted("WORKDIR /")
    op = MakeDir(clean(path), state.config.settings.get("User") or "", context.epoch)
    step = context.new_step(op, state.root, (), node.span)
    return replace(state, root=step).noted(f"WORKDIR {path}", step)


def _entrypoint(node: ast.Entrypoint, state: StageState) -> StageState:
    """Clears a CMD that the base brought, keeps one this stage set (T55)."""
    argv = _argv(node.command, state)
    config = state.config.with_settings(Entrypoint=argv or None)
    if not state.cmd_set:
        config = config.with_settings(Cmd=None)
    return replace(state, config=config).noted(f"ENTRYPOINT {_quoted(argv)}")


def _expose(node: ast.Expose, state: StageState, context: StageContext) -> StageState:
    words: list[str] = []
    for item in sorted(node.ports):
        try:
            words += expand_words(
                item, state.env, context.escape
            )  # unset ones are no finding, as in BuildKit
        except ExpansionError as error:
            raise PlanError(f"failed to process {item!r}: {error}", node.span) from None
    ports = parse_ports(words, node.span)
    for word in words:
        if word.partition("/")[2] != word.partition("/")[2].lower():
            context.linter.warn("ExposeProtoCasing", node.span, word)
        if ":" in word:
            context.linter.warn("ExposeInvalidFormat", node.span, word)
    exposed = (state.config.settings.get("ExposedPorts") or {}) | {port: {} for port in ports}
    shown = f"EXPOSE [{' '.join(ports)}]"
    return replace(state, config=state.config.with_settings(ExposedPorts=exposed)).noted(shown)


def _healthcheck(node: ast.Healthcheck, state: StageState) -> StageState:
    """What the image says of its health; shell form goes through the shell where it runs."""
    try:
        durations = {
            name: check_interval(flag, text)
            for name, flag, text in (
                ("Interval", "interval", node.interval),
                ("Timeout", "timeout", node.timeout),
                ("StartPeriod", "start-period", node.start_period),
                ("StartInterval", "start-interval", node.start_interval),
            )
        }
        retries = check_retries(node.retries)
    except ValueError as error:
        raise PlanError(str(error), node.span) from None
    match node.command:
        case None:
            test = ["NONE"]
        case ast.ShellForm(text):
            test = ["CMD-SHELL", text]
        case ast.ExecForm(argv):
            test = ["CMD", *argv]
    settings: dict[str, object] = {"Test": test}
    settings |= {name: value for name, value in durations.items() if value}
    if retries:
        settings["Retries"] = retries
    times = " ".join(f"{name}:{show_duration(value)}" for name, value in durations.items())
    shown = f"HEALTHCHECK {{Test:[{' '.join(test)}] {times} Retries:{retries}}}"
    return replace(state, config=state.config.with_settings(Healthcheck=settings)).noted(shown)


def _stop_signal(node: ast.StopSignal, state: StageState, context: StageContext) -> StageState:
    signal = _word(node.signal, state, context, node.span)
    try:
        check_signal(signal)
    except ValueError as error:
        raise PlanError(str(error), node.span) from None
    return replace(state, config=state.config.with_settings(StopSignal=signal)).noted(f"STOPSIGNAL {signal}")


def _volume(node: ast.Volume, state: StageState, context: StageContext) -> StageState:
    """Only the image's config: what later steps write there stays, as in BuildKit (T53)."""
    paths = [_word(path, state, context, node.span) for path in node.paths]
    if not all(paths):
        raise PlanError("VOLUME specified can not be an empty string", node.span)
    volumes = (state.config.settings.get("Volumes") or {}) | {path: {} for path in paths}
    config = state.config.with_settings(Volumes=volumes)
    return replace(state, config=config).noted(f"VOLUME [{' '.join(paths)}]")
