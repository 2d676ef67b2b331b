"""Why a RUN failed, and what to do about it: the errors of steps that did not start or did not succeed."""

from __future__ import annotations

import os
import re
import signal

from builder.errors import BuildError, CommandFailed, StepError
from builder.plan.graph import Step
from builder.plan.ops import RunCommand
from builder.runtime.launcher.client import Outcome
from builder.runtime.rootless import was_real_root
from builder.support.paths import read_text
from cache.kernel import keeps_owners

_APT_FAILED = 100  # the exit code of apt after an error
_FOREIGN_HINT = (
    "register qemu for {}, whose programs this machine does not run (package qemu-user-static, with the F "
    "flag), or compile in a stage FROM --platform=$BUILDPLATFORM"
)
_UNHELD_HINT = (
    "register qemu for {} with the F flag (package qemu-user-static, or update-binfmts with fix_binary yes): "
    "without it the kernel looks for qemu in the image"
)
_APT_HINT = (
    "run apt with -o APT::Sandbox::User=root, or give this user ranges of ids (pybuild doctor says how): "
    "with one id apt cannot become its own user"
)
_MEMORY_HINT = "raise the limit or give the build more memory, or let the step use less (fewer parallel jobs)"
_NETWORK_HINT = "build with --network=none, or with --network=host if you trust the Dockerfile"


def check_shared_network() -> None:
    """Raise BuildError if this is the machine's root, whose steps share its network only on request."""
    if was_real_root():
        raise BuildError(
            "steps have no network of their own here, and as root of this machine they are not given its own "
            "unasked",
            "install passt or slirp4netns and see that /dev/net/tun is there; or " + _NETWORK_HINT,
            code="E-NETWORK",
        )


def not_started(op: RunCommand, step: Step, reason: str, network_failed: bool) -> StepError:
    """Return the error of a step whose container did not start, and of which the launcher gave *reason*."""
    hint = _NETWORK_HINT if network_failed else ""
    if op.foreign and "Exec format error" in reason:
        hint = _FOREIGN_HINT.format(op.foreign)
    elif op.foreign and "interpreter" in reason and _emulators_may_be_unheld():
        hint = _UNHELD_HINT.format(op.foreign)
    return StepError(reason, step.name, step.span, hint)


def not_succeeded(op: RunCommand, step: Step, outcome: Outcome, memory_ran_out: bool) -> CommandFailed:
    """Return the error of a step whose process ended with a status or by a signal.

    *memory_ran_out*: meanwhile the kernel has killed a process of this machine because memory ran out.
    """
    command = " ".join(op.argv)
    shown = command if len(command) <= 200 else command[:197] + "..."
    hint = ""
    if outcome.signal:
        name = signal.Signals(outcome.signal).name if outcome.signal in set(signal.Signals) else "unknown"
        how = f"killed by signal {outcome.signal} ({name})"
        if outcome.signal == signal.SIGKILL and outcome.oom_kills > 0:
            how = f"killed by the kernel because {_ran_out(op)}"
            hint = _MEMORY_HINT
        elif outcome.signal == signal.SIGKILL and outcome.oom_kills < 0 and memory_ran_out:
            how += f", it seems by the kernel because {_ran_out(op)}"
            hint = _MEMORY_HINT
    else:
        how = f"exit code: {outcome.code}"
        if outcome.oom_kills > 0:
            how += f", after the kernel killed a process of it because {_ran_out(op)}"
            hint = _MEMORY_HINT
        elif outcome.code == _APT_FAILED and not keeps_owners() and re.search(r"\bapt(-get)?\b", command):
            hint = _APT_HINT
        elif outcome.code == 127:
            hint = "install the command in this stage: 127 means that it was not found"
        elif outcome.code == 126:
            hint = "check the file's mode and format: 126 means that it was found but could not be executed"
    message = f'process "{shown}" did not complete successfully: {how}'
    return CommandFailed(message, step.name, step.span, hint)


def _ran_out(op: RunCommand) -> str:
    if limit := op.sandbox.limits.memory:
        return f"the step's memory limit of {limit >> 20} MiB (--memory) was used up"
    return "the machine's memory, or that of the group the build runs in, was used up"


def _emulators_may_be_unheld() -> bool:
    """Return True if the kernel has an emulator that it opens at each start of a program, or names none."""
    folder = "/proc/sys/fs/binfmt_misc"
    try:
        entries = [read_text(os.path.join(folder, name)) for name in os.listdir(folder)]
    except OSError:
        entries = []
    flags = [line[7:] for text in entries for line in text.splitlines() if line.startswith("flags: ")]
    return not flags or any("F" not in item for item in flags)


def oom_kills() -> int:
    """Return how many processes the kernel has killed since boot because memory ran out, in any cgroup."""
    for line in read_text("/proc/vmstat").splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0
