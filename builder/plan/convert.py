"""Apply an instruction to the state of its stage.

The rules are BuildKit's (comments cite the traps, T1 to T110). ``convert`` is one match over the union of
instructions: the type checker reports an instruction that has no case.
"""

from __future__ import annotations

import posixpath
from typing import assert_never

from builder.errors import PlanError
from builder.oci.model import host
from builder.plan.context import StageContext, unsupported
from builder.plan.convert_copy import convert_copy
from builder.plan.mounts import convert_mounts
from builder.plan.ops import (
    Inline,
    MakeDir,
    RunCommand,
    SshMount,
)
from builder.plan.ports import parse_ports
from builder.plan.scope import NOT_IN_ENV
from builder.plan.state import StageState, check_heredoc_name, clean, expand, warn_undefined
from builder.plan.values import check_interval, check_retries, check_signal, show_duration
from grammar import ast
from grammar.errors import ExpansionError
from grammar.expansion import expand_words
from grammar.lint import rules
from grammar.span import Span
from grammar.structs import replace

_SHELL = ["/bin/sh", "-c"]


def convert(node: ast.Instruction, state: StageState, context: StageContext) -> StageState:
    """Apply one instruction. Raises PlanError with its span."""
    match node:
        case ast.Run():
            return _run(node, state, context)
        case ast.Copy() | ast.Add():
            return convert_copy(node, state, context)
        case ast.Env():
            return _env(node, state, context)
        case ast.Arg():
            return _arg(node, state, context)
        case ast.Label():
            return _label(node, state, context)
        case ast.Workdir():
            return _workdir(node, state, context)
        case ast.User():
            user = expand(node.user, state, context, node.span)
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


def _recommend_json(
    keyword: str, node: ast.Cmd | ast.Entrypoint, state: StageState, context: StageContext
) -> None:
    if isinstance(node.command, ast.ShellForm) and not state.config.settings.get("Shell"):
        context.linter.warn(rules.JSON_ARGS_RECOMMENDED, node.span, keyword)


def _argv(command: ast.Command, state: StageState) -> list[str]:
    """Return the arguments of a command. The shell form runs in the stage's SHELL."""
    if isinstance(command, ast.ExecForm):
        return list(command.argv)
    return [*(state.config.settings.get("Shell") or _SHELL), command.text]


def _quoted(argv: list[str]) -> str:
    """Return a list as history shows it: ["a" "b"], each item as Go's %q writes it (T88)."""
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
        return f"\\x{code - 0xDC00:02x}"  # a byte that is not UTF-8
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
    here = state.config.settings.get("WorkingDir") or "/"  # as written: symlinks decide where .. leads
    mounts, sources = convert_mounts(node, state.env, here, missing, context)
    warn_undefined(missing, state, context, node.span)
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
    """Return the network and security modes. Raises PlanError for modes that are not allowed."""
    network, security = node.network or "default", node.security or "sandbox"
    if network == "host" and context.network != "host" and "network.host" not in context.allow:
        hint = "build with --network=host, or with --allow network.host for such steps alone"
        raise PlanError("network.host is not allowed", node.span, hint, code="E-PRIVILEGE")
    if security == "insecure" and "security.insecure" not in context.allow:
        raise PlanError(
            "security.insecure is not allowed",
            node.span,
            "build with --allow security.insecure",
            code="E-PRIVILEGE",
        )
    return network, "" if security == "sandbox" else security


def _with_heredocs(node: ast.Run) -> tuple[ast.Command, tuple[Inline, ...]]:
    """Return the command with its here-documents, and the files that these become.

    A command that is one here-document is that script; with a ``#!`` line the script is a file. Otherwise
    the shell reads the here-documents.
    """
    if not node.heredocs or not isinstance(node.command, ast.ShellForm):
        return node.command, ()
    first = node.heredocs[0]
    if node.command.text.strip() != first.raw:
        bodies = "".join(f"\n{heredoc.body}{heredoc.name}" for heredoc in node.heredocs)
        return ast.ShellForm(node.command.text + bodies), ()
    if first.content.startswith("#!"):  # also after tabs that <<- removes
        check_heredoc_name(first, node.span)
        return ast.ShellForm(f"/dev/pipes/{first.name}"), (Inline(first.name, first.content, 0o755),)
    return ast.ShellForm(first.content), ()


def _with_args(argv: list[str], state: StageState) -> str:
    """Return the command as history shows it, build arguments first (T88): ``|2 a=1 b=2 /bin/sh -c x``."""
    values = {key: state.env.get(key, value) for key, value in state.args}
    shown = [f"{key}={value}" for key, value in values.items()]
    return " ".join([f"|{len(shown)}", *shown, *argv] if shown else argv)


def _env(node: ast.Env, state: StageState, context: StageContext) -> StageState:
    """Set variables. Each value is expanded with the variables from before the instruction (T41)."""
    pairs = _pairs(node, state, context)
    kept = state.config.env if state.kept is None else state.kept
    shown = " ".join(f"{key}={value}" for key, value in pairs)
    return replace(state, env=state.env | dict(pairs), kept=kept | dict(pairs)).noted(f"ENV {shown}")


def _pairs(node: ast.Env | ast.Label, state: StageState, context: StageContext) -> list[tuple[str, str]]:
    def expanded(text: str, span: Span) -> str:
        return expand(text, state, context, span, whole=node.span)

    return [(expanded(pair.key, pair.span), expanded(pair.value or "", pair.span)) for pair in node.pairs]


def _label(node: ast.Label, state: StageState, context: StageContext) -> StageState:
    pairs = _pairs(node, state, context)
    labels = (state.config.settings.get("Labels") or {}) | dict(pairs)
    shown = " ".join(f"{key}={value}" for key, value in pairs)
    return replace(state, config=state.config.with_settings(Labels=labels)).noted(f"LABEL {shown}")


def _arg(node: ast.Arg, state: StageState, context: StageContext) -> StageState:
    """Set build arguments: --build-arg, else the default, else the global ARG of that name (T45, T46)."""
    env, args, shown = dict(state.env), list(state.args), []
    for pair in node.pairs:
        before = replace(state, env=env)
        default = None
        if pair.value is not None and pair.key not in context.scope.build_args:
            default = expand(pair.value, before, context, pair.span, whole=node.span)
        value = context.scope.value_of(pair.key, default)
        if value is not None and pair.key not in NOT_IN_ENV:
            env[pair.key] = value
        args.append((pair.key, value or ""))
        shown.append(pair.key if value is None else f"{pair.key}={value}")
    return replace(state, env=env, args=tuple(args)).noted("ARG " + " ".join(shown))


def _workdir(node: ast.Workdir, state: StageState, context: StageContext) -> StageState:
    """Set the directory, relative to the last one. A step makes it, owned by the current USER (T58, T59)."""
    written = expand(node.path, state, context, node.span)
    if not state.workdir_set and not written.startswith("/"):
        context.linter.warn(rules.WORKDIR_RELATIVE_PATH, node.span, written)
    here = state.config.settings.get("WorkingDir") or "/"
    # As in BuildKit, an absolute path is kept as written; a relative one is joined and cleaned.
    path = written if written.startswith("/") else clean(posixpath.join("/", here, written))
    state = replace(state, config=state.config.with_settings(WorkingDir=path), workdir_set=True)
    if path == "/":
        return state.noted("WORKDIR /")
    op = MakeDir(clean(path), state.config.settings.get("User") or "", context.epoch)
    step = context.new_step(op, state.root, (), node.span)
    return replace(state, root=step).noted(f"WORKDIR {path}", step)


def _entrypoint(node: ast.Entrypoint, state: StageState) -> StageState:
    """Set the entrypoint. This clears the CMD of the base image, but not one of this stage (T55)."""
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
            )  # unset variables cause no warning, as in BuildKit
        except ExpansionError as error:
            raise PlanError(f"failed to process {item!r}: {error}", node.span) from None
    ports = parse_ports(words, node.span)
    for word in words:
        if word.partition("/")[2] != word.partition("/")[2].lower():
            context.linter.warn(rules.EXPOSE_PROTO_CASING, node.span, word)
        if ":" in word:
            context.linter.warn(rules.EXPOSE_INVALID_FORMAT, node.span, word)
    exposed = (state.config.settings.get("ExposedPorts") or {}) | {port: {} for port in ports}
    shown = f"EXPOSE [{' '.join(ports)}]"
    return replace(state, config=state.config.with_settings(ExposedPorts=exposed)).noted(shown)


def _healthcheck(node: ast.Healthcheck, state: StageState) -> StageState:
    """Set the health check. The shell form runs in the container's shell."""
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
        case _:
            assert_never(node.command)
    settings: dict[str, object] = {"Test": test}
    settings |= {name: value for name, value in durations.items() if value}
    if retries:
        settings["Retries"] = retries
    times = " ".join(f"{name}:{show_duration(value)}" for name, value in durations.items())
    shown = f"HEALTHCHECK {{Test:[{' '.join(test)}] {times} Retries:{retries}}}"
    return replace(state, config=state.config.with_settings(Healthcheck=settings)).noted(shown)


def _stop_signal(node: ast.StopSignal, state: StageState, context: StageContext) -> StageState:
    signal = expand(node.signal, state, context, node.span)
    try:
        check_signal(signal)
    except ValueError as error:
        raise PlanError(str(error), node.span) from None
    return replace(state, config=state.config.with_settings(StopSignal=signal)).noted(f"STOPSIGNAL {signal}")


def _volume(node: ast.Volume, state: StageState, context: StageContext) -> StageState:
    """Add volumes to the image config. Later steps can still write there, as in BuildKit (T53)."""
    paths = [expand(path, state, context, node.span) for path in node.paths]
    if not all(paths):
        raise PlanError("VOLUME specified can not be an empty string", node.span)
    volumes = (state.config.settings.get("Volumes") or {}) | {path: {} for path in paths}
    config = state.config.with_settings(Volumes=volumes)
    return replace(state, config=config).noted(f"VOLUME [{' '.join(paths)}]")
