"""Which tests may run beside others: two processes share the work, see tests/run.

Each end-to-end test looks at its end for what is left on the machine. What would disturb that look, or
a test of the machine's networks and limits, is one group and runs one after the other.
"""

from __future__ import annotations

from typing import Any

# End-to-end tests that make no containers: nothing that could be left.
FREE = ("test_registry_attacks.py", "test_registry_faults.py", "test_registry_transfers.py")
# Those that build and export, and look at nothing of the machine but what is their own.
BUILDS = (
    "test_add.py",
    "test_attestations.py",
    "test_command_line.py",
    "test_config.py",
    "test_contexts.py",
    "test_copy.py",
    "test_golden.py",
    "test_image_commands.py",
    "test_instructions.py",
    "test_interop.py",
    "test_interop_in.py",
    "test_layers.py",
    "test_output_options.py",
    "test_outputs.py",
    "test_platforms.py",
    "test_progress_plain.py",
    "test_push.py",
    "test_registry.py",
    "test_shared_cache.py",
    "test_support.py",
)


def make_scheduler(config: Any, log: Any) -> Any:
    """xdist's scheduler by scopes: builds, all else that makes containers, and each other file."""
    from xdist.scheduler import LoadScopeScheduling

    class Shards(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if "/e2e/" not in file or file.endswith(FREE):
                return file
            return "builds" if file.endswith(BUILDS) else "machine"

    return Shards(config, log)
