"""RunCommand: a container on a draft, its diff a snapshot."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from builder.environment import Workshop
from builder.errors import BuildError, CommandFailed, StepError
from builder.plan.graph import Step
from builder.plan.ops import RunCommand
from builder.request import HOST_GATEWAY, Limits, Sandbox
from builder.run.mounts import mounted
from builder.runtime.container import cgroups
from builder.runtime.isolation import CHROOT
from builder.runtime.launcher.client import Outcome
from builder.runtime.network import ipv6, nameservers
from builder.runtime.network.uplink import FORWARDER
from builder.runtime.rootless import entered, was_real_root
from builder.runtime.spec import (
    ALL_CAPABILITIES,
    CAP_SYS_CHROOT,
    CAPABILITIES,
    CAPABILITY_NAMES,
    SHM_SIZE,
    ContainerSpec,
    FrameSpec,
    MountSpec,
)
from cache.digest import SnapshotId
from cache.kernel import keeps_owners
from cache.layer.snapshots import Draft, commit

if TYPE_CHECKING:
    from builder.rootfs.plain_trees import StageTree
    from cache.store import Store

# The network of steps where nothing can carry one of their own: this machine's, which nobody has asked for.
SHARED_NETWORK = "shared"
_MOST_WAIT = 50_000_000  # ns that a clock of another machine may be ahead
# Where a host has no name server that a container can reach, as Docker does.
_PUBLIC_SERVERS = ["8.8.8.8", "8.8.4.4"]
_PUBLIC_SERVERS_6 = ["2001:4860:4860::8888"]


def run_command(
    op: RunCommand,
    step: Step,
    draft: Draft,
    sources: list[tuple[str, ...]],
    workshop: Workshop,
    sink: Callable[[bytes], None],
) -> tuple[SnapshotId, Outcome]:
    """Run a step's process on *draft* and commit what it changed; the snapshot's id, and what it took.

    *sources* are the layers of what its mounts number. Raises CommandFailed when the process
    fails, StepError when it cannot be started.
    """
    with contextlib.ExitStack() as held:
        tree = None
        if workshop.trees is not None:
            tree = held.enter_context(workshop.trees.taken(draft.parents))
        outcome = _contained(op, step, draft, sources, workshop, sink, tree)
        snapshot = commit(draft, reduce=True)
        if tree is not None:
            tree.stack = (*draft.parents, snapshot)
        return snapshot, outcome


def _contained(
    op: RunCommand,
    step: Step,
    draft: Draft,
    sources: list[tuple[str, ...]],
    workshop: Workshop,
    sink: Callable[[bytes], None],
    tree: StageTree | None,
) -> Outcome:
    """Run the process to its end, on *draft*, or in *tree* where there are no overlays."""
    env = dict(op.env) | dict(op.proxies)
    killed_before = _oom_kills()
    with mounted(op.mounts, sources, draft, workshop) as extra:
        network = SHARED_NETWORK if op.network == "default" and workshop.shares_network else op.network
        spec = container_spec(
            draft, op.argv, env | extra.env, op.cwd, op.user, network, op.hostname, op.sandbox
        )
        spec["mounts"] = extra.specs
        for mount in extra.specs:
            spec["files"].pop(mount["target"], None)  # a mount in the place of one of ours is what is meant
        spec["any_socketcall"] = op.foreign == "386"
        if op.security == "insecure":
            spec["capabilities"], spec["filtered"], spec["frame"]["masked"] = ALL_CAPABILITIES, False, False
        spec["scripts"] = {
            os.fsencode(item.name): item.content.encode("utf-8", "surrogateescape") for item in op.scripts
        }
        if tree is not None:
            run_in_tree(spec, tree, draft.store, extra.points)
            spec["not_before"] = min(tree.newest(), time.time_ns() + _MOST_WAIT)
        elif extra.points:
            spec["lowers"].insert(0, os.fsencode(extra.points))
        with contextlib.ExitStack() as held:
            if tree is not None and workshop.isolation == CHROOT:
                held.enter_context(chrooted(spec, tree, draft.store))
                if op.security != "insecure":
                    drop_unasked_chroot(spec, op.sandbox)
            try:
                outcome = workshop.contain(spec, sink)
            except OSError as error:
                raise BuildError(f"the container launcher is gone: {error.strerror}") from None
        if tree is not None and not outcome.error and not outcome.code:
            tree.collect(draft)  # while caches are locked, whose files may have names in the root
    if outcome.error:
        hint = _NETWORK_HINT if outcome.network_failed else ""
        if op.foreign and "Exec format error" in outcome.error:
            hint = _FOREIGN_HINT.format(op.foreign)
        elif op.foreign and "interpreter" in outcome.error and _emulators_may_be_unheld():
            hint = _UNHELD_HINT.format(op.foreign)
        raise StepError(outcome.error, step.name, step.span, hint)
    if outcome.code:
        raise _failure(op, step, outcome, _oom_kills() > killed_before)
    return outcome


def run_in_tree(spec: ContainerSpec, tree: StageTree, store: Store, points: str = "") -> None:
    """Prepare *tree* as the root of the container *spec*, in the place of an overlay.

    *points* is a folder of *store* with mount points besides the usual, "" for none.
    """
    tree.prepare(store.path(points) if points else "")
    spec["lowers"], spec["upper"] = [], os.fsencode(os.path.relpath(tree.root, store.root))
    spec["devices_work"] = tree.devices_work


@contextlib.contextmanager
def chrooted(spec: ContainerSpec, tree: StageTree, store: Store) -> Iterator[None]:
    """Place in *tree* what *spec* would have mounted, while the block runs. Raises BuildError and OSError."""
    from builder.run.plain_mounts import placed  # few builds need it

    with placed(store, tree, spec["mounts"], spec["files"]):
        spec["placed"] = [_shown(mount) for mount in spec["mounts"]]
        spec["mounts"], spec["files"] = [], {}
        yield


def drop_unasked_chroot(spec: ContainerSpec, sandbox: Sandbox) -> None:
    """Take the capability to chroot unless the command line gives it: a chroot could be left by it."""
    if not {"sys_chroot", "all"} & set(sandbox.cap_add):
        spec["capabilities"] &= ~CAP_SYS_CHROOT


def _shown(mount: MountSpec) -> tuple[bytes, bytes, bool]:
    """A placed mount, as a step is to see it among its mounts."""
    kind = b"overlay" if mount["kind"] == "store" else b"tmpfs"
    return mount["target"], kind, mount.get("read_only", mount["kind"] == "file")


_FOREIGN_HINT = (
    "this machine does not run programs for {}: register qemu for them (package qemu-user-static, with the F "
    "flag), or compile in a stage FROM --platform=$BUILDPLATFORM"
)
_UNHELD_HINT = (
    "if qemu for {} is registered without the F flag, the kernel looks for it in the image: register it "
    "with F (package qemu-user-static, or update-binfmts with fix_binary yes)"
)
_NETWORK_HINT = "build with --network=none, or with --network=host if you trust the Dockerfile"


def _emulators_may_be_unheld() -> bool:
    """Whether the kernel has emulators registered that it does not hold open, or says of none."""
    folder = "/proc/sys/fs/binfmt_misc"
    try:
        entries = [_read(os.path.join(folder, name)) for name in os.listdir(folder)]
    except OSError:
        entries = []
    flags = [line[7:] for text in entries for line in text.splitlines() if line.startswith("flags: ")]
    return not flags or any("F" not in item for item in flags)


def check_shared_network() -> None:
    """Raise BuildError where steps must not have this machine's network unasked: those of its own root."""
    if was_real_root():
        raise BuildError(
            "steps have no network of their own here, and as root of this machine they are not given its own "
            "unasked",
            "install passt or slirp4netns and see that /dev/net/tun is there; or " + _NETWORK_HINT,
        )


def container_spec(
    draft: Draft,
    argv: tuple[str, ...],
    env: dict[str, str],
    cwd: str,
    user: str,
    network: str,
    hostname: str,
    sandbox: Sandbox,
) -> ContainerSpec:
    """The runtime's description of a container on *draft*. Raises BuildError for what no process can have."""
    for name, value in env.items():
        if not name or "\0" in name + value:
            what = "has a NUL in it" if name else "has no name"
            raise BuildError(
                f"the environment variable {name + '=' + value!r} {what}, so no process can be given it",
                "set it otherwise: it comes from an ENV of the file, or of the base image",
            )
    overlay = draft.overlay()
    encode = os.fsencode
    frame = FrameSpec(
        network=network,
        masked=not sandbox.system_paths,
        devices={encode(there): encode(here) for here, there in sandbox.devices},
        shm_size=sandbox.shm_size or SHM_SIZE,
        limits=_limits(sandbox.limits),
        cgroup_parent=encode(sandbox.limits.parent),
    )
    return ContainerSpec(
        frame=frame,
        lowers=[encode(path) for path in overlay.lowers] if draft.store.overlays else [],
        upper=encode(overlay.upper),
        work=encode(overlay.work),
        argv=[encode(item) for item in argv],
        env={encode(key): encode(value) for key, value in env.items()},
        cwd=encode(cwd),
        user=encode(user),
        hostname=encode(hostname),
        files={
            b"/etc/resolv.conf": resolv_conf(network in ("host", SHARED_NETWORK), sandbox.dns),
            b"/etc/hosts": hosts(hostname, _addresses(network, sandbox.hosts)),
        },
        scripts={},
        mounts=[],
        volumes=[],
        capabilities=_capabilities(sandbox),
        filtered=not sandbox.any_syscall,
        any_socketcall=False,
        no_new_privileges=sandbox.no_new_privileges,
        rlimits={getattr(resource, f"RLIMIT_{name.upper()}"): pair for name, pair in sandbox.ulimits},
        address=[],
        placed=[],
        not_before=0,
        devices_work=True,
    )


def _limits(limits: Limits) -> cgroups.Limits:
    out = cgroups.Limits()
    if limits.memory:
        out["memory"] = limits.memory
    if limits.cpu_quota:
        out["cpu_quota"] = limits.cpu_quota
    if limits.cpuset:
        out["cpuset"] = limits.cpuset.encode()
    if limits.pids:
        out["pids"] = limits.pids
    return out


def _capabilities(sandbox: Sandbox) -> int:
    """What docker's rules make of --cap-add and --cap-drop: ALL first, then the others by name."""
    mask = CAPABILITIES
    for names, everything in ((sandbox.cap_drop, 0), (sandbox.cap_add, ALL_CAPABILITIES)):
        if "all" in names:
            mask = everything
    for bit, name in enumerate(CAPABILITY_NAMES):
        if name in sandbox.cap_add:
            mask |= 1 << bit
        if name in sandbox.cap_drop:
            mask &= ~(1 << bit)
    return mask


def resolv_conf(host_network: bool, servers: tuple[str, ...] = ()) -> bytes:
    """The name servers for a step: *servers*, else the host's, less those on a loopback it cannot reach."""
    if servers:
        return "".join(f"nameserver {server}\n" for server in servers).encode()
    if host_network:
        return _read("/etc/resolv.conf").encode()
    text = nameservers.resolv_conf()
    lines = [line for line in text.splitlines() if not line.strip().startswith("nameserver")]
    has_ipv6 = not entered() and ipv6.is_there()
    fallback = [FORWARDER] if entered() else _PUBLIC_SERVERS + _PUBLIC_SERVERS_6 * has_ipv6
    known = nameservers.reachable(text, entered(), has_ipv6)
    lines += [f"nameserver {server}" for server in known or fallback]
    return ("\n".join(lines) + "\n").encode()


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 16)
    except OSError:
        return ""


def _addresses(network: str, given: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """The lines of --add-host; this machine is found on its own network only, and not to be reached else."""
    here = network in ("host", SHARED_NETWORK)
    lines = [(name, "127.0.0.1" if at == HOST_GATEWAY and here else at) for name, at in given]
    return tuple((name, at) for name, at in lines if at != HOST_GATEWAY)


def hosts(hostname: str, more: tuple[tuple[str, str], ...] = ()) -> bytes:
    text = f"127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    return (text + "".join(f"{address}\t{name}\n" for name, address in more)).encode()


def _failure(op: RunCommand, step: Step, outcome: Outcome, somebody_was_killed: bool) -> CommandFailed:
    """*somebody_was_killed*: the kernel has meanwhile killed a process of this machine for want of memory."""
    command = " ".join(op.argv)
    shown = command if len(command) <= 200 else command[:197] + "..."
    hint = ""
    if outcome.signal:
        name = signal.Signals(outcome.signal).name if outcome.signal in set(signal.Signals) else "unknown"
        how = f"killed by signal {outcome.signal} ({name})"
        if outcome.signal == signal.SIGKILL and outcome.oom_kills > 0:
            how = f"killed by the kernel because {_ran_out(op)}"
            hint = _MEMORY_HINT
        elif outcome.signal == signal.SIGKILL and outcome.oom_kills < 0 and somebody_was_killed:
            how += f", it seems by the kernel because {_ran_out(op)}"
            hint = _MEMORY_HINT
    else:
        how = f"exit code: {outcome.code}"
        if outcome.oom_kills > 0:
            how += f", after the kernel killed a process of it because {_ran_out(op)}"
            hint = _MEMORY_HINT
        elif outcome.code == _APT_FAILED and not keeps_owners() and re.search(r"\bapt(-get)?\b", command):
            hint = _APT_HINT
        elif outcome.code == 127:
            hint = "127 means that a command was not found: is it installed in this stage?"
        elif outcome.code == 126:
            hint = "126 means that a file was found but could not be executed"
    message = f'process "{shown}" did not complete successfully: {how}'
    return CommandFailed(message, step.name, step.span, hint)


def _ran_out(op: RunCommand) -> str:
    if limit := op.sandbox.limits.memory:
        return f"the step's memory limit of {limit >> 20} MiB (--memory) was used up"
    return "the machine's memory, or that of the group the build runs in, was used up"


_APT_FAILED = 100
_APT_HINT = (
    "with one id apt cannot become its own user: run it with -o APT::Sandbox::User=root, or give this user "
    "ranges of ids (pybuild doctor says how)"
)
_MEMORY_HINT = "raise the limit or give the build more memory, or let the step use less (fewer parallel jobs)"


def _oom_kills() -> int:
    """How many processes the kernel has killed for memory since boot, in any cgroup."""
    for line in _read("/proc/vmstat").splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0
