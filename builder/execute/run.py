"""RunCommand: a container on a draft, its diff a snapshot."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from builder.errors import BuildError, CommandFailed, StepError
from builder.execute.mounts import mounted
from builder.execute.workshop import Workshop
from builder.plan.graph import Step
from builder.plan.ops import RunCommand
from builder.runtime.host import Outcome
from builder.runtime.spec import ContainerSpec
from cache.snapshots import Draft, commit

_RESOLVED = "/run/systemd/resolve/resolv.conf"
# Where a host has no name server that a container can reach, as Docker does.
_PUBLIC_SERVERS = ("8.8.8.8", "8.8.4.4")


def run_command(
    op: RunCommand,
    step: Step,
    draft: Draft,
    sources: list[tuple[str, ...]],
    workshop: Workshop,
    sink: Callable[[bytes], None],
) -> str:
    """Run a step's process on *draft* and commit what it changed; the snapshot's id.

    *sources* are the layers of what its mounts number. Raises CommandFailed when the process
    fails, StepError when it cannot be started.
    """
    env = dict(op.env) | dict(op.proxies)
    killed_before = _oom_kills()
    with mounted(op.mounts, sources, draft, workshop) as extra:
        spec = container_spec(draft, op.argv, env | extra.env, op.cwd, op.user, op.network, op.hostname)
        spec["mounts"] = extra.specs
        spec["insecure"] = op.security == "insecure"
        spec["scripts"] = {
            os.fsencode(item.name): item.content.encode("utf-8", "surrogateescape") for item in op.scripts
        }
        if extra.points:
            spec["lowers"].insert(0, os.fsencode(extra.points))
        try:
            outcome = workshop.contain(spec, sink)
        except OSError as error:
            raise BuildError(f"the container launcher is gone: {error.strerror}") from None
    if outcome.error:
        hint = _NETWORK_HINT if outcome.network_failed else ""
        raise StepError(outcome.error, step.name, step.span, hint)
    if outcome.code:
        raise _failure(op, step, outcome, _oom_kills() > killed_before)
    return commit(draft, reduce=True)


_NETWORK_HINT = "build with --network=none, or with --network=host if you trust the Dockerfile"


def container_spec(
    draft: Draft,
    argv: tuple[str, ...],
    env: dict[str, str],
    cwd: str,
    user: str,
    network: str,
    hostname: str,
) -> ContainerSpec:
    """The runtime's description of a container on *draft*."""
    overlay = draft.overlay()
    encode = os.fsencode
    return ContainerSpec(
        lowers=[encode(path) for path in overlay.lowers],
        upper=encode(overlay.upper),
        work=encode(overlay.work),
        argv=[encode(item) for item in argv],
        env={encode(key): encode(value) for key, value in env.items()},
        cwd=encode(cwd),
        user=encode(user),
        network=network,
        hostname=encode(hostname),
        files={b"/etc/resolv.conf": resolv_conf(network == "host"), b"/etc/hosts": hosts(hostname)},
        scripts={},
        mounts=[],
        insecure=False,
    )


def resolv_conf(host_network: bool) -> bytes:
    """The name servers for a step: the host's, less those on a loopback it cannot reach."""
    text = _read("/etc/resolv.conf")
    if host_network:
        return text.encode()
    if _servers(text) == ["127.0.0.53"] and os.path.exists(_RESOLVED):
        text = _read(_RESOLVED)
    lines = [line for line in text.splitlines() if not line.strip().startswith("nameserver")]
    reachable = [s for s in _servers(text) if not s.startswith("127.") and s != "::1"]
    lines += [f"nameserver {server}" for server in reachable or _PUBLIC_SERVERS]
    return ("\n".join(lines) + "\n").encode()


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 16)
    except OSError:
        return ""


def _servers(text: str) -> list[str]:
    rows = (line.split() for line in text.splitlines())
    return [row[1] for row in rows if len(row) > 1 and row[0] == "nameserver"]


def hosts(hostname: str) -> bytes:
    return f"127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n".encode()


def _failure(op: RunCommand, step: Step, outcome: Outcome, out_of_memory: bool) -> CommandFailed:
    command = " ".join(op.argv)
    shown = command if len(command) <= 200 else command[:197] + "..."
    hint = ""
    if outcome.signal:
        name = signal.Signals(outcome.signal).name if outcome.signal in set(signal.Signals) else "unknown"
        how = f"killed by signal {outcome.signal} ({name})"
        if outcome.signal == signal.SIGKILL and out_of_memory:
            how = "killed by the kernel because the machine or its memory limit ran out of memory"
            hint = "give the build more memory, or let the step use less (fewer parallel jobs)"
    else:
        how = f"exit code: {outcome.code}"
        if outcome.code == 137 and out_of_memory:
            hint = "a process of it was killed because memory ran out"
        elif outcome.code == 127:
            hint = "127 means that a command was not found: is it installed in this stage?"
        elif outcome.code == 126:
            hint = "126 means that a file was found but could not be executed"
    message = f'process "{shown}" did not complete successfully: {how}'
    return CommandFailed(message, step.name, step.span, hint)


def _oom_kills() -> int:
    """How many processes the kernel has killed for memory since boot, in any cgroup."""
    for line in _read("/proc/vmstat").splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0
