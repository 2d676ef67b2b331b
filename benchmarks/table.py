"""The results as Markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.measure import Sample
from benchmarks.peers import Tool
from benchmarks.workloads import Workload

OURS = "pybuild"
_REFERENCE = "docker"


@dataclass(frozen=True)
class Result:
    """What a workload gave: samples and peak memory in bytes, by tool."""

    workload: Workload
    samples: Mapping[str, Sequence[Sample]]
    memory: Mapping[str, int]


def times(results: Sequence[Result], tools: Sequence[Tool]) -> str:
    """Medians with minimum and maximum, and pybuild's share of each peer's time."""
    peers = [tool.name for tool in tools if tool.name != OURS]
    head = ["workload", "pybuild"]
    for peer in peers:
        head += [peer, f"pybuild / {peer}"]
    rows = [[*head, "est. / HEAD", "bar", "others"]]
    for result in results:
        ours = result.samples[OURS]
        row = [f"`{result.workload.name}`", _spread(ours)]
        for peer in peers:
            row += [_spread(result.samples[peer]), f"{_ratio(result, peer):.2f}"]
        bar = result.workload.bar
        row += [_estimate(result), f"{bar:g}" if bar else ""]
        every = [sample.foreign for samples in result.samples.values() for sample in samples]
        rows.append([*row, f"{statistics.mean(every):.2f}"])
    return _markdown(rows)


def memory(results: Sequence[Result], tools: Sequence[Tool]) -> str:
    """Peak memory in MiB."""
    rows = [["peak memory, MiB", *(tool.name for tool in tools)]]
    for result in results:
        sizes = [f"{result.memory[tool.name] / (1 << 20):.0f}" for tool in tools]
        rows.append([f"`{result.workload.name}`", *sizes])
    return _markdown(rows)


def _ratio(result: Result, peer: str) -> float:
    """The median over the rounds of pybuild's time by the peer's time in the same round."""
    pairs = zip(result.samples[OURS], result.samples[peer], strict=True)
    return statistics.median(ours.seconds / theirs.seconds for ours, theirs in pairs)


def _estimate(result: Result) -> str:
    """pybuild / BuildKit HEAD, by way of Docker: measured here, and Docker / HEAD by reference."""
    if result.workload.reference is None or _REFERENCE not in result.samples:
        return ""
    return f"{_ratio(result, _REFERENCE) * result.workload.reference:.2f}"


def _spread(samples: Sequence[Sample]) -> str:
    values = [sample.seconds * 1000 for sample in samples]
    return f"{statistics.median(values):.0f} ms ({min(values):.0f}–{max(values):.0f})"  # noqa: RUF001


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
