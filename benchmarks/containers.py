"""Compare pybuild with kaniko where both build: in `docker run` with docker's defaults.

python benchmarks/containers.py --docker unix:///run/docker.sock --kaniko PATH/executor [--runs N]

Each build is a container of its own on the host's network, timed from `docker run` to its end. Both pull
their base from a registry on loopback, start with nothing in their store and write an OCI layout. For the
second build both have their cache in that registry. The checkout and its .venv are bound into the container.
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
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PORT = 5017
REGISTRY = f"127.0.0.1:{PORT}"
_FILES = 20_000


@dataclass(frozen=True)
class Workload:
    """A context, and how often of kaniko's time pybuild may take."""

    name: str
    bar: float
    dockerfile: str
    cached: bool = False


WORKLOADS = (
    Workload(
        "apt-get install python3",
        0.6,
        f"FROM {REGISTRY}/debian:1\n"
        "RUN apt-get update -q && apt-get install -yq --no-install-recommends python3\n",
    ),
    Workload(f"COPY of {_FILES} files", 0.3, f"FROM {REGISTRY}/busybox:1\nCOPY files /files\n"),
    Workload(
        "30 RUNs",
        0.8,
        f"FROM {REGISTRY}/busybox:1\n" + "".join(f"RUN echo {n} > /f{n}\n" for n in range(30)),
    ),
    Workload(
        "30 RUNs and a COPY, nothing changed",
        0.1,
        f"FROM {REGISTRY}/busybox:1\n"
        + "".join(f"RUN echo {n} > /g{n}\n" for n in range(30))
        + "COPY files /files\n",
        cached=True,
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Compare pybuild with kaniko in docker's default containers."
    )
    add = parser.add_argument
    add("--docker", required=True, metavar="HOST", help="the daemon, as docker -H has it")
    add("--kaniko", required=True, type=Path, metavar="FILE", help="kaniko's executor, a static program")
    add("--runs", type=int, default=5, metavar="N", help="timed runs of each, in turn (default: %(default)s)")
    add("--only", default="", metavar="TEXT", help="workloads whose name has this")
    add("--where", default="/var/tmp", metavar="DIR", help="a journalled disk (default: %(default)s)")
    options = parser.parse_args()
    docker = ["docker", "-H", options.docker]
    with (
        tempfile.TemporaryDirectory(prefix="pybuild-containers.", dir=options.where) as scratch,
        _registry(Path(scratch)),
    ):
        work = Path(scratch)
        _prepare(docker, options.kaniko, work)
        print("| workload | pybuild | kaniko | pybuild / kaniko | bar |\n| --- | ---: | ---: | ---: | ---: |")
        for workload in WORKLOADS:
            if options.only in workload.name:
                _compare(docker, workload, work, options.runs)
    return 0


def _compare(docker: list[str], workload: Workload, work: Path, runs: int) -> None:
    context = work / "context"
    (context / "Dockerfile").write_text(workload.dockerfile)
    times: dict[str, list[float]] = {"pybuild": [], "kaniko": []}
    for number in range(runs + 1):
        for name, found in times.items():
            seconds = (
                _pybuild(docker, workload, work) if name == "pybuild" else _kaniko(docker, workload, work)
            )
            if number:  # the first is to warm up, and to fill the cache
                found.append(seconds)
    ours, theirs = times["pybuild"], times["kaniko"]
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    print(
        f"| {workload.name} | {_spread(ours)} | {_spread(theirs)} | {ratio:.2f} | {workload.bar} |",
        flush=True,
    )


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"


def _pybuild(docker: list[str], workload: Workload, work: Path) -> float:
    out = _fresh(work / "out")
    cache = f"{REGISTRY}/cache-pybuild"
    more = [f"--cache-from=type=registry,ref={cache}", f"--cache-to=type=registry,ref={cache},mode=max"]
    binds = [ROOT, Path(sys.base_prefix), Path(sys.prefix)]
    command = [
        *(
            *docker,
            "run",
            "--rm",
            "--network=host",
            f"--volume={work}/context:/context:ro",
            f"--volume={out}:/out",
        ),
        *(f"--volume={path}:{path}:ro" for path in dict.fromkeys(binds)),
        *("bench-pybuild", str(Path(sys.executable).with_name("pybuild")), "--progress=plain"),
        *("-o", "type=oci,dest=/out/layout,tar=false", *(more if workload.cached else ()), "/context"),
    ]
    return _timed(command)


def _kaniko(docker: list[str], workload: Workload, work: Path) -> float:
    out = _fresh(work / "out")
    more = ["--cache", f"--cache-repo={REGISTRY}/cache-kaniko", "--cache-copy-layers"]
    command = [
        *(*docker, "run", "--rm", "--network=host", f"--volume={work}/context:/workspace:ro"),
        *(
            f"--volume={out}:/out",
            "bench-kaniko",
            "/kaniko/executor",
            "--context=dir:///workspace",
            "--no-push",
        ),
        *("--oci-layout-path=/out/layout", "--image-format=oci", *(more if workload.cached else ())),
    ]
    return _timed(command)


def _timed(command: list[str]) -> float:
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    return time.monotonic() - started


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


@contextlib.contextmanager
def _registry(work: Path) -> Iterator[None]:
    config = work / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"
        f"storage: {{filesystem: {{rootdirectory: {work}/registry}}}}\nhttp: {{addr: {REGISTRY}}}\n"
    )
    with open(os.devnull, "wb") as null:
        process = subprocess.Popen(["docker-registry", "serve", config], stdout=null, stderr=null)
    try:
        time.sleep(1)
        yield
    finally:
        process.terminate()
        process.wait()


def _prepare(docker: list[str], kaniko: Path, work: Path) -> None:
    """The base images in the registry, the images of the two builders, and the context."""
    environment = {
        **os.environ,
        "PYBUILD_ROOT": str(work / "store"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    program = str(Path(sys.executable).with_name("pybuild"))

    def say(*command: object) -> None:
        subprocess.run(list(map(str, command)), check=True, env=environment, capture_output=True)

    say(ROOT / "samples/make-bases")
    for name, image in (("debian:bookworm-slim", "debian:1"), ("busybox", "busybox:1")):
        say(program, "tag", name, f"{REGISTRY}/{image}")
        say(program, "push", f"{REGISTRY}/{image}")
    top = work / "kaniko"
    (top / "kaniko").mkdir(parents=True)
    (top / "workspace").mkdir()
    shutil.copy(kaniko, top / "kaniko/executor")
    say("tar", "-C", top, "-cf", work / "kaniko.tar", ".")
    say(
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        "--include=ca-certificates,libsqlite3-0,libssl3,libffi8,libexpat1,zlib1g,libbz2-1.0,liblzma5",
        "bookworm",
        work / "base.tar",
    )
    say(
        *docker,
        "import",
        "--change=ENV container=docker HOME=/root USER=root",
        work / "kaniko.tar",
        "bench-kaniko",
    )
    say(*docker, "import", work / "base.tar", "bench-pybuild")
    files = work / "context/files"
    files.mkdir(parents=True)
    for number in range(_FILES):
        place = files / f"d{number % 100}"
        place.mkdir(exist_ok=True)
        (place / f"f{number}").write_bytes(os.urandom(200 + number % 6400))


if __name__ == "__main__":
    sys.exit(main())
