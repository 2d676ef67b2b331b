"""How long a cancelled build takes to be gone, and what it leaves: pybuild beside docker and buildah.

python benchmarks/cancel.py [--times N] [--peer NAME]

A build whose steps ignore every signal and start processes in sessions of their own is sent a
signal at a random moment. What is left 2 s after the signal is counted: processes, mounts, network
interfaces, nftables tables, control groups. Like run.py it starts itself again in namespaces of its own.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import machine, peers, workloads

STEP = "trap '' INT TERM HUP QUIT PIPE; (setsid sleep 1000 &); for i in $(seq 40); do sleep 0.02; done"
DOCKERFILE = f"FROM busybox\nCOPY . /c\nRUN {STEP}\nRUN {STEP}\n"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LONGEST = 2.0  # seconds after the build's start at which a signal is sent
ALLOWED = 2.0  # seconds after the signal until all has to be gone
SEED = 1
_INIT_PID_NAMESPACE = 4026531836  # linux/proc_ns.h


def main() -> int:
    options = _options()
    if os.geteuid():
        raise SystemExit("this needs root, like the tools it compares")
    if not options.inside:
        return machine.inside_namespaces(__file__, sys.argv[1:], "/var/tmp")
    place = machine.own_file_system(Path(options.inside))
    base = workloads.make_base(place)
    print("| | signals | until it ended, median | 99 of 100 | worst | left after 2 s |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    for name in ("pybuild", *options.peer):
        if not peers.present(name):
            continue
        with peers.TOOLS[name](place, base) as tool:
            _measure(tool, place / f"context-{name}", options.times)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Cancel builds at random moments.")
    parser.add_argument("--times", type=int, default=60, metavar="N", help="signals to each tool")
    parser.add_argument("--peer", action="append", default=[], choices=["docker", "buildah"], metavar="NAME")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(tool: peers.Tool, context: Path, times: int) -> None:
    context.mkdir()
    (context / "Dockerfile").write_text(DOCKERFILE)
    for number in range(2000):
        (context / f"f{number}").write_bytes(os.urandom(2000))
    rng = random.Random(SEED)
    ended, left = [], set[str]()
    command = [*tool.build, "--no-cache", str(context)]
    subprocess.run(command, env=dict(tool.environment), check=True, capture_output=True)  # what stays, stays
    before = _census()
    for number in range(times):
        with subprocess.Popen(
            command, env=dict(tool.environment), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as build:
            time.sleep(rng.uniform(0.02, LONGEST))
            started = time.monotonic()
            build.send_signal(SIGNALS[number % len(SIGNALS)])
            build.wait()
            ended.append(time.monotonic() - started)
        time.sleep(max(0.0, ALLOWED - ended[-1]))
        left |= _census() - before
    ended.sort()
    worst = ended[min(len(ended) - 1, len(ended) * 99 // 100)]
    counts = Counter(word.partition(" ")[0] for word in left)
    shown = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "nothing"
    print(
        f"| {tool.version} | {times} | {statistics.median(ended):.2f} s | {worst:.2f} s | {ended[-1]:.2f} s "
        f"| {shown} |",
        flush=True,
    )


def _census() -> set[str]:
    """What a build could leave, as words."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name, _, state = (entry / "stat").read_text().partition("(")[2].rpartition(") ")
            except OSError:
                continue  # it ended
            if not state.startswith("Z"):  # of which we are the parent here, and do not care
                found.add(f"process {name} {entry.name}")
    found |= {f"mount {line.split()[4]}" for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    found |= {f"interface {name}" for name in os.listdir("/sys/class/net")}
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False).stdout
    found |= set(tables.splitlines())
    others = f"pybuild-{_INIT_PID_NAMESPACE}-"  # builds that run on this machine besides
    groups = (folder for folder, _, _ in os.walk("/sys/fs/cgroup"))
    return found | {f"cgroup {folder}" for folder in groups if others not in folder}


if __name__ == "__main__":
    sys.exit(main())
