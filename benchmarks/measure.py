"""Measure one command: wall time, others' use of the processors meanwhile, peak memory."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")
_IDLE_WINDOW = 0.2
_IDLE_SHARE = 0.1
_POLL = 0.004


@dataclass(frozen=True)
class Command:
    """What to run, and where its output goes."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: Path

    def start(self) -> subprocess.Popen[bytes]:
        """Start it, its output to a file: a terminal would slow some tools down."""
        with open(self.folder / "output.log", "wb") as log:
            return subprocess.Popen(
                self.arguments,
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def check(self, code: int) -> None:
        """Stop the benchmark when the command failed: its time would mean nothing."""
        if code:
            output = (self.folder / "output.log").read_text(errors="replace")[-3000:]
            raise SystemExit(f"{' '.join(self.arguments)}: exit code {code}\n{output}")


@dataclass(frozen=True)
class Sample:
    """One run: seconds, and the processors that others kept busy meanwhile (1.0 is one core)."""

    seconds: float
    foreign: float


def timed(command: Command) -> Sample:
    """The wall time of the whole process, from before its start to after its end."""
    busy, own = _busy(), _own()
    begin = time.perf_counter()
    process = command.start()
    code = process.wait()
    seconds = time.perf_counter() - begin
    command.check(code)
    foreign = (_busy() - busy) - (_own() - own)
    return Sample(seconds, max(0.0, foreign) / seconds)


def settle(folder: Path, limit: float) -> None:
    """Write back the benchmark's file system, then wait for an idle machine, at most *limit* seconds."""
    subprocess.run(["sync", "--file-system", folder], check=True)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        busy = _busy()
        time.sleep(_IDLE_WINDOW)
        _reap()
        if (_busy() - busy) / _IDLE_WINDOW < _IDLE_SHARE:
            return


def peak_memory(command: Command, with_daemons: bool) -> int:
    """The highest sum of PSS of the processes the command made, in bytes.

    Polled, so a peak shorter than a few milliseconds can be missed; polling also slows the
    run down, so it is never a timed one. With *with_daemons* the processes that were there
    before count too (all but this one).
    """
    before = {os.getpid()} if with_daemons else set(_processes())
    peak = 0
    process = command.start()
    while process.poll() is None:
        peak = max(peak, sum(_pss(pid) for pid in _processes() if pid not in before))
        time.sleep(_POLL)
    command.check(process.returncode)
    return peak


def idle_memory() -> int:
    """The sum of PSS of all processes but this one: what daemons hold between builds."""
    return sum(_pss(pid) for pid in _processes() if pid != os.getpid())


def _processes() -> list[int]:
    """Every process of this process namespace."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _pss(pid: int) -> int:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0


def _busy() -> float:
    """Seconds all processors have been busy since boot."""
    with open("/proc/stat", encoding="ascii") as file:
        fields = [int(field) for field in file.readline().split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, _steal = fields
    return (user + nice + system + irq + softirq) * _TICK


def _own() -> float:
    """Processor seconds of all that ran in this process namespace."""
    ticks = 0
    for pid in _processes():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11:15])  # utime stime cutime cstime
    return ticks * _TICK


def _reap() -> None:
    """Collect what was left to us as the first process of the namespace."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
