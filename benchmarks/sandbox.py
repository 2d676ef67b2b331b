"""What the sandbox costs a RUN step, beside a fork and exec without any.

python benchmarks/sandbox.py [--runs N]

Builds of one step and of many are timed in turn, all without cache; the difference, divided, is one
more step. Beside it, in the same run, the same program is forked and executed by Python alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS = 31
MODES = {
    "no network": ["--network=none"],
    "default network": [],
    "no network, memory limit": ["--network=none", "--memory=1g"],
    "no network, no seccomp filter": ["--network=none", "--security-opt=seccomp=unconfined"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time one more RUN step, and a fork and exec.")
    parser.add_argument("--runs", type=int, default=9, metavar="N")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        work = Path(folder)
        pybuild = Path(sys.executable).with_name("pybuild")
        path = f"{pybuild.parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PYBUILD_ROOT": str(work / "store"), "PATH": path}
        subprocess.run(
            [ROOT / "samples/make-bases", "busybox"], env=environment, check=True, capture_output=True
        )
        for count in (1, STEPS):
            (work / str(count)).mkdir()
            lines = "".join(f'RUN ["/bin/echo", "{number}"]\n' for number in range(count))
            (work / str(count) / "Dockerfile").write_text("FROM busybox\n" + lines)
        found: dict[str, list[float]] = {name: [] for name in ("fork and exec", *MODES)}
        for _ in range(options.runs):
            found["fork and exec"].append(_bare(STEPS))
            for name, more in MODES.items():
                times = []
                for count in (1, STEPS):
                    command = [str(pybuild), "-q", "--no-cache", "--jobs=1", *more, str(work / str(count))]
                    started = time.perf_counter()
                    subprocess.run(command, env=environment, check=True, capture_output=True)
                    times.append(time.perf_counter() - started)
                found[name].append((times[1] - times[0]) / (STEPS - 1))
    bare = statistics.median(found["fork and exec"])
    print("| | one step, ms | more than fork and exec |\n| --- | --- | --- |")
    for name, values in found.items():
        median = statistics.median(values)
        print(f"| {name} | {median * 1e3:.2f} | {(median - bare) * 1e3:.2f} |")


def _bare(count: int) -> float:
    started = time.perf_counter()
    for number in range(count):
        subprocess.run(["/bin/busybox", "echo", str(number)], check=True, capture_output=True)
    return (time.perf_counter() - started) / count


if __name__ == "__main__":
    main()
