"""How a replay treats each option of a build. A test holds that these tables name every one.

The command line is the key of a replay record: with a changed option no record is found. Two kinds of options
need more: those whose effect has to be repeated, and those that depend on things a replay does not look at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from builder.request import STDIN, BuildRequest

# Fields of BuildRequest whose value says all: the command line has it.
KEYED = frozenset(
    {
        *("context", "target", "build_args", "labels", "network", "jobs", "allow", "epoch", "sandbox"),
        *("client", "cache_from", "builder_id"),
    }
)
# Fields whose effect a replay repeats (builder.replay.play).
REPEATED = frozenset({"tags", "iidfile", "quiet"})
# Fields with which no record is left, for some or any of their values.
NEVER: Mapping[str, Callable[[Any], bool]] = {  # each value has the type of its field
    "dockerfile": lambda path: path == STDIN,
    "remote": bool,  # a server has to be asked
    "contexts": bool,
    "outputs": bool,  # they are written anew
    "metadata_file": bool,
    "cache_to": bool,
    "sbom": bool,
    "provenance": bool,
    "no_cache": bool,
    "no_cache_stages": bool,
    "pull": lambda policy: policy in ("always", "newer"),
    "platforms": bool,  # the store has their base images by platform
    "secrets": bool,  # their files have to be there
    "ssh": bool,
}
# Options of the parser that are no field of the request.
OTHER_OPTIONS: Mapping[str, str] = {
    "root": "keyed; replay reads the store there",
    "debug": "keyed; replay prints debug lines too",
    "progress": "repeated as ``silent``; no record with rawjson, whose readers want the events",
    "isolation": "keyed: which isolation is used does not change the image",
    "check": "no build, no record",
    "call": "no build, no record",
}


def can_be_replayed(request: BuildRequest) -> bool:
    """Return False for a build that has to be done anew each time."""
    return not any(never(getattr(request, name)) for name, never in NEVER.items())
