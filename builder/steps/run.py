"""RUN: a container on a draft; what it changed becomes a snapshot."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from builder.copy.sources import Selected, TreeSource
from builder.environment import Environment
from builder.errors import BuildError
from builder.images.lazy_layers import Layers
from builder.plan.ops import BindMount, CacheMount, FromImage, Mount, RunCommand
from builder.run.cache_mounts import CacheMounts
from builder.run.container_spec import Process, chrooted, container_spec, drop_unasked_chroot, run_in_tree
from builder.run.containers import Containers
from builder.run.failure import not_started, not_succeeded, oom_kills
from builder.run.mounts import Mounted, mounted
from builder.run.name_files import SHARED_NETWORK
from builder.runtime.isolation import CHROOT
from builder.runtime.launcher.client import Outcome
from builder.runtime.spec import ALL_CAPABILITIES, ContainerSpec
from builder.shared_cache.content_keys import ContentKey
from builder.steps.contents import StageContents, alias_of
from builder.steps.kind import Key, Made, ReadyStep, StepKind, Usage, key_of
from cache.layer.snapshots import Draft, commit, draft, tree_of

if TYPE_CHECKING:
    from builder.rootfs.plain_trees import StageTree

_MOST_WAIT = 50_000_000  # ns that a clock of another machine may be ahead
_NOT_KNOWN = "unknown"  # what a look-ahead takes for the content of files that it does not read


class Run(StepKind):
    """Its key has the root below and the content of bound files; not what caches and secrets hold (T98)."""

    def __init__(
        self,
        *,
        op: RunCommand,
        ready: ReadyStep,
        environment: Environment,
        layers: Layers,
        contents: StageContents,
        containers: Containers,
        caches: CacheMounts,
        output: Callable[[bytes], None],
    ) -> None:
        """*output* gets what the process writes."""
        self._op, self._ready = op, ready
        self._environment, self._layers, self._contents = environment, layers, contents
        self._containers, self._caches, self._output = containers, caches, output

    # -- the key ---------------------------------------------------------------------------

    def key(self) -> Key:
        return self._key(self._content)

    def key_ahead(self) -> Key:
        return self._key(lambda mount: self._contents.ahead(self._alias(mount)) or _NOT_KNOWN)

    def _key(self, content: Callable[[BindMount | CacheMount], str]) -> Key:
        inputs = [self._bound(mount, content) for mount in self._op.mounts]
        parent = self._ready.parent
        return key_of(self._op, [parent.key, *inputs], parent, varies=True)

    def _bound(self, mount: Mount, content: Callable[[BindMount | CacheMount], str]) -> str:
        """Return what a mount adds to the key: the content of bound files, and of files a cache begins with.

        Other mounts add an empty string (T99).
        """
        if not isinstance(mount, BindMount | CacheMount) or mount.origin < 0:
            return ""
        if isinstance(self._ready.step.sources[mount.origin].op, FromImage):
            return f"{self._ready.sources[mount.origin].key} {mount.path}"
        return content(mount)

    def _content(self, mount: BindMount | CacheMount) -> str:
        alias = self._alias(mount)
        known = self._contents.known(alias)
        if known is not None:
            return known
        tree = tree_of(self._layers.store, self._layers.unpacked(self._ready.sources[mount.origin].stack))
        try:
            node = tree.lookup(mount.path)
        except OSError as error:
            raise BuildError(f"the mount's source {mount.path}: {error.strerror}") from None
        content = TreeSource(tree).digest(Selected("", node.path)) if node is not None else "nothing"
        self._contents.remember(alias, content)
        return content

    def _alias(self, mount: BindMount | CacheMount) -> ContentKey:
        return alias_of("bound", {"path": mount.path}, [], [self._ready.sources[mount.origin]])

    # -- the layer -------------------------------------------------------------------------

    def reuse(self) -> None:
        self._containers.skip()

    def make(self, shown: AbstractContextManager[Usage]) -> Made:
        below = self._layers.unpacked(self._ready.parent.stack)
        with shown as usage, draft(self._layers.store, below) as made:
            sources = [self._layers.unpacked(source.stack) for source in self._ready.sources]
            if self._ready.fresh:
                self._caches.empty(self._op.mounts, sources)
            with self._containers.root(below) as tree:
                outcome = self._run(made, sources, tree)
                snapshot = commit(made, reduce=True)
                if tree is not None:
                    tree.stack = (*below, snapshot)
            usage.cpu_seconds = outcome.user_seconds + outcome.system_seconds
            usage.peak = outcome.peak
            return Made(snapshot)

    def _run(self, made: Draft, sources: Sequence[tuple[str, ...]], tree: StageTree | None) -> Outcome:
        """Run the process to its end, on *made*, or in *tree* where overlayfs is unavailable.

        Raises StepError if it cannot be started, CommandFailed if it fails.
        """
        op, killed_before = self._op, oom_kills()
        with mounted(op.mounts, sources, made, self._environment, self._caches) as mounts:
            spec = self._spec(made, mounts)
            if tree is not None:
                run_in_tree(spec, tree, made.store, mounts.points)
                spec["not_before"] = min(tree.newest(), time.time_ns() + _MOST_WAIT)
            elif mounts.points is not None:
                spec["lowers"].insert(0, os.fsencode(mounts.points))
            with contextlib.ExitStack() as held:
                if tree is not None and self._environment.isolation == CHROOT:
                    held.enter_context(chrooted(spec, tree, made.store))
                    if op.security != "insecure":
                        drop_unasked_chroot(spec, op.sandbox)
                try:
                    outcome = self._containers.run(spec, self._output)
                except OSError as error:
                    raise BuildError(f"the container launcher is gone: {error.strerror}") from None
            if tree is not None and outcome.error is None and not outcome.code:
                tree.collect(made)  # while caches are locked: their files may have names in the root
        if outcome.error is not None:
            raise not_started(op, self._ready.step, outcome.error, outcome.network_failed)
        if outcome.code:
            raise not_succeeded(op, self._ready.step, outcome, oom_kills() > killed_before)
        return outcome

    def _spec(self, made: Draft, mounts: Mounted) -> ContainerSpec:
        """Describe the container of the step."""
        op = self._op
        shared = op.network == "default" and self._environment.shares_network
        process = Process(
            argv=op.argv,
            env=dict(op.env) | dict(op.proxies) | mounts.env,
            cwd=op.cwd,
            user=op.user,
            network=SHARED_NETWORK if shared else op.network,
            hostname=op.hostname,
        )
        spec = container_spec(made, process, op.sandbox)
        spec["mounts"] = mounts.specs
        for mount in mounts.specs:
            spec["files"].pop(mount["target"], None)  # a mount replaces our file at the same place
        spec["any_socketcall"] = op.foreign == "386"
        if op.security == "insecure":
            spec["capabilities"], spec["filtered"], spec["frame"]["masked"] = ALL_CAPABILITIES, False, False
        spec["scripts"] = {
            os.fsencode(item.name): item.content.encode("utf-8", "surrogateescape") for item in op.scripts
        }
        return spec
