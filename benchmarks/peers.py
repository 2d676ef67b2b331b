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
    options = ("--storage-driver", "overlay2")
    with _dockerd("docker", folder, base, (), daemon, _client_of(daemon), options) as (settings, server):
        program = _client_of(daemon)
        yield Tool(
            "docker",
            f"BuildKit of Docker {server}, overlay2, runc {say('runc', '--version').split()[2]}",
            program,
            (program, "build", "-t", IMAGE),
            settings,
            lambda: _forget((program,), settings),
            daemon=True,
        )


@contextlib.contextmanager
def buildkit(folder: Path, base: Path) -> Iterator[Tool]:
    """A newer BuildKit: that of the docker in the root file system that ``BUILDKIT_ROOT`` names."""
    root = folder / "root"
    root.mkdir()
    say("mount", "--bind", os.environ[_NEWER], str(root))
    for name in ("proc", "sys", "dev"):
        say("mount", "--rbind", f"/{name}", str(root / name))
    place = root / folder.relative_to("/")
    place.mkdir(parents=True, exist_ok=True)
    say("mount", "--bind", str(folder), str(place))
    (root / "etc/docker").mkdir(parents=True, exist_ok=True)
    (root / "etc/docker/daemon.json").write_text('{"features": {"containerd-snapshotter": true}}')
    enter = ("env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "chroot", str(root))
    with _dockerd("buildkit", folder, base, enter, "dockerd", "docker", ()) as (settings, server):
        buildx = say(*enter, "docker", "buildx", "version").split()[1]
        yield Tool(
            "buildkit",
            f"BuildKit of Docker {server}, containerd's store, buildx {buildx}",
            "docker",
            (*enter, "docker", "buildx", "build", "--provenance=false", "-t", IMAGE),
            settings,
            lambda: _forget((*enter, "docker"), settings),
            daemon=True,
        )


@contextlib.contextmanager
def _dockerd(
    name: str,
    folder: Path,
    base: Path,
    enter: tuple[str, ...],
    daemon: str,
    client: str,
    more: tuple[str, ...],
) -> Iterator[tuple[dict[str, str], str]]:
    """A docker daemon that has the base image: how its client is to be called, and its version."""
    socket = f"unix://{folder}/{name}.sock"
    settings = {
        **environment(),
        "DOCKER_HOST": socket,
        "DOCKER_BUILDKIT": "1",
        "DOCKER_CONFIG": str(folder / f"{name}-config"),
    }
    options = ["--data-root", str(folder / name), "--exec-root", str(folder / f"{name}-exec")]
    options += ["--host", socket, "--pidfile", str(folder / f"{name}.pid")]
    options += ["--cgroup-parent", f"/{CGROUP}", *more]
    log = folder / f"{name}.log"

    def call(*arguments: str) -> str:
        return say(*enter, client, *arguments, settings=settings)

    def ready() -> bool:
        info = subprocess.run([*enter, client, "info"], check=False, capture_output=True, env=settings)
        return info.returncode == 0

    with open(log, "wb") as output:
        process = subprocess.Popen([*enter, daemon, *options], env=settings, stdout=output, stderr=output)
    try:
        _await(process, ready, log)
        call("import", str(base), "busybox:latest")
        yield settings, call("version", "--format", "{{.Server.Version}}").strip()
    finally:
        process.terminate()
        process.wait()


def _forget(client: tuple[str, ...], settings: Mapping[str, str]) -> None:
    """Have a docker daemon drop all but its base image."""
    if say(*client, "image", "ls", "--quiet", IMAGE, settings=settings):
        say(*client, "image", "rm", "--force", IMAGE, settings=settings)
    say(*client, "image", "prune", "--force", settings=settings)
    say(*client, "builder", "prune", "--all", "--force", settings=settings)


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
    "buildkit": buildkit,
    "buildah": buildah,
}
_PROGRAMS = {"docker": "dockerd", "buildah": "buildah"}
_NEWER = "BUILDKIT_ROOT"  # the variable that names a root file system with a newer docker


def present(name: str) -> bool:
    """Whether a tool can be compared on this machine."""
    if name == "buildkit":
        return _NEWER in os.environ
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
