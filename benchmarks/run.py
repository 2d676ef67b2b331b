"""Compare pybuild with other builders on the same contexts; README.md says how and why.

python benchmarks/run.py [--runs N] [--only WORKLOAD] [--peer NAME]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import machine, table
from benchmarks.measure import Command, Sample, idle_memory, peak_memory, settle, timed
from benchmarks.peers import TOOLS, Tool, present
from benchmarks.workloads import WORKLOADS, Workload, change_one, make_base, make_contexts


def main() -> int:
    """Start again inside namespaces, then measure there."""
    options = _options(sys.argv[1:])
    if os.geteuid():
        raise SystemExit("the benchmark needs root, like the tools it compares")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if not options.inside:
        return machine.inside_namespaces(__file__, sys.argv[1:], options.where)
    names = [name for name in TOOLS if name in ("pybuild", *options.peer) and present(name)]
    chosen = [workload for workload in WORKLOADS if workload.name in options.only]
    folder = machine.own_file_system(Path(options.inside))
    base = make_base(folder)
    make_contexts(folder / "contexts")
    with contextlib.ExitStack() as stack:
        tools = [stack.enter_context(TOOLS[name](folder, base)) for name in names]
        print(f"{options.runs} runs of each in turn. {machine.description()}.\n")
        for tool in tools:
            print(f"* {tool.name}: {tool.version}")
        print(f"\nDaemons before the first build: {idle_memory() / (1 << 20):.0f} MiB\n", flush=True)
        results = [_measure(workload, tools, folder, options) for workload in chosen]
        print(f"Daemons after the last build: {idle_memory() / (1 << 20):.0f} MiB\n")
    print(table.times(results, tools), table.memory(results, tools), sep="\n\n")
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare pybuild with other builders on the same contexts.")
    workloads = [workload.name for workload in WORKLOADS]
    peers = [name for name in TOOLS if name != "pybuild"]
    add = parser.add_argument
    add("--runs", type=int, default=7, metavar="N", help="timed runs of each (default: %(default)s)")
    add(
        "--only",
        action="append",
        choices=workloads,
        metavar="WORKLOAD",
        help=f"one of {', '.join(workloads)}",
    )
    add("--peer", action="append", choices=[*peers, "none"], help="compare with this (default: all present)")
    add("--idle", type=float, default=5, metavar="S", help="wait so long for an idle machine before a run")
    add("--where", default="/var/tmp", metavar="DIR", help="the disk to measure on (default: %(default)s)")
    add("--inside", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.only = options.only or workloads
    options.peer = options.peer or peers
    return options


def _measure(
    workload: Workload, tools: Sequence[Tool], folder: Path, options: argparse.Namespace
) -> table.Result:
    """Warm every tool up, time them in turn, then look at their memory."""
    context = folder / "contexts" / workload.context
    samples: dict[str, list[Sample]] = {tool.name: [] for tool in tools}
    peaks: dict[str, int] = {}
    warm_ups, total = 2, 2 + options.runs + 1
    for number in range(total):
        if workload.change:
            change_one(context, number)
        for tool in tools:
            command = _command(workload, tool, context, folder)
            if workload.cold:
                tool.forget()
            settle(folder, options.idle)
            if number == total - 1:
                peaks[tool.name] = peak_memory(command, tool.daemon)
            elif number < warm_ups:
                timed(command)
            else:
                samples[tool.name].append(timed(command))
    print(f"{workload.name}: done", file=sys.stderr, flush=True)
    return table.Result(workload, samples, peaks)


def _command(workload: Workload, tool: Tool, context: Path, folder: Path) -> Command:
    if not workload.context:
        return Command((tool.program, "--version"), tool.environment, folder)
    return Command((*tool.build, *workload.options, str(context)), tool.environment, folder)


if __name__ == "__main__":
    sys.exit(main())
