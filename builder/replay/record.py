"""Write what ``builder.replay.play`` reads: the record of a build that succeeded."""

from __future__ import annotations

import hashlib
import marshal
from collections.abc import Sequence

from builder.build.inputs import Inputs
from builder.build.pipeline import Finished
from builder.oci.model import host
from builder.plan.ops import Fetch
from builder.replay.fields import can_be_replayed
from builder.replay.play import listing_digest, record_key
from builder.request import BuildRequest
from cache.kernel import keeps_owners
from cache.store import Store
from grammar.structs import struct


@struct
class Shown:
    """How the build was shown, which its replay repeats. ``silent``: without progress."""

    quiet: bool
    silent: bool


def remember(
    argv: Sequence[str],
    request: BuildRequest,
    inputs: Inputs,
    done: Finished,
    store: Store,
    shown: Shown,
) -> None:
    """Leave a record of a build under its command line.

    No record is left where a registry or server has to be asked again, nor for bases that the store has by
    platform, nor for contexts other than one directory.
    """
    plan, result = done.built.plan, done.result
    if not can_be_replayed(request):
        return
    if result.unused_args:  # to be warned of each time
        return
    if not keeps_owners():  # a user with more ids the next time can use nothing of this store
        return
    context = done.contexts[""]
    if context.followed:  # symlinks led to what was copied, and may lead elsewhere next time
        return
    foreign = any(platform != str(host()) for _, _, platform in plan.bases)
    if foreign or any(isinstance(step.op, Fetch) for step in plan.steps):
        return
    files = [(path, hashlib.sha256(data).hexdigest()) for path, data in _read(inputs)]
    files += [(path, "") for path in inputs.absent]
    steps = [
        (found.key, str(found.made.layer))
        for step in plan.steps
        if (found := done.built.solution.of(step)).made is not None
    ]
    record = {
        "files": files,
        "refs": [(name, image) for name, image, _ in plan.bases],
        "context": request.context,
        "context_name": context.name,
        "ignore": inputs.ignore.content or b"",
        "selections": sorted(context.digests.items()),
        "listings": [(path, listing_digest(context.real(path))) for path in sorted(context.listed)],
        "steps": steps,
        "names": [step.name for step in plan.steps],
        "image": result.image,
        "warnings": list(result.warnings),
        "tags": list(request.tags),
        "iidfile": request.iidfile,
        "quiet": shown.quiet,
        "silent": shown.silent,
    }
    store.memos.set_build(record_key(argv), marshal.dumps(record))


def _read(inputs: Inputs) -> list[tuple[str, bytes]]:
    out = [inputs.dockerfile]
    if inputs.ignore.content is not None:
        out.append((inputs.ignore.path, inputs.ignore.content))
    return out
