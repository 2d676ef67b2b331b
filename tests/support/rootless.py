"""pybuild as an ordinary user has it: users without a login, and a copy of the program that they can read.

This repository and its virtual environment may lie where only root gets. So the packages are
copied to a folder on tmpfs, and run by the distribution's own interpreter.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness import PROCESS, PYBUILD, Pybuild, Result

PYTHON = "/usr/bin/python3"
_MAIN = "from builder.cli.main import main; main()"
_ROOT = Path(__file__).resolve().parent.parent.parent
_OURS = ("builder", "cache", "grammar")
_OTHERS = ("lark", "zstandard", "pyroute2", "tqdm", "urllib3", "isal", "deflate")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Names of users are this, the number of the process that made them, and a letter.
PREFIX = "pybt"
_PLACE, _FOLDER = "/dev/shm", "pybuild-rootless."
_RANGE = 65536
_TUN = "/dev/net/tun"
_PUT_TUN = f'mount --bind "$0" {_TUN} && exec "$@"'


@dataclass(frozen=True)
class User:
    """A user, with the ids that are hers: her own and what /etc/subuid gives her."""

    name: str
    uid: int
    gid: int
    subordinate: int
    """The first of 65536, or 0 for none."""
    home: Path

    def owns(self, uid: int) -> bool:
        return uid == self.uid or (self.subordinate > 0 and 0 <= uid - self.subordinate < _RANGE)

    def processes(self) -> list[int]:
        """Her processes, those of her steps too."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self.owns(entry.stat().st_uid):
                    found.append(int(entry.name))
            except OSError:
                continue  # it ended
        return found


@dataclass(frozen=True)
class Rootless(Pybuild):
    """The command as a user runs it, on a store of hers."""

    user: User
    program: Path
    tun: Path | None = None
    """A node to have for /dev/net/tun, where this machine's is root's alone."""
    python: str = PYTHON

    def command(self, *args: str | Path, env: Mapping[str, str] | None = None) -> list[str]:
        """The command line for root to run."""
        user = ["setpriv", f"--reuid={self.user.uid}", f"--regid={self.user.gid}", "--init-groups"]
        settings = [f"{name}={value}" for name, value in self.environment(env).items()]
        place = ["unshare", "--mount", "sh", "-c", _PUT_TUN, str(self.tun)] if self.tun else []
        return [
            *place, *user, "--reset-env", "env", "-u", "XDG_RUNTIME_DIR", *settings,
            self.python, "-P", "-c", _MAIN, *map(str, args),
        ]  # fmt: skip

    def __call__(
        self,
        *args: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout: float = 120,
    ) -> Result:
        done = subprocess.run(
            self.command(*args, env=env),
            cwd=cwd or self.work,
            env={"PATH": _PATH},
            input=stdin,
            capture_output=True,
            check=False,
            timeout=timeout,
        )
        out, err = (data.decode("utf-8", "backslashreplace") for data in (done.stdout, done.stderr))
        return Result(done.returncode, out, err)

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        return {
            "PATH": _PATH,
            "HOME": str(self.user.home),
            "PYTHONPATH": str(self.program),
            "PYBUILD_ROOT": str(self.store),
            "LC_ALL": "C.UTF-8",
            **(more or {}),
        }


def command(
    pybuild: Pybuild, *args: str | Path, env: Mapping[str, str] | None = None
) -> tuple[list[str], dict[str, str]]:
    """A command line and an environment that run *pybuild*, whoever it is run by."""
    if isinstance(pybuild, Rootless):
        return pybuild.command(*args, env=env), {"PATH": _PATH}
    return [PYBUILD, *map(str, args)], pybuild.environment(env)


@dataclass(frozen=True)
class Installation:
    """The copied program and the users."""

    folder: Path
    program: Path
    tun: Path | None
    ranges: User
    single: User

    def pybuild(self, user: User, work: str, store: str = "store") -> Rootless:
        """The command for *user*, with a new folder of hers to work in."""
        made = Path(tempfile.mkdtemp(prefix=f"{work}.", dir=user.home))
        made.chmod(0o755)
        os.chown(made, user.uid, user.gid)
        return Rootless(user.home / store, made, user, self.program, self.tun)


@contextlib.contextmanager
def installed() -> Iterator[Installation]:
    """Make the users and the copy; both are gone at the end, and so is what the users still run."""
    _sweep()
    folder = Path(_PLACE, _FOLDER + PROCESS)
    folder.mkdir(0o711)
    lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    users: list[User] = []
    try:
        program = folder / "program"
        _copy_program(program)
        for letter in "rs":
            users.append(_make_user(f"{PREFIX}{PROCESS}{letter}", folder, with_ranges=letter == "r"))
        yield Installation(folder, program, _tun(folder), *users)
    finally:
        for user in users:
            _remove_user(user)
        subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)
        os.close(lock)


def nothing_runs(user: User, patience: float = 5.0) -> list[int]:
    """What still runs as *user*, after a moment for it to end."""
    end = time.monotonic() + patience
    while (left := user.processes()) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def _copy_program(target: Path) -> None:
    """Copy the packages where everyone can read them, compiled."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in (*_OURS, *_OTHERS):
        if name in _OURS:
            source = str(_ROOT / name)
        else:
            found = importlib.util.find_spec(name)
            assert found is not None and found.submodule_search_locations, f"{name} is not installed"
            source = found.submodule_search_locations[0]
        shutil.copytree(source, target / name, ignore=ignored)
    subprocess.run(["chmod", "-R", "u=rwX,go=rX", target], check=True)
    subprocess.run([PYTHON, "-m", "compileall", "-q", "-j", "2", target], check=True)


def _tun(folder: Path) -> Path | None:
    """/dev/net/tun as udev makes it: everybody's. Containers and small machines have it as the kernel does."""
    found = os.stat(_TUN)
    if found.st_mode & 0o006 == 0o006:
        return None
    node = folder / "tun"
    os.mknod(node, found.st_mode, found.st_rdev)
    node.chmod(0o666)
    return node


def _make_user(name: str, folder: Path, with_ranges: bool) -> User:
    options = ["--system", "--user-group", "--groups=users", "--no-create-home", "--shell=/usr/sbin/nologin"]
    _patiently("useradd", *options, name)
    entry = pwd.getpwnam(name)
    first = 0
    if with_ranges:
        first = 100_000_000 + entry.pw_uid * _RANGE  # nobody else's, and below what root's steps use
        last = first + _RANGE - 1
        _patiently("usermod", f"--add-subuids={first}-{last}", f"--add-subgids={first}-{last}", name)
    home = folder / name
    home.mkdir(mode=0o711)
    os.chown(home, entry.pw_uid, entry.pw_gid)
    return User(name, entry.pw_uid, entry.pw_gid, first, home)


def _remove_user(user: User) -> None:
    for pid in user.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    nothing_runs(user)
    _patiently("userdel", user.name)


def _sweep() -> None:
    """Remove what a run that was killed has left: nobody holds the lock of its folder."""
    for entry in pwd.getpwall():
        folder = Path(_PLACE, _FOLDER + entry.pw_name.removeprefix(PREFIX)[:-1])
        if entry.pw_name.startswith(PREFIX) and not _is_locked(folder):
            first = 100_000_000 + entry.pw_uid * _RANGE
            _remove_user(User(entry.pw_name, entry.pw_uid, entry.pw_gid, first, Path("/nonexistent")))
    for folder in Path(_PLACE).glob(_FOLDER + "*"):
        if not _is_locked(folder):
            subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)


def _is_locked(folder: Path) -> bool:
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


def _patiently(*words: str) -> None:
    """Run a command of the user database, which others may hold locked."""
    for _ in range(20):
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        if "lock" not in done.stderr:
            break
        time.sleep(0.25)
    raise AssertionError(f"{' '.join(words)}: {done.stderr}")
