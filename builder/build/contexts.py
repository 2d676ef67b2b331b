"""The directories of this machine that COPY and ADD read: the build context and named contexts."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping

from builder.build.inputs import IgnoreFile, Inputs, read_ignore
from builder.copy.context_source import ContextSource, IgnoreRules
from builder.copy.filters import SeenContext
from builder.environment import Environment
from builder.request import BuildRequest
from cache.context_scan import StatIndex
from cache.fs import write_atomically
from cache.store import Store


def open_contexts(
    request: BuildRequest, inputs: Inputs, environment: Environment, seen: SeenContext | None
) -> dict[str, ContextSource]:
    """Open the directories that steps may copy from, by the names of their contexts ("" is the main one).

    *seen* is the scan that replay made in this process. Raises BuildError.
    """
    out = {}
    if request.context:
        if seen is not None and (seen.context, seen.ignore) != (
            request.context,
            inputs.ignore.content or b"",
        ):
            seen = None
        out[""] = _open(request.context, inputs.ignore, environment, seen)
    for name, context in request.contexts.items():
        if context.kind == "local":
            ignore = read_ignore(os.path.join(context.value, ".dockerignore"))
            out[name] = _open(context.value, ignore, environment, None)
    return out


def save_stat_indexes(contexts: Mapping[str, ContextSource], store: Store) -> None:
    """Save the digest of each file; write errors are ignored."""

    def write(path: str, data: bytes) -> None:
        write_atomically(path, data, store.temporary(), durable=False)

    with contextlib.suppress(OSError):
        for context in contexts.values():
            context.index.save(write)


def _open(
    folder: str, ignore: IgnoreFile, environment: Environment, seen: SeenContext | None
) -> ContextSource:
    name = hashlib.sha256(os.path.realpath(folder).encode("utf-8", "surrogateescape")).hexdigest()
    index = seen.index if seen is not None else StatIndex(environment.store.path("contexts", name))
    scanned = seen.scanned if seen is not None else {}
    return ContextSource(
        folder, name, index, scanned, IgnoreRules(ignore.parse(), ignore.path), environment.sink
    )
