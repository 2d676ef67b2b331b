"""The fields of each op that decide its cache key, spelled out (dockerfile.md T94 to T98).

Not here, on purpose: RunCommand.proxies (T98), names of images and stages, and everything
that only shows in output. A test holds that every field of every op is either in its
identity or on that list.
"""

from __future__ import annotations

from typing import assert_never

from builder.plan.ops import CopyFiles, FromImage, MakeDir, Op, RunCommand


def identity(op: Op) -> tuple[str, dict[str, object]]:
    """The kind and the fields that ``cache.keys.derive`` hashes, besides the step's inputs."""
    match op:
        case FromImage():
            return "image", {"layers": list(op.diff_ids)}
        case RunCommand():
            return "run", {
                "argv": list(op.argv),
                "env": [list(pair) for pair in op.env],
                "cwd": op.cwd,
                "user": op.user,
                "network": op.network,
                "hostname": op.hostname,
            }
        case CopyFiles():
            return "copy", {
                "sources": list(op.sources),
                "dest": op.dest,
                "context": op.from_context,
                "chown": op.chown,
                "chmod": op.chmod,
            }
        case MakeDir():
            return "mkdir", {"path": op.path, "user": op.user}
        case _:
            assert_never(op)
