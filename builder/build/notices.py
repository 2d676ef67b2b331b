"""Report features that this machine cannot give to steps."""

from __future__ import annotations

from collections.abc import Sequence

from builder.environment import Environment
from builder.events import Notice
from builder.oci.model import host, parse_platform, unknown_platform
from builder.plan.graph import Plan
from builder.plan.ops import RunCommand
from builder.request import HOST_GATEWAY, BuildRequest
from builder.run.failure import check_shared_network
from builder.runtime.container import hierarchies
from builder.runtime.isolation import CHROOT, NAMESPACES
from builder.runtime.rootless import entered, was_real_root
from cache.kernel import ONE_ID, keeps_owners


def check_machine(request: BuildRequest, plans: Sequence[Plan], environment: Environment) -> None:
    """Report features that this machine cannot give to the steps of *plans*.

    Raises BuildError if steps have no network of their own and must not have the machine's.
    """
    sink, isolation = environment.sink, environment.isolation
    platforms = {made.config.platform for made in plans}
    platforms |= {parse_platform(place, host()) for made in plans for *_, place in made.bases}
    for text in sorted(filter(None, map(unknown_platform, platforms))):
        sink(Notice(text, True))
    runs = [step.op for made in plans for step in made.steps if isinstance(step.op, RunCommand)]
    networked = any(op.network == "default" for op in runs)
    if networked and environment.shares_network and isolation == NAMESPACES:
        check_shared_network()
        sink(Notice("steps share this machine's network (pybuild doctor says what is missing)", True))
    if runs and isolation == CHROOT:
        and_network = " and share this container's network" if networked else ""
        sink(Notice(f"steps are isolated by chroot{and_network} (pybuild doctor says why)"))
    names = [name for name, at in request.sandbox.hosts if at == HOST_GATEWAY]
    if names and networked and not environment.shares_network:
        note = "steps cannot reach the host from their own network; use --network=host"
        sink(Notice(f"--add-host {', '.join(names)}: {note}", True))
    if runs and was_real_root():
        sink(Notice("root in a step is host root (pybuild doctor says what to change)", True))
    if not keeps_owners():
        sink(Notice(ONE_ID, True))
    if runs and entered() and not hierarchies.find().can:
        sink(Notice("resource limits are not available here (pybuild doctor says what to change)"))
