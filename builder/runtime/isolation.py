"""The ways to isolate a step from the machine: a closed set, and what each of them is made of.

    name         launcher                        needs
    namespaces   launcher/namespaces.py          a user namespace in which a file system can be mounted
    chroot       chroot/launcher.py              root with CAP_SYS_CHROOT, and seccomp notifications

A launcher is a ``launcher.server.Server``. Another way has a value here, and a case in each function below;
mypy names them. The modules are imported late, as a build needs those of one way only.
"""

from typing import TYPE_CHECKING, Literal, NamedTuple, assert_never

from builder.runtime.spec import ALL_CAPABILITIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from builder.runtime.container.operations import Operation
    from builder.runtime.launcher.server import Server
    from builder.runtime.spec import ContainerSpec

Isolation = Literal["namespaces", "chroot"]
NAMESPACES: Literal["namespaces"] = "namespaces"
CHROOT: Literal["chroot"] = "chroot"
WAYS: tuple[Isolation, ...] = (NAMESPACES, CHROOT)


def launcher_of(isolation: Isolation) -> "type[Server]":
    """Return the launcher that starts steps in this way."""
    match isolation:
        case "namespaces":
            from builder.runtime.launcher.namespaces import NamespaceLauncher

            return NamespaceLauncher
        case "chroot":
            from builder.runtime.chroot.launcher import ChrootLauncher

            return ChrootLauncher
        case _:
            assert_never(isolation)


class Operations(NamedTuple):
    """What is done to start a step, in order: first what is the same for many steps, then the step's own."""

    frame: "Sequence[Operation]"
    step: "Sequence[Operation]"


def operations_of(isolation: Isolation, spec: "ContainerSpec") -> Operations:
    """Return the operations that start a step in this way."""
    from builder.runtime.container import order

    match isolation:
        case "namespaces":
            return Operations(order.frame_operations(spec["frame"]), order.step_operations(spec))
        case "chroot":
            held = ALL_CAPABILITIES  # the reaper knows which of them there are
            return Operations(order.chroot_frame_operations(), order.chroot_operations(spec, held))
        case _:
            assert_never(isolation)
