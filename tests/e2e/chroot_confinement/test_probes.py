"""What a step that chroot and Landlock isolate can reach outside of its root: --isolation=chroot, tried here.

The probe tries some 200 things, in a step as root, in one as another user, and once where nothing but
chroot confines it: what is hostile has to work there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno as E
import itertools
import os
import pty
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from chroot_table import CHROOT, CONTROL, HIDDEN, LEAVING, USER, expected, expected_of_user
from confinement import said
from harness import PROCESS, Pybuild, make_tree

pytestmark = pytest.mark.e2e


@dataclass(frozen=True)
class World:
    """What there is to reach, and the probe."""

    probe: Path
    facts: str
    outside: Path
    victim: int

    def context(self, pybuild: Pybuild, text: str) -> Path:
        """A context of *text* in whose image the probe is."""
        return self.fill(pybuild.context(text))

    def fill(self, folder: Path) -> Path:
        """Put the probe and what it needs into *folder*."""
        make_tree(folder, {"this-is-for-probes": "x\n", "facts": self.facts, "p": None})
        (folder / "p").chmod(0o777)
        shutil.copy(self.probe, folder / "probe")
        return folder

    def pending(self) -> set[int]:
        """The signals that the victim has got."""
        text = Path(f"/proc/{self.victim}/status").read_text()
        masks = [
            int(line.split()[1], 16) for line in text.splitlines() if line.startswith(("SigPnd", "ShdPnd"))
        ]
        return {number for number in range(1, 65) if any(mask >> (number - 1) & 1 for mask in masks)}


def make_world(probe: Path, held: contextlib.ExitStack) -> World:
    """Files, sockets, processes and a terminal that belong to nobody's root; in no folder of the store."""
    folders = [Path(tempfile.mkdtemp(prefix="probed.", dir=place)) for place in ("/var/tmp", "/dev/shm")]
    for folder in folders:
        held.callback(shutil.rmtree, folder)
        make_tree(
            folder,
            {
                "file": "a secret\n",
                "folder": None,
                "to-rmdir": None,
                "numbers": {str(n): "n" for n in range(64)},
            },
        )
        for name in ("to-unlink", "to-rename", "to-chmod"):
            (folder / name).touch()
        (folder / "file").chmod(0o600)
    outside, shared = folders
    shutil.copy(probe, outside / "program")
    name = outside.name
    for kind, address in (
        (socket.SOCK_STREAM, str(outside / "socket")),
        (socket.SOCK_STREAM, f"\0{name}"),
        (socket.SOCK_DGRAM, f"\0{name}-d"),
    ):
        made = held.enter_context(socket.socket(socket.AF_UNIX, kind))
        made.bind(address)
        if kind == socket.SOCK_STREAM:
            made.listen(64)
    victim = subprocess.Popen(
        [probe, "victim", "its text"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        cwd=outside,
    )
    held.enter_context(victim)
    held.callback(victim.kill)
    assert victim.stdout is not None
    address = victim.stdout.readline().strip()
    master, slave = pty.openpty()
    held.callback(os.close, master)
    held.callback(os.close, slave)
    libc = ctypes.CDLL(None, use_errno=True)
    key = 0x70000000 | int(PROCESS, 16) << 4 | len(folders)
    segment = libc.shmget(key, 4096, 0o1666)
    assert segment >= 0
    held.callback(libc.shmctl, segment, 0, None)
    null = os.stat("/dev/null")
    facts = {
        "null": null.st_ino, "null_device": null.st_dev, "outside": outside, "shared": shared, "victim": victim.pid, "address": address, "abstract": name,
        "terminal": os.path.basename(os.ttyname(slave)), "key": key,
    }  # fmt: skip
    return World(probe, "".join(f"{key} {value}\n" for key, value in facts.items()), outside, victim.pid)


@contextlib.contextmanager
def others_terminals() -> Iterator[None]:
    """Somebody who opens and closes terminals all the time."""
    ended = threading.Event()

    def work() -> None:
        for count in itertools.cycle((2, 16)):
            pairs = [pty.openpty() for _ in range(count)]
            ended.wait(0.2)
            for fd in (fd for pair in pairs for fd in pair):
                os.close(fd)
            if ended.is_set():
                return

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@dataclass(frozen=True)
class Answers:
    """What was answered in a step as root, in one of a user; what the victim has felt of both."""

    root: dict[str, int]
    user: dict[str, int]
    felt: set[int]


@pytest.fixture(scope="module")
def answers(probe: Path, disk: Path) -> Answers:
    work = disk / "work"
    work.mkdir()
    pybuild = Pybuild(work / "store", work)
    text = f"""FROM scratch
COPY . /
RUN ["/probe", "all", "/facts", "/p/root"]
USER {USER}
RUN ["/probe", "all", "/facts", "/p/user"]
"""
    with contextlib.ExitStack() as held:
        world = make_world(probe, held)
        held.enter_context(others_terminals())
        image = pybuild.export(world.context(pybuild, text), *CHROOT)
        return Answers(read(image.read("p/root")), read(image.read("p/user")), world.pending())


def read(report: bytes) -> dict[str, int]:
    """The answers in a report."""
    return {name: int(answer) for name, answer in (line.split() for line in report.decode().splitlines())}


def differences(found: dict[str, int], wanted: dict[str, int]) -> dict[str, str]:
    """The probes that were not answered as they should have been."""
    return {
        name: f"{said(found[name]) if name in found else 'nothing'}, not {said(wanted.get(name, 256))}"
        for name in sorted({*found, *wanted} - {"fault_result"})
        if found.get(name) != wanted.get(name)
    }


def test_probes(answers: Answers) -> None:
    """Root of a step reaches nothing outside of its root but what is accepted, and all that is its own."""
    wanted = expected()
    assert len([name for name, answer in wanted.items() if answer]) >= 100
    assert differences(answers.root, wanted) == {}


def test_probes_of_a_user(answers: Answers) -> None:
    assert differences(answers.user, expected_of_user()) == {}


def test_probes_without_chroot(chroot: Pybuild, probe: Path) -> None:
    """Without CAP_SYS_CHROOT root of a step does not leave its root."""
    text = f"""FROM scratch
COPY . /
SHELL ["/busybox", "sh", "-c"]
RUN /probe try /facts {" ".join(LEAVING.split())} own_chroot null_mode > /report
"""
    with contextlib.ExitStack() as held:
        context = make_world(probe, held).context(chroot, text)
        shutil.copy("/bin/busybox", context / "busybox")
        image = chroot.export(context, *CHROOT, "--cap-drop=SYS_CHROOT")
    wanted = dict.fromkeys([*LEAVING.split(), "own_chroot"], int(E.EPERM)) | {"null_mode": E.ENODEV}
    assert differences(read(image.read("report")), wanted) == {}


def test_no_signal_by_a_descriptor(answers: Answers) -> None:
    """F_SETOWN makes the kernel send signals: to nobody outside."""
    assert answers.felt == set()


def test_control(probe: Path, disk: Path) -> None:
    """Without Landlock, filters and a supervisor all that is hostile works: the probes are no blanks."""
    root = make_tree(disk / "root", {"proc": None, "sys": None, "dev": None})
    script = (
        "mount -t proc proc $1/proc && mount -t sysfs sys $1/sys && mount --rbind /dev $1/dev && "
        "exec chroot $1 /probe all /facts /p/report"
    )
    with contextlib.ExitStack() as held:
        world = make_world(probe, held)
        held.enter_context(others_terminals())
        world.fill(root)
        done = subprocess.run(
            ["setsid", "--wait", "unshare", "--mount", "sh", "-c", script, "sh", root],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert world.pending() == {signal.SIGUSR2}
    found = read((root / "p/report").read_bytes())
    found.pop("kill_hand")  # there is none
    found.pop("terminal_reused")  # what else uses terminals on this machine may come between
    wanted = dict.fromkeys(found, 0) | {name: code for name, code in CONTROL.items() if name in found}
    wanted["proc_trigger"] = 0 if os.path.exists("/proc/sysrq-trigger") else E.ENOENT
    wanted |= {name: E.ENOENT for name, path in HIDDEN.items() if not os.path.exists(path)}
    assert differences(found, wanted) == {}
