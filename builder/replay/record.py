"""Write what ``builder.replay.play`` reads: the memo of a build that succeeded."""

from __future__ import annotations

import hashlib
import marshal
from collections.abc import Sequence

from builder.build.inputs import Inputs
from builder.build.solve import Solver
from builder.environment import Workshop
from builder.oci.model import host
from builder.plan.graph import Plan
from builder.plan.ops import Fetch, FromImage
from builder.replay.play import listing_digest, memo_key
from builder.request import STDIN, BuildRequest, BuildResult
from cache.kernel import keeps_owners


def remember(
    argv: Sequence[str],
    request: BuildRequest,
    inputs: Inputs,
    result: BuildResult,
    plan: Plan,
    solver: Solver,
    workshop: Workshop,
    quiet: bool,
    silent: bool,
) -> None:
    """Leave a memo of this build under its command line.

    Not where somebody elsewhere has to be asked, nor for bases that the store has by platform or
    for other contexts than a folder.
    """
    if request.remote or request.contexts or request.dockerfile == STDIN:
        return
    if (
        request.metadata_file
        or request.outputs
        or request.no_cache
        or request.no_cache_stages
        or request.pull in ("always", "newer")
        or request.cache_to
        or request.platforms
        or request.sbom
        or request.provenance
    ):
        return  # asked for anew each time
    if result.unused_args:  # to be warned of each time
        return
    if not keeps_owners():  # who has more ids the next time gets nothing of this store
        return
    if request.secrets or request.ssh:  # their files have to be there, which replay does not look at
        return
    context, store = workshop.contexts[""], workshop.store
    if context.followed:  # links led to what was copied, and may lead elsewhere next time
        return
    foreign = any(platform != str(host()) for _, _, platform in plan.bases)
    if foreign or any(isinstance(step.op, Fetch) for step in plan.steps):
        return
    files = [(path, hashlib.sha256(data).hexdigest()) for path, data in _read(inputs)]
    files += [(path, "") for path in inputs.absent]
    steps = [
        (solver.results[id(step)].key, str(solver.results[id(step)].layer))
        for step in plan.steps
        if not isinstance(step.op, FromImage)
    ]
    memo = {
        "files": files,
        "refs": [(name, image) for name, image, _ in plan.bases],
        "context": request.context,
        "context_name": context.name,
        "ignore": inputs.ignore[1] or b"",
        "selections": sorted(context.digests.items()),
        "listings": [(path, listing_digest(context.real(path))) for path in sorted(context.listed)],
        "steps": steps,
        "names": [step.name for step in plan.steps],
        "image": result.image,
        "warnings": list(result.warnings),
        "tags": list(request.tags),
        "iidfile": request.iidfile,
        "quiet": quiet,
        "silent": silent,
    }
    store.memos.set_build(memo_key(argv), marshal.dumps(memo))


def _read(inputs: Inputs) -> list[tuple[str, bytes]]:
    out = [inputs.dockerfile]
    if inputs.ignore[1] is not None:
        out.append((inputs.ignore[0], inputs.ignore[1]))
    return out
