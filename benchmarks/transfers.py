"""Images out and in: archives, pushes, pulls, a cached build on an empty machine; beside docker and buildah.

python benchmarks/transfers.py [--runs N] [--only NAME] [--peer NAME]

Like run.py it starts itself again in namespaces and on a file system of its own; needs docker-registry
and mmdebstrap besides. What is prepared before each run is not timed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/support"))

from servers import registry

from benchmarks import machine, peers
from benchmarks.machine import say
from benchmarks.measure import Command, peak_memory, settle, timed
from benchmarks.workloads import make_base, make_contexts

LARGE = 256 << 20
FRESH = 60 << 20
STEPS = 30


@dataclass(frozen=True)
class Work:
    """One thing to time: *prepare* comes before each run, then the command that it returns is timed."""

    name: str
    prepare: Callable[[Bench, peers.Tool], Sequence[str] | None]
    """None: the tool has no such thing."""


@dataclass(frozen=True)
class Bench:
    folder: Path
    host: str
    """Of the registry."""

    def run(self, tool: peers.Tool, *arguments: str) -> None:
        say(*arguments, settings=tool.environment)


def buildah_call(tool: peers.Tool) -> list[str]:
    """The command with its storage, as far as before ``build``."""
    return list(tool.build[: tool.build.index("build")])


def built(bench: Bench, tool: peers.Tool, context: str, name: str) -> None:
    """Build a context from nothing but the base image, as *name*."""
    tool.forget()
    command = [name if word == peers.IMAGE else word for word in tool.build]
    if tool.name == "buildkit":
        command += ["-o", "type=cacheonly"]  # it would compress what it stores as an image
    bench.run(tool, *command, str(bench.folder / "contexts" / context))


# -- what is timed -------------------------------------------------------------------------


def archive(compression: str, again: bool = False) -> Callable[[Bench, peers.Tool], Sequence[str] | None]:
    def prepare(bench: Bench, tool: peers.Tool) -> Sequence[str] | None:
        dest, context = bench.folder / f"{tool.name}.tar", str(bench.folder / "contexts/large")
        dest.unlink(missing_ok=True)
        if tool.name == "pybuild":
            command = (*tool.build, "-o", f"type=oci,dest={dest},compression={compression}", context)
        elif tool.name == "buildah":
            option = f"--compression-format={compression}"
            command = (*buildah_call(tool), "push", option, "large", f"oci-archive:{dest}")
        elif tool.name == "buildkit":
            form = f"type=oci,dest={dest},compression={compression},force-compression=true"
            command = (*tool.build, "-o", form, context)
        else:
            return None  # docker save does not compress
        built(bench, tool, "large", peers.IMAGE if tool.name == "pybuild" else "large")
        if again:
            bench.run(tool, *command)
            dest.unlink()
        return command

    return prepare


def push(bench: Bench, tool: peers.Tool) -> Sequence[str]:
    (bench.folder / "contexts/fresh/blob").write_bytes(content(FRESH))
    name = f"{bench.host}/{tool.name}/fresh:1"
    built(bench, tool, "fresh", name)
    if tool.name == "buildkit":
        context, bare = str(bench.folder / "contexts/fresh"), tool.build[: tool.build.index("-t")]
        return (*bare, "-o", f"type=image,name={name},push=true", context)
    if tool.name == "pybuild":
        return (tool.program, "push", "--quiet", name)
    if tool.name == "buildah":
        return (*buildah_call(tool), "push", "--tls-verify=false", name, f"docker://{name}")
    return (tool.program, "push", "--quiet", name)


def pull(bench: Bench, tool: peers.Tool) -> Sequence[str] | None:
    name = f"{bench.host}/debian:1"
    tool.forget()
    if tool.name == "pybuild":
        return (tool.program, "pull", "--quiet", name)
    if tool.name == "buildah":
        return (*buildah_call(tool), "pull", "--tls-verify=false", "--quiet", name)
    if tool.name == "buildkit":
        return None  # a build pulls nothing by itself; docker's own pull is not BuildKit's
    subprocess.run(
        [tool.program, "image", "rm", "--force", name],
        env=dict(tool.environment),
        capture_output=True,
        check=False,
    )
    return (tool.program, "pull", "--quiet", name)


def restore(bench: Bench, tool: peers.Tool) -> Sequence[str] | None:
    """A build of 30 steps that another machine has cached."""
    name, context = f"{bench.host}/{tool.name}/steps:1", str(bench.folder / "contexts/steps")
    if tool.name == "pybuild":
        place = f"type=registry,ref={name}-cache"
        if not (bench.folder / "cached").exists():
            bench.run(tool, *tool.build, "--cache-to", f"{place},mode=max", context)
            (bench.folder / "cached").touch()
        tool.forget()
        return (*tool.build, "--cache-from", place, context)
    if tool.name == "docker":
        options = ("--build-arg", "BUILDKIT_INLINE_CACHE=1", "--cache-from", name)
        if not (bench.folder / "pushed").exists():
            built(bench, tool, "steps", peers.IMAGE)
            bench.run(tool, tool.program, "build", *options[:2], "-t", name, context)
            bench.run(tool, tool.program, "push", "--quiet", name)
            bench.run(tool, tool.program, "image", "rm", "--force", name)
            (bench.folder / "pushed").touch()
        tool.forget()
        return (*tool.build, *options, context)
    return None  # its cache is by whole steps in a registry, and needs --layers; not compared


WORKS = (
    Work("archive-gzip", archive("gzip")),
    Work("archive-zstd", archive("zstd")),
    Work("archive-again", archive("gzip", again=True)),
    Work("push", push),
    Work("pull", pull),
    Work("restore", restore),
)


# -- running -------------------------------------------------------------------------------


def main() -> int:
    options = _options()
    if os.geteuid():
        raise SystemExit("the benchmark needs root, like the tools it compares")
    if not options.inside:
        with tempfile.TemporaryDirectory(dir="/var/tmp") as outside:
            tar = Path(outside) / "debian.tar"
            if "pull" in options.only:
                say("mmdebstrap", "--quiet", "--variant=minbase", "bookworm", str(tar))
            return machine.inside_namespaces(__file__, [*sys.argv[1:], "--debian", str(tar)], "/var/tmp")
    folder = machine.own_file_system(Path(options.inside))
    base = make_base(folder)
    make_contexts(folder / "contexts")
    _make_large(folder / "contexts")
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(registry(shutil.which("docker-registry") or "docker-registry", folder))
        bench = Bench(folder, host)
        tools = [
            stack.enter_context(peers.TOOLS[name](folder, base))
            for name in ("pybuild", *options.peer)
            if peers.present(name)
        ]
        if "pull" in options.only:
            pybuild = tools[0]
            bench.run(pybuild, pybuild.program, "import", options.debian, f"{host}/debian:1")
            bench.run(pybuild, pybuild.program, "push", "--quiet", f"{host}/debian:1")
        print(f"{options.runs} runs of each in turn. {machine.description()}.\n")
        for tool in tools:
            print(f"* {tool.name}: {tool.version}")
        print(
            "\n| | "
            + " | ".join(tool.name for tool in tools)
            + " | pybuild / the faster | peak MiB, pybuild |"
        )
        print("| --- |" + " ---: |" * (len(tools) + 2), flush=True)
        for work in WORKS:
            if work.name in options.only:
                print(_row(work, bench, tools, options.runs, options.idle), flush=True)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time images out and in.")
    names = [work.name for work in WORKS]
    parser.add_argument("--runs", type=int, default=5, metavar="N")
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--peer", action="append", default=[], choices=["docker", "buildkit", "buildah"], metavar="NAME"
    )
    parser.add_argument("--idle", type=float, default=5, metavar="S", help="wait so long for an idle machine")
    parser.add_argument("--debian", default="", help=argparse.SUPPRESS)
    parser.add_argument("--inside", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.only = options.only or names
    return options


def _row(work: Work, bench: Bench, tools: Sequence[peers.Tool], runs: int, idle: float) -> str:
    found: dict[str, list[float]] = {tool.name: [] for tool in tools}
    peak = 0
    for number in range(runs + 1):
        for tool in tools:
            arguments = work.prepare(bench, tool)
            if arguments is None:
                continue
            settle(bench.folder, idle)
            command = Command(arguments, tool.environment, bench.folder)
            if number == runs and tool.name == "pybuild":
                peak = peak_memory(command, False)
            elif number < runs:
                found[tool.name].append(timed(command).seconds)
    cells = [_spread(found[tool.name]) for tool in tools]
    others = [statistics.median(found[tool.name]) for tool in tools[1:] if found[tool.name]]
    ratio = f"{statistics.median(found['pybuild']) / min(others):.2f}" if others else ""
    return f"| `{work.name}` | {' | '.join(cells)} | {ratio} | {peak >> 20} |"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"


def _make_large(contexts: Path) -> None:
    """The 20,000 files of ``files`` with a blob of 256 MiB, and an empty place for a fresh layer."""
    say("cp", "-a", str(contexts / "files"), str(contexts / "large"))
    (contexts / "large/blob").write_bytes(content(LARGE))
    (contexts / "large/Dockerfile").write_text("FROM busybox\nCOPY . /files\n")
    (contexts / "fresh").mkdir()
    (contexts / "fresh/Dockerfile").write_text("FROM busybox\nCOPY blob /blob\n")


def content(size: int) -> bytes:
    """Bytes of which a quarter is random and the rest repeats: they deflate to about a third."""
    out = bytearray()
    while len(out) < size:
        piece = os.urandom(1 << 12)
        out += piece + b"".join(piece[start : start + 64] * 4 for start in range(0, 3072, 64))
    return bytes(out[:size])


if __name__ == "__main__":
    sys.exit(main())
