"""The runtime's description of a container on a draft, for RUN steps and ``pybuild run``."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from builder.errors import BuildError
from builder.request import Limits, Sandbox
from builder.run.name_files import hosts, resolv_conf
from builder.runtime.container import cgroups
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
from cache.layer.snapshots import Draft
from grammar.structs import struct

if TYPE_CHECKING:
    from builder.rootfs.plain_trees import StageTree
    from cache.store import Store


@struct
class Process:
    """The process of a container. ``network`` is "default", "none", "host" or SHARED_NETWORK."""

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    user: str
    network: str
    hostname: str


def container_spec(draft: Draft, process: Process, sandbox: Sandbox) -> ContainerSpec:
    """Describe a container on *draft*. Raises BuildError for variables that no process can have."""
    _check_environment(process.env)
    overlay = draft.overlay()
    encode = os.fsencode
    frame = FrameSpec(
        network=process.network,
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
        argv=[encode(item) for item in process.argv],
        env={encode(key): encode(value) for key, value in process.env.items()},
        cwd=encode(process.cwd),
        user=encode(process.user),
        hostname=encode(process.hostname),
        files={
            b"/etc/resolv.conf": resolv_conf(process.network, sandbox.dns),
            b"/etc/hosts": hosts(process.hostname, process.network, sandbox.hosts),
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


def _check_environment(env: Mapping[str, str]) -> None:
    for name, value in env.items():
        if not name or "\0" in name + value:
            what = "has a NUL in it" if name else "has no name"
            raise BuildError(
                f"the environment variable {name + '=' + value!r} {what}, so no process can be given it",
                "set it otherwise: it comes from an ENV of the file, or of the base image",
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
    """Return the capabilities by the rules of docker: first ALL of --cap-drop and --cap-add, then names."""
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


def run_in_tree(spec: ContainerSpec, tree: StageTree, store: Store, points: str | None) -> None:
    """Make the plain *tree* the root of the container *spec*, in place of an overlay.

    *points* is a directory of *store* with further mount points.
    """
    tree.prepare(store.path(points) if points else "")
    spec["lowers"], spec["upper"] = [], os.fsencode(os.path.relpath(tree.root, store.root))
    spec["devices_work"] = tree.devices_work


@contextlib.contextmanager
def chrooted(spec: ContainerSpec, tree: StageTree, store: Store) -> Iterator[None]:
    """Put into *tree*, for the block, what *spec* would mount. Raises BuildError and OSError."""
    from builder.run.plain_mounts import placed  # few builds need it

    with placed(store, tree, spec["mounts"], spec["files"]):
        spec["placed"] = [_shown(mount) for mount in spec["mounts"]]
        spec["mounts"], spec["files"] = [], {}
        yield


def drop_unasked_chroot(spec: ContainerSpec, sandbox: Sandbox) -> None:
    """Remove the capability CAP_SYS_CHROOT, which lets a step leave its chroot, unless --cap-add gives it."""
    if not {"sys_chroot", "all"} & set(sandbox.cap_add):
        spec["capabilities"] &= ~CAP_SYS_CHROOT


def _shown(mount: MountSpec) -> tuple[bytes, bytes, bool]:
    """Return a mount as the step is to see it in /proc/mounts: target, file system, whether read-only."""
    kind = b"overlay" if mount["kind"] == "store" else b"tmpfs"
    return mount["target"], kind, mount.get("read_only", mount["kind"] == "file")
