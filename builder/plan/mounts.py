"""Convert RUN --mount flags to mounts with absolute targets, and the steps that they take files from."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import assert_never

from builder.errors import PlanError
from builder.plan.context import Local, StageContext, number
from builder.plan.graph import Step
from builder.plan.ops import NOWHERE, BindMount, CacheMount, Mount, SecretMount, SshMount, TmpfsMount
from grammar import ast
from grammar import mounts as syntax
from grammar.errors import DockerfileError, ExpansionError
from grammar.expansion import expand_word
from grammar.span import Span


def convert_mounts(
    node: ast.Run, env: Mapping[str, str], cwd: str, missing: set[str], context: StageContext
) -> tuple[tuple[Mount, ...], tuple[Step, ...]]:
    """Return the mounts of a RUN and the source steps; mounts refer to them by index.

    Names of unset variables are added to *missing*.

    Raises PlanError.
    """
    mounts: list[Mount] = []
    sources: list[Step] = []
    for flag in node.mounts:

        def expand(text: str, span: Span = flag.span) -> str:
            try:
                return expand_word(text, env, context.escape, missing)
            except ExpansionError as error:
                raise PlanError(f"failed to process {text!r}: {error}", span) from None

        try:
            mount = syntax.parse_mount(flag.value or "", flag.span, expand)
        except DockerfileError as error:
            raise PlanError(error.message, error.span, error.hint, code=error.code) from None
        agents = sum(isinstance(other, SshMount) for other in mounts)
        mounts.append(_convert(mount, cwd, context, sources, agents, flag.span))
    # Sort by target, so that an outer mount does not hide an inner one.
    mounts.sort(key=lambda mount: (isinstance(mount, SecretMount | SshMount), mount.target))
    return tuple(mounts), tuple(sources)


def _convert(
    mount: syntax.Mount, cwd: str, context: StageContext, sources: list[Step], agents: int, span: Span
) -> Mount:
    """Return *mount* with an absolute target; its files come from one of *sources*.

    A source that is not in *sources* is appended.
    *agents* is the number of SSH mounts before this one.
    """
    match mount:
        case syntax.Secret():
            return _secret(mount, cwd)
        case syntax.Ssh():
            return _ssh(mount, cwd, agents)
        case syntax.Tmpfs():
            return TmpfsMount(_target(mount.target, cwd, span), mount.size, mount.read_only)
        case syntax.Cache():
            return _cache(mount, cwd, context, sources, span)
        case syntax.Bind():
            target = _target(mount.target, cwd, span)
            origin, path = _source(mount, context, sources, span)
            return BindMount(target, origin, path, mount.read_only)
    assert_never(mount)


def _source(
    mount: syntax.Bind | syntax.Cache, context: StageContext, sources: list[Step], span: Span
) -> tuple[int, str]:
    """Return the index of the source step of a mount, and the path in it.

    A source that is not in *sources* is appended.
    """
    origin, path = context.find_source(mount.from_, span, True), mount.source
    if isinstance(origin, Local):
        origin, path = context.take(origin, mount.source, span), "/mount"
    index, _, numbered = number(origin, tuple(sources))
    sources[:] = numbered
    return index, path


def _absolute(cwd: str, path: str) -> str:
    return "/" + posixpath.normpath(posixpath.join("/", cwd, path)).lstrip("/")


def _target(path: str, cwd: str, span: Span) -> str:
    target = _absolute(cwd, path)
    if target == "/":
        raise PlanError(f'invalid mount target "{target}"', span)
    if f"{target}/".startswith("/proc/"):
        raise PlanError(f"nothing can be mounted inside /proc: {target}", span)
    return target


def _cache(
    mount: syntax.Cache, cwd: str, context: StageContext, sources: list[Step], span: Span
) -> CacheMount:
    """Return a cache mount. Mode and owner are for a new directory.

    A different mode or owner selects a different cache.
    """
    target = _target(mount.target, cwd, span)
    origin, path = _source(mount, context, sources, span) if mount.from_ else (NOWHERE, mount.source)
    mode, uid, gid = mount.mode, mount.uid, mount.gid
    if mount.source.strip("/"):
        mode = uid = gid = None  # a directory of the source keeps its mode and owner
    elif any(value is not None for value in (mode, uid, gid)):
        origin = NOWHERE  # a new directory with this mode and owner
    return CacheMount(
        target,
        posixpath.join(context.cache_namespace, mount.id or posixpath.normpath(mount.target)),
        mount.sharing,
        origin,
        path,
        mount.read_only,
        0o755 if mode is None else mode & 0o777,
        uid or 0,
        gid or 0,
    )


def _secret(mount: syntax.Secret, cwd: str) -> SecretMount:
    name = mount.id or mount.source or posixpath.basename(mount.target)
    target = mount.target
    if not target and mount.env is None:
        target = "/run/secrets/" + posixpath.basename(name)
    elif target:
        target = _absolute(cwd, target)
    env = mount.env if mount.env is not None else ""
    mode = 0o400 if mount.mode is None else mount.mode & 0o777
    return SecretMount(name, target, env, mount.required, mode, mount.uid or 0, mount.gid or 0)


def _ssh(mount: syntax.Ssh, cwd: str, agents: int) -> SshMount:
    """Return an SSH mount. *agents* is the number of SSH mounts before it in the step."""
    target = f"/run/buildkit/ssh_agent.{agents}"
    if mount.target:
        target = _absolute(cwd, mount.target)
    mode = 0o600 if mount.mode is None else mount.mode & 0o777
    return SshMount(mount.id or "default", target, mount.required, mode, mount.uid or 0, mount.gid or 0)
