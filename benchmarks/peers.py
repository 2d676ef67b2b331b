"""The tools compared: how each is started, called and made to forget.

All of them understand ``--no-cache`` and ``--network``, and keep everything they store on the
benchmark's own file system.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import CGROUP, environment, say

IMAGE = "bench"
_DAEMON_START = 30.0


@dataclass(frozen=True)
class Tool:
    """One builder. Its build command is *build*, options, context."""

    name: str
    version: str
    program: str
    build: tuple[str, ...]
    environment: Mapping[str, str]
    forget: Callable[[], None]
    """Drop all it knows but the base image; not timed."""
    daemon: bool = False


@contextlib.contextmanager
def pybuild(folder: Path, base: Path) -> Iterator[Tool]:
    """The ``pybuild`` installed beside this interpreter."""
    program = str(Path(sys.executable).with_name("pybuild"))
    store = folder / "pybuild"

    def forget() -> None:
        _remove(store)
        say(program, "import", "--root", str(store), str(base), "busybox:latest")

    forget()
    yield Tool(
        "pybuild",
        say(program, "--version").strip(),
        program,
        (program, "-t", IMAGE),
        {**environment(), "PYBUILD_ROOT": str(store)},
        forget,
    )


@contextlib.contextmanager
def docker(folder: Path, base: Path) -> Iterator[Tool]:
    """BuildKit as it is inside docker.io's daemon, which is started and stopped here."""
    daemon = _found("dockerd")
    program = _client_of(daemon)
    socket = f"unix://{folder}/docker.sock"
    settings = {
        **environment(),
        "DOCKER_HOST": socket,
        "DOCKER_BUILDKIT": "1",
        "DOCKER_CONFIG": str(folder / "docker-config"),
    }
    options = ["--data-root", str(folder / "docker"), "--exec-root", str(folder / "docker-exec")]
    options += ["--host", socket, "--pidfile", str(folder / "docker.pid")]
    options += ["--storage-driver", "overlay2", "--cgroup-parent", f"/{CGROUP}"]
    log = folder / "dockerd.log"

    def call(*arguments: str) -> str:
        return say(program, *arguments, settings=settings)

    def ready() -> bool:
        info = subprocess.run([program, "info"], check=False, capture_output=True, env=settings)
        return info.returncode == 0

    def forget() -> None:
        if call("image", "ls", "--quiet", IMAGE):
            call("image", "rm", "--force", IMAGE)
        call("image", "prune", "--force")
        call("builder", "prune", "--all", "--force")

    with open(log, "wb") as output:
        process = subprocess.Popen([daemon, *options], env=settings, stdout=output, stderr=output)
    try:
        _await(process, ready, log)
        call("import", str(base), "busybox:latest")
        server = call("version", "--format", "{{.Server.Version}}").strip()
        runc = say("runc", "--version").split()[2]
        yield Tool(
            "docker",
            f"BuildKit of Docker {server}, overlay2, runc {runc}",
            program,
            (program, "build", "-t", IMAGE),
            settings,
            forget,
            daemon=True,
        )
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def buildah(folder: Path, base: Path) -> Iterator[Tool]:
    """buildah as root, with overlay storage and real containers (``--isolation oci``)."""
    program = _found("buildah")
    storage = folder / "buildah"
    where = ("--root", str(storage), "--runroot", str(folder / "buildah-run"))
    call = (program, *where, "--storage-driver", "overlay")

    def forget() -> None:
        say(*call, "rmi", "--all", "--force")
        prepare()

    def prepare() -> None:
        container = say(*call, "from", "scratch").strip()
        say(*call, "add", "--quiet", container, str(base), "/")
        say(*call, "commit", "--quiet", "--rm", container, "busybox:latest")

    prepare()
    version = say(program, "--version").split()[2]
    runc = say("runc", "--version").split()[2]
    yield Tool(
        "buildah",
        f"buildah {version}, overlay, --layers --isolation oci, runc {runc}",
        program,
        (*call, "build", "--layers", "--isolation", "oci", "--runtime", "runc", "--pull-never", "-t", IMAGE),
        environment(),
        forget,
    )


TOOLS: Mapping[str, Callable[[Path, Path], contextlib.AbstractContextManager[Tool]]] = {
    "pybuild": pybuild,
    "docker": docker,
    "buildah": buildah,
}
_PROGRAMS = {"docker": "dockerd", "buildah": "buildah"}


def present(name: str) -> bool:
    """Whether a tool can be compared on this machine."""
    return name not in _PROGRAMS or shutil.which(_PROGRAMS[name]) is not None


def _found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise SystemExit(f"{program} is not installed")
    return path


def _client_of(daemon: str) -> str:
    """The docker command of the daemon's own version: a newer one needs a plug-in for BuildKit."""
    wanted = say(daemon, "--version").split()[2]
    for folder in os.get_exec_path():
        program = os.path.join(folder, "docker")
        if os.access(program, os.X_OK) and say(program, "--version").split()[2] == wanted:
            return program
    raise SystemExit(f"there is no docker command of the daemon's version, {wanted}")


def _await(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    end = time.monotonic() + _DAEMON_START
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"the daemon did not start:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.1)


def _remove(folder: Path) -> None:
    say("rm", "-rf", "--one-file-system", str(folder))
