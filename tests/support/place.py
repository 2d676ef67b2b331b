"""A container that sleeps, in which commands are executed, and what every kind of it has.

It has a root of a few files; programs are this machine's /usr, the checkout and its Python, read-only.
What is exchanged is in a folder that has the same path inside.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import PYBUILD, Result

ROOT = Path(__file__).resolve().parents[2]
STORE = "/var/lib/pybuild"  # on the container's own root
MEMORY = "/memory"  # a tmpfs, which a step's programs can be executed from
# What a test of this machine's own settings may see; of the rest a container gets nothing.
_KEPT = {
    name: value
    for name, value in os.environ.items()
    if name.startswith(("PIP_", "SSL_CERT", "NODE_EXTRA")) or name.lower().endswith("_proxy")
}
ENVIRONMENT = {
    "PATH": f"{Path(PYBUILD).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "CONTAINERS_REGISTRIES_CONF": os.devnull,
}
_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib32": "usr/lib32", "lib64": "usr/lib64"}
_FOLDERS = "usr etc root tmp var run proc sys dev memory var/lib var/tmp"
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n",
    "etc/group": "root:x:0:\nuser:x:1000:\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}
SLEEP = ["/usr/bin/sleep", "infinity"]
SUBIDS = 300000  # where the ids of a container with a user namespace begin on this machine


@dataclass(frozen=True)
class Process:
    """A process of a place, as its own ps shows it."""

    pid: int
    state: str
    command: str


class Place:
    """A container that runs. *words* before a command execute it there."""

    def __init__(
        self,
        name: str,
        words: Sequence[str | Path],
        work: Path,
        store: str = STORE,
        anew: Sequence[str | Path] = (),
    ) -> None:
        """*anew* are the words that start a container of a command, "first", where a program has any."""
        self.name = name
        self.words = [str(word) for word in words]
        self.work = work
        self.store = store
        self.anew = [str(word) for word in anew]

    def command(self, *command: str | Path, store: str = "", anew: bool = False) -> list[str]:
        """What executes *command* in the place, or *anew* as the first process of another."""
        env = {**ENVIRONMENT, **_KEPT, "PYBUILD_ROOT": store or self.store}
        settings = [f"{name}={value}" for name, value in env.items()]
        words = self.anew if anew else self.words
        return [*words, "/usr/bin/env", "-C", str(self.work), *settings, *map(str, command)]

    def do(self, *command: str | Path, store: str = "", stdin: bytes = b"", timeout: float = 120) -> Result:
        """Execute *command* to its end."""
        done = subprocess.run(
            self.command(*command, store=store),
            input=stdin,
            capture_output=True,
            check=False,
            timeout=timeout,
        )
        out, err = (data.decode("utf-8", "backslashreplace") for data in (done.stdout, done.stderr))
        return Result(done.returncode, out, err)

    def __call__(
        self, *args: str | Path, store: str = "", stdin: bytes = b"", timeout: float = 120
    ) -> Result:
        """Execute pybuild to its end."""
        return self.do(PYBUILD, *args, store=store, stdin=stdin, timeout=timeout)

    def processes(self) -> list[Process]:
        """What runs in the place, but for what sleeps there and what looks."""
        lines = self.do("/usr/bin/ps", "-eo", "pid=,stat=,args=").ok().out.splitlines()
        rows = [
            Process(int(pid), state, rest) for pid, state, rest in (line.split(None, 2) for line in lines)
        ]
        return [row for row in rows if not row.command.endswith((" infinity", "pid=,stat=,args="))]


def make_root(folder: Path, owner: int = 0) -> None:
    """Make a root file system of a few files; the rest is mounted."""
    for name in _FOLDERS.split():
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, text in _FILES.items():
        (folder / name).write_text(text)
    for name, target in _LINKS.items():
        if os.path.exists(f"/{name}"):
            (folder / name).symlink_to(target)
    for bound in bound_folders():
        (folder / bound.strip("/")).mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "var/tmp"):
        (folder / name).chmod(0o1777)
    if owner:
        subprocess.run(["chown", "-hR", f"{owner}:{owner}", folder], check=True)


def bound_folders() -> list[str]:
    """Folders of this machine that programs need, bound read-only at the same path."""
    wanted = [Path("/usr"), Path("/etc/ssl"), Path("/etc/ca-certificates"), Path(sys.base_prefix), ROOT]
    found = [path.resolve() for path in wanted if path.exists()]
    inner = {path for path in found if any(other in path.parents for other in found)}
    return [str(path) for path in dict.fromkeys(found) if path not in inner]


def root_archive() -> bytes:
    """The same root as a tar."""
    with tempfile.TemporaryDirectory() as folder:
        make_root(Path(folder))
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            tar.add(folder, ".")
        return out.getvalue()


def volume_options(work: Path) -> list[str]:
    return [*(f"-v={path}:{path}:ro" for path in bound_folders()), f"-v={work}:{work}"]


@contextmanager
def own_mounts() -> Iterator[list[str]]:
    """What executes a command in a mount namespace of its own, whose mounts end with it.

    Of cgroups one version is left there, where there are two: crun can do nothing with both.
    """
    script = "umount /sys/fs/cgroup/unified 2>/dev/null; echo; exec sleep infinity"
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline()
            yield ["nsenter", f"--mount=/proc/{holder.pid}/ns/mnt"]
        finally:
            holder.kill()
