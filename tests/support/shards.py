"""Which tests may run beside others: two processes share the work, see tests/run.

All that makes containers runs in one of them, one after the other, because each test looks at its end for
what is left on the machine.
"""

from __future__ import annotations

from typing import Any

# End-to-end tests that make nothing on the machine which others could take for a leak.
FREE = ("test_registry_attacks.py", "test_registry_faults.py", "test_registry_transfers.py")


def make_scheduler(config: Any, log: Any) -> Any:
    """xdist's scheduler by scopes, of which the makers of containers are one, and each other file is one."""
    from xdist.scheduler import LoadScopeScheduling

    class Shards(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "machine" if "/e2e/" in file and not file.endswith(FREE) else file

    return Shards(config, log)
