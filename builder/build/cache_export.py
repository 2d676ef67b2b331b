"""Leave shared caches after a build: what --cache-to asks for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from builder.build.built import Built
from builder.build.solve import Solution
from builder.errors import BuildError
from builder.events import Notice
from builder.images.lazy_layers import Layers
from builder.plan.graph import Plan
from builder.plan.ops import CacheMount, RunCommand
from builder.request import BuildRequest
from builder.run.cache_mounts import cache_name
from cache.errors import CacheError
from cache.store import Store

if TYPE_CHECKING:
    from builder.shared_cache.exports import Known
    from builder.shared_cache.imports import Imports


def export_caches(
    request: BuildRequest, built: Sequence[Built], layers: Layers, imports: Imports | None
) -> None:
    """Write the caches of --cache-to, except inline ones. Raises BuildError and CacheError."""
    wanted = [place for place in request.cache_to if place.kind != "inline"]
    if not wanted:
        return
    from builder.shared_cache.exports import export  # few builds have shared caches

    store, sink = layers.store, layers.sink
    known = _known_of(built, store)
    for place in wanted:
        try:
            export(layers, known, place, imports, request.client)
        except (BuildError, CacheError) as error:
            if not place.ignore_error:
                raise
            sink(Notice(f"the cache {place.place} was not written: {error.message}", True))


def _known_of(built: Sequence[Built], store: Store) -> Known:
    """Return what shared caches keep of the steps of all platforms."""
    from builder.shared_cache.exports import Known

    every = [known_steps(one.plan, one.solution, store) for one in built]
    steps = {step.key: step for known in every for step in known.steps}
    mounts: dict[str, list[tuple[str, str]]] = {}
    for known in every:
        for name, places in known.mounts.items():
            mounts[name] = list(dict.fromkeys([*mounts.get(name, []), *places]))
    last = frozenset[str]().union(*(known.last for known in every))
    return Known(
        tuple(steps.values()), last, tuple(item for known in every for item in known.contents), mounts
    )


def known_steps(plan: Plan, solution: Solution, store: Store) -> Known:
    """Return what shared caches keep of the steps of one platform. Files from outside have no record."""
    from builder.shared_cache.exports import Known, StepResult

    steps, mounts = [], dict[str, list[tuple[str, str]]]()
    for step in plan.steps:
        result = solution.of(step)
        if result.made is None:
            continue
        steps.append(StepResult(result.key, result.made.below, result.created, result.made.layer))
        for mount in step.op.mounts if isinstance(step.op, RunCommand) else ():
            if isinstance(mount, CacheMount) and mount.origin < 0:
                name = cache_name(mount, ())
                folder = store.path("caches", name)
                item = (name, folder if os.path.isdir(folder) else "")
                if item not in mounts.setdefault(mount.id, []):
                    mounts[mount.id].append(item)
    last = frozenset(solution.of(line.step).key for line in plan.lines if line.step is not None)
    return Known(tuple(steps), last, tuple(solution.contents.items()), mounts)
