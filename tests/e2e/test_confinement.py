"""What a step can do to what is outside of it: the probes (S3), the RT rows of docs/reference, S23 to S25.

The probe (tests/support/probe.c) tries some 370 things inside a step; tests/support/confinement.py
says which of them work. Every mode has the same table: root, an ordinary user with subordinate
ids, and one without.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import io
import json
import os
import pty
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
import world
from confinement import (
    SINGLE_ID,
    TABLE,
    UNPRIVILEGED,
    X86,
    Report,
    compile_c,
    compile_probe,
    differences,
    is_hostile,
    mounts,
    probe_context,
    put_probe,
    read_report,
    summary,
)
from harness import Pybuild, Tree
from oci import read_image
from rootless import Installation, User, command, nothing_runs

import builder

pytestmark = pytest.mark.e2e

NONE = "--network=none"
CANARY = "pybuild-canary-" + hashlib.sha256(str(os.getpid()).encode()).hexdigest()[:16]
MODES = ("root", "rootless-ranges", "rootless-single")
# And root with a store that cannot be mounted with mapped ids: its steps have the machine's own ids.
EVERY_MODE = pytest.mark.parametrize("mode", [*MODES, "root-unmapped"], indirect=True)


@dataclass(frozen=True)
class Mode:
    """A way to run pybuild, on a store with busybox in it."""

    name: str
    pybuild: Pybuild
    user: User | None = None


@pytest.fixture(scope="module", autouse=True)
def unmappable() -> Iterator[Path]:
    """A folder on such a file system."""
    folder = tempfile.mkdtemp(prefix="pybuild-ramfs.", dir="/dev/shm")
    subprocess.run(["mount", "-t", "ramfs", "ramfs", folder], check=True)
    yield Path(folder)
    subprocess.run(["umount", folder], check=True)
    os.rmdir(folder)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mode]:
    """Each mode in turn; of a user nothing may be left running."""
    name: str = request.param
    if name == "root":
        yield Mode(name, Pybuild(request.getfixturevalue("shared_store"), tmp_path))
        return
    if name == "root-unmapped":
        unmapped = request.getfixturevalue("unmappable") / "store"
        if not unmapped.exists():
            subprocess.run(["cp", "-a", request.getfixturevalue("shared_store"), unmapped], check=True)
        yield Mode(name, Pybuild(unmapped, tmp_path))
        return
    place: Installation = request.getfixturevalue("installation")
    user = place.ranges if name.endswith("ranges") else place.single
    pybuild = place.pybuild(user, "work")
    if " busybox:latest " not in pybuild("images").out.replace("\n", " "):
        (pybuild.work / "busybox.tar").write_bytes(request.getfixturevalue("busybox").read_bytes())
        pybuild("load", pybuild.work / "busybox.tar").ok()
    yield Mode(name, pybuild, user)
    left = nothing_runs(user)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left, f"{user.name} still runs {left}"


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_probe(tmp_path_factory.mktemp("probe"))


class Reporter(Protocol):
    def __call__(self, mode: Mode, network: str = "none", user: str = "") -> Report: ...


@pytest.fixture(scope="session")
def report(probe: Path) -> Reporter:
    """What the probe reports from a default step; asked once of each kind of step."""
    known: dict[tuple[str, str, str], Report] = {}

    def ask(mode: Mode, network: str = "none", user: str = "") -> Report:
        what = (mode.name, network, user)
        if what not in known:
            lines = [f"USER {user}"] if user else []
            context = probe_context(mode.pybuild, probe, lines)
            image = mode.pybuild.export(context, f"--network={network}", "--no-cache")
            known[what] = read_report(image.read("p/report"))
        return known[what]

    return ask


def overrides(mode: Mode) -> dict[str, set[int]]:
    """What the table says otherwise in this mode."""
    out: dict[str, set[int]] = {}
    if mode.name == "rootless-single":
        out |= SINGLE_ID
    if mode.name == "root-unmapped":  # ramfs has no attributes
        out |= {"set_attribute": {errno.ENOTSUP}, "set_capability": {errno.ENOTSUP}}
        # Root there owns the machine's devices, which are mounted read-only, and some files, which are masked.
        out |= {"chmod_null": {errno.EROFS}, "touch_null": {errno.EROFS}, "write /proc/mtrr": {errno.EPERM}}
        out |= {"write /proc/slabinfo": {0}}
    if mode.user is None and _own_capabilities() >> 24 & 1:
        # What root with CAP_SYS_RESOURCE has set is the least there can be; what anybody else has set, is not.
        out["oom_less"] = {errno.EACCES}
    return out


def wanted_summary(mode: Mode) -> dict[str, Any]:
    out = summary()
    if mode.name == "rootless-single":
        # The kernel lets nobody leave a group who has but one id. What she is in besides has no name here.
        out["Groups"] = "65534 0"
    return out


def wanted_mounts(mode: Mode) -> dict[str, str]:
    out = mounts()
    if mode.name == "root-unmapped":  # what only the machine's root may read is masked, too
        names = ("kpagecgroup", "kpagecount", "kpageflags", "pagetypeinfo", "slabinfo", "vmallocinfo")
        out |= {f"/proc/{name}": "device" for name in names if Path("/proc", name).exists()}
        out |= {"/sys/kernel/slab": out["/proc/acpi"]} if Path("/sys/kernel/slab").exists() else {}
    return out


def _own_capabilities() -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split("CapEff:")[1].split()[0], 16)


def look(mode: Mode, script: str, *options: str, lines: str = "", files: Tree | None = None) -> str:
    """What *script* prints in a step of busybox, after *lines*."""
    text = f"FROM busybox\n{lines}\nCOPY look /look\nRUN sh /look > /out 2>&1\n"
    image = mode.pybuild.build(text, {"look": script, **(files or {})}, NONE, "--no-cache", *options)
    return image.read("out").decode("utf-8", "replace")


def printed(progress: str) -> list[str]:
    """The lines that steps printed, as plain progress has them."""
    return re.findall(r"^#\d+ \d+\.\d+ (.*)$", progress, re.MULTILINE)


def host_values() -> dict[str, str]:
    """What an escape would change: settings of this machine, and some of its files."""
    paths = [
        *(f"/proc/sys/kernel/{name}" for name in ("core_pattern", "modprobe", "hotplug", "panic", "hostname")),
        *(f"/proc/sys/{name}" for name in ("vm/overcommit_memory", "fs/file-max", "net/core/somaxconn")),
        "/sys/kernel/uevent_helper", "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/fs/cgroup/memory/release_agent", "/etc/passwd", "/etc/hosts", "/etc/resolv.conf",
    ]  # fmt: skip
    return {path: Path(path).read_text() for path in paths if os.path.exists(path)}


def with_probe(mode: Mode, probe: Path, text: str, files: Tree | None = None) -> Path:
    """A context of *text* that has the probe."""
    context = mode.pybuild.context(text, files)
    put_probe(context, probe)
    return context


# -- the table -----------------------------------------------------------------------------


@EVERY_MODE
@pytest.mark.parametrize("network", ["none", "default"])
def test_probes(mode: Mode, network: str, report: Reporter) -> None:
    """S3: each probe gets the answer that the table has for it."""
    answers = report(mode, network).answers
    assert sum(map(is_hostile, answers)) >= 120
    assert differences(answers, overrides(mode)) == {}


@pytest.mark.parametrize("mode", ["root"], indirect=True)
def test_probes_of_a_user(mode: Mode, report: Reporter) -> None:
    """USER: the same, and no privileges."""
    answers = report(mode, user="1000:1000").answers
    assert differences(answers, overrides(mode) | UNPRIVILEGED) == {}


@EVERY_MODE
@pytest.mark.parametrize("network", ["none", "default"])
def test_report(mode: Mode, network: str, report: Reporter) -> None:
    """S4: who a step is, what it sees, what it has been given."""
    assert report(mode, network).summary() == wanted_summary(mode)


@EVERY_MODE
@pytest.mark.parametrize("network", ["none", "default"])
def test_mount_table(mode: Mode, network: str, report: Reporter) -> None:
    """Nothing but what is meant to be there, and no path of this machine."""
    seen = report(mode, network)
    assert seen.mounts() == wanted_mounts(mode)
    text = json.dumps(seen.data["mounts"])
    places = {mode.pybuild.store, mode.pybuild.work, Path.cwd(), Path.home(), Path(builder.__file__).parent}
    assert not [str(place) for place in places if str(place) in text]


def test_namespaces_of_its_own(mode: Mode, report: Reporter) -> None:
    """All but the one of time, which has nothing in it that is not everybody's."""
    seen = report(mode).data["namespaces"]
    outside = {name: os.readlink(f"/proc/self/ns/{name}") for name in seen}
    shared = {name for name in seen if seen[name] == outside[name]}
    assert shared == {"time", "time_for_children"}


def test_limits_of_a_step(mode: Mode, report: Reporter) -> None:
    """No limit is above that of who builds; a step goes before its builder when memory runs out."""
    import resource

    seen = report(mode).data
    for name, (_soft, hard) in seen["rlimits"].items():
        if number := getattr(resource, f"RLIMIT_{name}", None):
            own = resource.getrlimit(number)[1]
            assert own == resource.RLIM_INFINITY or 0 <= hard <= own, name
    own_score = int(Path("/proc/self/oom_score_adj").read_text())
    assert own_score >= 0, "else oom_minus of the table means nothing"
    assert seen["oom_score_adj"] >= own_score + 500


def test_ids_of_a_step(mode: Mode, report: Reporter) -> None:
    """Root's steps have ids that nobody has; a user's have hers, and never another's."""
    seen = report(mode).data
    for kind in ("uid_map", "gid_map"):
        rows = [tuple(map(int, row.split())) for row in seen[kind]]
        if mode.name == "root":
            ((_, outside, count),) = rows
            assert outside >= 1 << 16 and outside + count < 1 << 32
        else:
            assert sum(count for _, _, count in rows) == (65537 if mode.name.endswith("ranges") else 1)


@EVERY_MODE
def test_standard_streams_by_name(mode: Mode) -> None:
    """A step may open /dev/stdout and /dev/stderr, as those of docker do, also as a user."""
    script = "echo one > /dev/stdout && echo two > /dev/stderr && echo three | tee /dev/stderr > /dev/null"
    other = "" if mode.name == "rootless-single" else f"USER 1\nRUN {script}\n"
    context = mode.pybuild.context(f"FROM busybox\nRUN {script}\n{other}")
    said = mode.pybuild(NONE, "--no-cache", context).ok().err
    times = 2 if other else 1
    assert [said.count(f" {word}\n") for word in ("one", "two", "three")] == [times] * 3


# -- positive controls ---------------------------------------------------------------------

# What real root can do in namespaces that are not user namespaces; the filter's answer is never among these.
ROOT_ONLY: dict[str, set[int]] = {
    "swap_on": {errno.ENOENT},
    "swap_off": {errno.ENOENT},
    "quota": {errno.ENOTBLK},
    "bpf_next_id": {0, errno.ENOENT},
    **{
        name: {0}
        for name in (
            "mount_devtmpfs mount_debugfs mount_securityfs mount_bpf mount_shared map_files process_madvise "
            "nice_up sched_fifo sched_deadline io_realtime bpf_map bpf_program accounting set_time adjust_time "
            "adjust_clock kernel_log hang_up open_by_handle set_trusted"
        ).split()
    },
    **{name: {0} for name in ("node null", "node kmsg", "read /proc/kmsg", "open /dev/kmsg")},
}
# What is not to be found from a root that was entered by chroot alone.
FOUND_BY_CHROOT = ("chroot_escape", "proc_root_up", "proc_cwd_up")


def unsandboxed(probe: Path, root: Path, *arguments: str, user: bool, pivot: bool = True) -> Report:
    """The probe in a root and namespaces of its own, without any of the step's confinement."""
    put_probe(root, probe)
    for name in ("etc", "proc", "sys", "dev", "old"):
        (root / name).mkdir()
    for name in ("hosts", "resolv.conf"):
        (root / "etc" / name).write_text("x\n")
    (root / "busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "busybox").chmod(0o755)
    enter = (
        "cd $1 && pivot_root . old && /busybox umount -l /old && shift && exec /probe"
        if pivot
        else "exec chroot"
    )
    script = (
        "mount --bind $1 $1 && mount -t proc proc $1/proc && mount -t sysfs sys $1/sys && mount --rbind /dev $1/dev && "
        + enter + (' "$@"' if pivot else ' "$1" /probe "$2" "$3" "$4" "$5"')
    )  # fmt: skip
    spaces = ["--mount", "--pid", "--fork", "--net", "--uts", "--ipc", "--cgroup", "--kill-child"]
    done = subprocess.run(
        ["setsid", "--wait", "unshare", *(["--user", "--map-root-user"] if user else []), *spaces,
         "sh", "-c", script, "sh", root, *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return read_report(done.stdout)


def test_control_in_a_user_namespace(probe: Path, tmp_path: Path) -> None:
    """Most of what a step is refused works without its confinement, with root of a user namespace alone."""
    answers = unsandboxed(probe, tmp_path / "root", "report", user=True).answers
    works = {name for name, answer in answers.items() if is_hostile(name) and answer == 0}
    must = (
        "mount_tmpfs mount_proc mount_sysfs mount_bind mount_cgroup fs_open open_tree_clone move_mount mount_setattr "
        "pivot_root unshare_user unshare_mnt unshare_net clone_user clone_pid clone3_user setns_mnt setns_net "
        "pidfd_getfd kcmp cap_sys_admin personality_no_randomize keyctl_join add_key perf_event user_fault "
        "uring_setup set_hostname socket_vsock socket_vsock_upper link_down limit_core unlink_hosts "
        "truncate_hosts"
    ).split()
    if X86:
        must += "old_unshare old_mount old_keyctl old_socketcall_vsock old_socket_vsock old_uring".split()
    assert not set(must) - works
    assert len(works) >= 100


def test_control_as_root(probe: Path, tmp_path: Path) -> None:
    """What needs the machine's own root works for it: devices, programs in the kernel, the clock's right."""
    answers = unsandboxed(probe, tmp_path / "root", "try", *ROOT_ONLY, user=False).answers
    wrong = {name: answer for name, answer in answers.items() if answer not in ROOT_ONLY[name]}
    assert wrong == {} and set(answers) == set(ROOT_ONLY)
    assert all(is_hostile(name) for name in answers)


def test_control_of_searches(probe: Path, tmp_path: Path) -> None:
    """The searches find what is there to be found: a chroot is left, a neighbour is seen."""
    found = unsandboxed(probe, tmp_path / "root", "try", *FOUND_BY_CHROOT, user=True, pivot=False).answers
    assert found == dict.fromkeys(FOUND_BY_CHROOT, 0)
    neighbours = ("kill_all", "kill_others", "foreign_processes")
    put_probe(tmp_path / "two", probe)
    script = f"cd {tmp_path}/two && chroot . /probe try {' '.join(neighbours)}"
    outside = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c",
         f"mkdir -p {tmp_path}/two/proc && mount -t proc proc {tmp_path}/two/proc; sleep 100 & {script}; exit"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert read_report(outside.stdout).answers == dict.fromkeys(neighbours, 0)


def test_table_and_probe_agree(probe: Path, tmp_path: Path) -> None:
    """The probe knows every name of the table: none is left unasked by a slip of the pen."""
    answers = unsandboxed(probe, tmp_path / "root", "report", user=True).answers
    assert not set(TABLE) - set(answers)


# -- RT: starting a step -------------------------------------------------------------------

CLIMB = (
    "echo ran; pwd -P; n=0; while [ $n -lt 9 ]; do cd ..; n=$((n+1)); done; "
    "test -e mark && test -e /mark && test . -ef / && echo inside; true"
)


def test_RT_01_working_directory(mode: Mode) -> None:
    """CVE-2024-21626: no WORKDIR leads out by a descriptor that was left open, nor does a link to one."""
    numbers = [*range(3, 17), 20, 40] if mode.name == "root" else range(3, 8)
    places = [f"/proc/self/fd/{number}" for number in numbers]
    places += ["/proc/thread-self/fd/4", "/proc/1/fd/5", "/link", "/proc/self/cwd", "/proc/1/root/.."]
    for place in places:
        lines = f"COPY mark /mark\nRUN ln -s /proc/self/fd/4 /link\nWORKDIR {place}\nRUN {CLIMB}\n"
        done = mode.pybuild(NONE, "--no-cache", mode.pybuild.context("FROM busybox\n" + lines, {"mark": ""}))
        said = printed(done.err)
        if said:
            assert said[0] == "ran" and said[1].startswith("/") and said[2:] == ["inside"], f"{place}: {said}"
        else:
            assert done.failed().err.count("error: ") == 1, place
    twin = f"COPY mark /mark\nRUN mkdir -p /real/in && ln -s real /link\nWORKDIR /link/in\nRUN {CLIMB}\n"
    done = mode.pybuild(NONE, "--no-cache", mode.pybuild.context("FROM busybox\n" + twin, {"mark": ""})).ok()
    assert printed(done.err) == ["ran", "/real/in", "inside"]


@pytest.fixture(scope="session")
def loader(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A program that an image can have in the place of the C library's loader (loader.c)."""
    options = ["-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fPIE", "-static-pie"]
    return compile_c("loader.c", tmp_path_factory.mktemp("loader") / "loader", *options).read_bytes()


def _interpreter_of(program: str) -> str:
    """What an ELF program names as its loader."""
    said = subprocess.check_output(["readelf", "--program-headers", program], text=True)
    return said.split("Requesting program interpreter: ")[1].split("]")[0]


def _digest(*places: Path) -> str:
    """Content, mode and owner of every file below *places*."""
    out = hashlib.sha256()
    for place in places:
        for path in sorted([place, *place.rglob("*")]):
            if path.is_file() and "__pycache__" not in path.parts:
                found = path.stat()
                out.update(repr((str(path), found.st_mode, found.st_uid, found.st_gid)).encode())
                out.update(path.read_bytes())
    return out.hexdigest()


@EVERY_MODE
@pytest.mark.parametrize("owned", [False, True], ids=["system", "owned"])
def test_RT_02_interpreter_of_the_builder(mode: Mode, owned: bool, loader: bytes) -> None:
    """CVE-2019-5736: a step that becomes the builder's own interpreter cannot change it.

    Nor that of a user who has an interpreter of her own, as those of pyenv and uv are.
    """
    pybuild = mode.pybuild
    interpreter = Path(os.path.realpath(sys.executable if mode.user is None else "/usr/bin/python3"))
    if owned:
        copy = pybuild.work / "python3"
        copy.write_bytes(Path("/usr/bin/python3").read_bytes())
        copy.chmod(0o755)
        interpreter = copy
        if mode.user is not None:
            os.chown(copy, mode.user.uid, mode.user.gid)
            pybuild = dataclasses.replace(pybuild, python=str(copy))  # type: ignore[call-arg]
    files: Tree = {"lib": {"loader": loader}, "run": "#!/proc/self/exe\n"}
    place = _interpreter_of(str(interpreter))
    before = _digest(interpreter, Path(builder.__file__).parent)
    answers = []
    for line in (
        'RUN ["/proc/self/exe"]',
        'RUN ["/run"]',
        'RUN ["/proc/1/exe"]',
        'USER 1\nRUN ["/proc/self/exe"]',
    ):
        if line.startswith("USER") and mode.name == "rootless-single":
            continue
        text = f"FROM busybox\nCOPY --chmod=755 lib/loader {place}\nCOPY --chmod=755 run /run\n{line}\n"
        context = pybuild.context(text, files)
        env = {"PYTHONHOME": "/usr"} if owned and mode.user else None
        done = pybuild(NONE, "--no-cache", context, env=env)
        assert "loaded: " in done.err if done.code == 0 else done.failed(), done.err
        answers += re.findall(r"loaded: \S* (.*)", done.err)
    # The numbers are errnos: of opening for writing, chmod, fchmod and chown, which with one id does nothing.
    tried = [answer.split()[: 3 if mode.name == "rootless-single" else 4] for answer in answers]
    assert not [answer for answer in tried if "0" in answer]
    assert before == _digest(interpreter, Path(builder.__file__).parent)


def test_RT_02_control(loader: bytes, tmp_path: Path) -> None:
    """The loader does find a program that it may change."""
    (tmp_path / "loader").write_bytes(loader)
    (tmp_path / "loader").chmod(0o755)
    said = subprocess.check_output([tmp_path / "loader"], text=True)
    assert said in {f"loaded: {tmp_path}/loader {busy} 0 0 0\n" for busy in (0, errno.ETXTBSY)}


@EVERY_MODE
def test_RT_03_masks_are_ours(mode: Mode, probe: Path) -> None:
    """CVE-2025-31133: what an image has for /dev/null masks nothing and receives nothing."""
    targets = {"null": "core_pattern", "zero": "modprobe", "tty": "hotplug", "full": "panic"}
    links: Tree = {name: f"-> /proc/sys/kernel/{target}" for name, target in targets.items()}
    before = host_values()
    text = (
        "FROM scratch\nCOPY dev /dev\nCOPY probe this-is-for-probes /\nCOPY p /p\n"
        'RUN ["/probe", "report", "/p/report"]\n'
    )
    context = with_probe(mode, probe, text, {"dev": links})
    seen = read_report(mode.pybuild.export(context, NONE, "--no-cache").read("p/report"))
    assert seen.mounts() == wanted_mounts(mode) and differences(seen.answers, overrides(mode)) == {}
    assert host_values() == before


@pytest.mark.parametrize("target", ["/proc", "/proc/self", "/proc/sys/kernel", "/proc/../proc/1"])
def test_RT_05_mounts_over_proc(mode: Mode, target: str) -> None:
    """CVE-2025-52881: nothing is mounted over what the step's own files of the kernel are."""
    for kind in ("cache", "tmpfs", "bind"):
        line = f"RUN --mount=type={kind},target={target} true"
        mode.pybuild.refuse(f"FROM busybox\n{line}\n", None, NONE)
    twin = "RUN --mount=type=tmpfs,target=/process touch /process/x"
    mode.pybuild(NONE, mode.pybuild.context(f"FROM busybox\n{twin}\n")).ok()


def test_RT_03_mounts_over_dev_and_sys(mode: Mode, probe: Path) -> None:
    """A cache over /dev or /sys, filled with links by the step before, unmasks nothing."""
    text = (
        "FROM busybox\nRUN --mount=type=cache,id=x,target=/c rm -rf /c/*; for n in null zero kcore pts; do "
        "ln -s /proc/sys/kernel/core_pattern /c/$n; done\n"
        "COPY probe this-is-for-probes /\nCOPY p /p\n"
        "RUN --mount=type=cache,id=x,target=/{} /probe try 'read /proc/keys' 'read /proc/timer_list' "
        "'read /proc/interrupts' 'write /proc/sys/kernel/core_pattern' 'read /sys/firmware' > /p/report\n"
    )
    for place in ("dev", "sys"):
        context = with_probe(mode, probe, text.replace("{}", place))
        answers = read_report(mode.pybuild.export(context, NONE, "--no-cache").read("p/report")).answers
        assert len(answers) == 5 and differences(answers, {}) == dict.fromkeys(TABLE, "not asked")


def test_RT_04_console_and_terminals(mode: Mode) -> None:
    """CVE-2025-52565: there is no console, and no terminal is bound over what an image has there."""
    files: Tree = {
        "dev": {"console": "-> /etc/passwd", "pts": {"0": "-> /etc/passwd"}, "ptmx": "-> /etc/passwd"}
    }
    said = look(mode, "ls /dev/console; ls /dev/pts; readlink /dev/ptmx", lines="COPY dev /dev", files=files)
    assert said.splitlines() == ["ls: /dev/console: No such file or directory", "ptmx", "pts/ptmx"]


@pytest.mark.parametrize("place", ["proc", "sys", "dev"])
@pytest.mark.parametrize("kind", ["-> /etc", "-> ../../../../etc", "-> /tmp", "-> self", "a file"])
def test_RT_05_RT_06_where_the_kernels_files_go(
    pybuild: Pybuild, place: str, kind: str, tmp_path: Path
) -> None:
    """CVE-2026-41579: only an ordinary directory of the image is mounted on; nothing is made elsewhere."""
    before = sorted(os.listdir("/etc")), sorted(os.listdir("/tmp"))
    context = pybuild.context(
        f"FROM busybox AS b\nFROM scratch\nCOPY --from=b /bin /bin\nCOPY {place} /{place}\nRUN true\n"
    )
    if kind.startswith("-> "):
        (context / place).symlink_to(kind[3:])
    else:
        (context / place).write_text(kind)
    text = (context / "Dockerfile").read_text()
    # COPY follows a link that is its source: a folder that holds it is copied instead.
    (context / "holder").mkdir()
    (context / place).rename(context / "holder" / place)
    (context / "Dockerfile").write_text(text.replace(f"COPY {place} /{place}", "COPY holder /"))
    said = pybuild(NONE, context).failed().err
    assert f"/{place} in the image" in said
    assert (sorted(os.listdir("/etc")), sorted(os.listdir("/tmp"))) == before


def test_RT_05_RT_06_twin(mode: Mode) -> None:
    """Folders with something in them are mounted over, and keep it."""
    files: Tree = {"holder": {name: {"kept": "x"} for name in ("proc", "sys", "dev")}}
    text = (
        "FROM busybox\nCOPY holder /\nRUN test ! -e /dev/kept && test ! -e /proc/kept && test -e /dev/null\n"
    )
    tree = mode.pybuild.build(text, files, NONE).tree()
    assert [tree[f"{name}/kept"] for name in ("proc", "sys", "dev")] == ["x"] * 3


@pytest.fixture
def outside(mode: Mode) -> Iterator[Path]:
    """A folder of this machine that every step could write to, if it came to see it."""
    folder = Path(tempfile.mkdtemp(prefix="pybuild-outside.", dir="/tmp"))
    folder.chmod(0o777)
    (folder / "OUTSIDE").write_text("x")
    yield folder
    subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)


def test_RT_07_SRC_03_swap_races(mode: Mode, probe: Path, outside: Path) -> None:
    """CVE-2024-45310, CVE-2024-11218: a step swaps what another's mounts lie on and come from.

    A folder of a shared cache is exchanged with a link that leads to a folder of the host, all
    the time; the same path is in the image and in the cache. No mount fails, and none leads out.
    """
    cache = "--mount=type=cache,id=race,from=seed,source=/seed"
    inside = f"mkdir -p /seed/dir /seed{outside} {outside} && ln -s {outside} /seed/link"
    victims = "".join(
        f"RUN {cache},target=/c --mount=type=cache,id=n{n},target=/c/dir/in{n} "
        f"--mount=type=cache,id=race,from=seed,source=/seed/dir,target=/x touch /x/BREAKOUT; ls /x\n"
        for n in range(8)
    )
    text = (
        f"FROM busybox AS seed\nRUN {inside} && touch /seed/dir/real /seed{outside}/decoy\n"
        f"FROM busybox AS swapper\nCOPY probe /probe\n"
        f"RUN {cache},target=/c rm -f /c/stop; /probe swap /c/dir /c/link 5 /c/stop > /swaps\n"
        f"FROM busybox AS victim\nRUN mkdir -p {outside}\n{victims}RUN {cache},target=/c touch /c/stop\n"
        "FROM scratch\nCOPY --from=swapper /swaps /swaps\nCOPY --from=victim /etc/group /group\n"
    )
    context = with_probe(mode, probe, text)
    archive = mode.pybuild.work / "out.tar"
    done = mode.pybuild(NONE, "--no-cache", "--jobs=4", "-o", f"type=oci,dest={archive}", context).ok()
    swapped = int(read_image(archive).read("swaps").split()[1].rstrip(b","))
    assert swapped >= 5000
    seen = set(printed(done.err))
    assert {"real", "decoy"} & seen and "OUTSIDE" not in seen
    assert os.listdir(outside) == ["OUTSIDE"]


# -- RT: what a step finds -----------------------------------------------------------------


def test_RT_08_RT_10_nothing_to_write_to(mode: Mode, probe: Path) -> None:
    """CVE-2023-25809: of the kernel's files none opens for writing but those of the step's own processes."""
    before = host_values()
    text = (
        "FROM busybox\nCOPY probe this-is-for-probes /\nCOPY p /p\n"
        "RUN touch /p/mine && /probe walk /proc /proc/sys /proc/bus /proc/fs /proc/irq /sys /sys/fs/cgroup /p > /out\n"
    )
    image = mode.pybuild.export(with_probe(mode, probe, text), NONE, "--no-cache")
    # Who may open those of /proc/pressure is told when there is some: everybody may.
    found = [
        line for line in image.read("out").decode().splitlines() if not line.startswith("/proc/pressure/")
    ]
    assert found == ["/p/mine"]
    assert host_values() == before


def test_RT_09_release_agent(mode: Mode, report: Reporter) -> None:
    """CVE-2022-0492: no cgroup hierarchy can be mounted, also not in namespaces of the step's making."""
    answers = report(mode).answers
    names = "mount_cgroup mount_cgroup2 unshare_user unshare_cgroup clone_user clone_cgroup clone_all".split()
    assert {answers[name] for name in names} == {errno.EPERM}
    script = "unshare -Urm true && echo ESCAPED; mount -t cgroup -o memory x /mnt && echo ESCAPED; cat /proc/self/cgroup"
    said = look(mode, f"mkdir -p /mnt; {script}")
    assert "ESCAPED" not in said and said.endswith(":/\n")


def test_RT_11_counters_of_others(mode: Mode, report: Reporter) -> None:
    """Interrupts, powercap and throttling tell nothing; what a step may know, it does."""
    answers = report(mode).answers
    for path in (
        "/proc/interrupts",
        "/proc/timer_list",
        "/sys/devices/virtual/powercap",
        "/sys/devices/system/cpu/cpu0/thermal_throttle",
    ):
        assert answers[f"read {path}"] in (errno.ENODATA, errno.ENOENT, errno.EACCES), path
    assert answers["may read /proc/meminfo"] == answers["may read /sys/devices/system/cpu"] == 0


def _waiting_input(terminal: int) -> int:
    """How many bytes somebody who reads *terminal* would get."""
    return int(struct.unpack("i", fcntl.ioctl(terminal, termios.FIONREAD, b"\0" * 4))[0])


def test_RT_12_terminal_of_the_caller(mode: Mode, probe: Path) -> None:
    """CVE-2017-5226: a step types nothing into the terminal that pybuild was started from."""
    text = (
        "FROM busybox\nCOPY probe this-is-for-probes /\nCOPY p /p\n"
        "RUN /probe try tiocsti tioclinux tiocsctty tty > /out; readlink /proc/self/fd/0 >> /out\n"
    )
    archive = mode.pybuild.work / "out.tar"
    words, env = command(
        mode.pybuild, NONE, "--no-cache", "-o", f"type=oci,dest={archive}", with_probe(mode, probe, text)
    )
    controller, terminal = pty.openpty()
    heard = bytearray()

    def listen() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(controller, 4096):
                heard.extend(data)

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        done = subprocess.run(
            ["setsid", "--ctty", "--wait", *words],
            env=env, cwd=mode.pybuild.work, stdin=terminal, stdout=terminal, stderr=terminal, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, heard.decode(errors="replace")
        assert _waiting_input(terminal) == 0
        for byte in b"x\n":  # the kernel would let somebody do it
            fcntl.ioctl(terminal, termios.TIOCSTI, bytes([byte]))
        assert _waiting_input(terminal) == 2
    finally:
        os.close(terminal)
        listener.join(10)
        os.close(controller)
    answers, _, stdin = read_image(archive).read("out").decode().partition("}}")
    assert stdin.strip() == "/dev/null"
    assert differences(read_report(answers + "}}").answers, {}).keys() == TABLE.keys() - set(
        "tiocsti tioclinux tiocsctty tty".split()
    )


def test_RT_13_socket_families(mode: Mode, report: Reporter) -> None:
    """CVE-2026-31431: no AF_ALG and no AF_VSOCK, whatever is in the upper half, by either ABI."""
    answers = report(mode).answers
    refused = "socket_alg socket_alg_upper socket_vsock socket_vsock_upper socket_vsock_top".split()
    allowed = "socket_unix socket_inet socket_inet6 socket_netlink socket_packet".split()
    if X86:
        refused += "old_socket_alg old_socket_vsock old_socketcall_alg old_socketcall_vsock".split()
        allowed += ["old_socket_unix"]
    assert {name: answers[name] for name in refused} == dict.fromkeys(refused, errno.EPERM)
    assert {name: answers[name] for name in allowed} == dict.fromkeys(allowed, 0)


def test_RT_14_keys(mode: Mode, report: Reporter) -> None:
    """No keyring can be asked, joined or filled (the caller's key: test_samples)."""
    names = "keyctl_id keyctl_join keyctl_read keyctl_search keyctl_persistent add_key request_key".split()
    assert {report(mode).answers[name] for name in names} == {errno.EPERM}


FILE_CAPABILITIES: dict[str, tuple[str, str, str, str]] = {
    # permitted, inheritable, effective; what CapPrm a user has who executes the file ("" if none may)
    "inheritable": ("0", "00000000a80425fb", "0", "0" * 16),
    "inheritable-all": ("0", "000001ffffffffff", "0", "0" * 16),
    "sys-admin": ("0000000000200000", "0", "1", ""),
    "twin": ("0000000000000400", "0", "1", "0000000000000400"),
    "twin-none": ("0", "0", "0", "0" * 16),
}


@pytest.mark.parametrize("case", FILE_CAPABILITIES)
def test_RT_15_file_capabilities(pybuild: Pybuild, case: str, probe: Path) -> None:
    """CVE-2022-24769: nothing is inherited; a file gives what the step has, and no more."""
    permitted, inheritable, effective, wanted = FILE_CAPABILITIES[case]
    text = (
        "FROM busybox\nCOPY probe /probe\nRUN cp /probe /file && chmod 755 /file && "
        f"/probe fcap /file {permitted} {inheritable} {effective}\nUSER 1000\n"
        "RUN /file caps || echo refused\n"
    )
    done = pybuild(NONE, "--no-cache", with_probe(Mode("root", pybuild), probe, text)).ok()
    said = printed(done.err)[-1]
    if not wanted:
        assert said == "refused"
        return
    got = dict(pair.split("=") for pair in said.split())
    assert got["CapInh"] == got["CapAmb"] == "0" * 16 and got["CapPrm"] == wanted


def test_RT_16_groups(mode: Mode, probe: Path) -> None:
    """CVE-2022-2990: the image's groups, the primary one among them; none of the caller's."""
    if mode.name == "rootless-single":
        assert set(look(mode, "id -G").split()) <= {"0", "65534"}
        return
    lines = (
        "RUN echo 'bob:x:10:20::/:/bin/sh' >> /etc/passwd && printf 'wheel:x:30:bob\\n' >> /etc/group && "
        "echo secret > /s && chown 0:20 /s && chmod 604 /s && cp /probe /as-40 && chgrp 40 /as-40 && chmod 2755 /as-40"
    )
    text = "FROM busybox\nCOPY probe /probe\n{0}\nUSER {1}\nRUN id -G; /probe read /s; /as-40 read /s\n"
    # A group that may not read is no group to be left by running a program that has another one.
    for user, wanted in (("bob", ["20 30", "denied", "denied"]), ("11:21", ["21", "read", "read"])):
        done = mode.pybuild(NONE, "--no-cache", with_probe(mode, probe, text.format(lines, user))).ok()
        assert printed(done.err) == wanted
    assert look(mode, "id -G").split() == ["0"]


BAD_USERS = (
    "2147483647 2147483648 4294967295 4294967296 99999999999 18446744073709551616 -1 +0 0x0 1:4294967296 1:-1"
)


@pytest.mark.parametrize("user", BAD_USERS.split())
def test_RT_17_numbers_of_users(pybuild: Pybuild, user: str) -> None:
    """CVE-2024-40635: a number that is none wraps to nothing, and is not looked up as a name."""
    name, _, group = user.partition(":")
    passwd = f"RUN echo '{name}:x:0:0::/:/bin/sh' >> /etc/passwd && echo '{group or name}:x:0:' >> /etc/group"
    if user == "0x0":  # not a number at all
        assert (
            pybuild.build(f"FROM busybox\n{passwd}\nUSER {user}\nRUN id -u > /o\n", None, NONE).read("o")
            == b"0\n"
        )
        pybuild.refuse(f"FROM busybox\nUSER {user}\nRUN true\n", None, NONE)
        return
    said = pybuild.refuse(f"FROM busybox\n{passwd}\nUSER {user}\nRUN id -u; echo RAN\n", None, NONE)
    assert not [line for line in printed(said) if line == "RAN"]


def test_RT_17_largest_user(pybuild: Pybuild) -> None:
    text = "FROM busybox\nRUN touch /o && chmod 666 /o\nUSER 2147483646:2147483646\nRUN id -u > /o; id -g >> /o\n"
    assert pybuild.build(text, None, NONE).read("o") == b"2147483646\n2147483646\n"


def measured(
    pybuild: Pybuild, *args: str | Path, env: dict[str, str] | None = None
) -> tuple[int, str, float, int]:
    """Run pybuild: its exit code, progress, seconds, and the most memory it or a child had, in bytes."""
    words, environment = command(pybuild, *args, env=env)
    # By a small process: what this large one is counts for its own children, too.
    code = (
        "import os, subprocess, sys\nrun = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
        "_pid, status, usage = os.wait4(run.pid, 0)\nprint(os.waitstatus_to_exitcode(status), usage.ru_maxrss)"
    )
    started = time.monotonic()
    with tempfile.TemporaryFile() as said:
        done = subprocess.run(
            [sys.executable, "-c", code, *words], env=environment, cwd=pybuild.work,
            stdout=subprocess.PIPE, stderr=said, text=True, check=True,
        )  # fmt: skip
        said.seek(0)
        text = said.read().decode("utf-8", "backslashreplace")
    status, peak = map(int, done.stdout.split())
    return status, text, time.monotonic() - started, peak << 10


HUGE_DATABASES = {
    "sparse": "truncate -s 5G /etc/{}",
    "just-too-large": "truncate -s 11M /etc/{}",
    "zeros": "rm /etc/{0}; ln -s /dev/zero /etc/{0}",
    "of-the-host": "rm /etc/{0}; ln -s ../../../../../etc/shadow /etc/{0}",
}


@pytest.mark.parametrize("case", HUGE_DATABASES)
@pytest.mark.parametrize("file", ["passwd", "group"])
def test_RT_18_databases_of_users(pybuild: Pybuild, case: str, file: str) -> None:
    """CVE-2026-47262: they are read as far as 10 MiB, when they are files of the image."""
    spoil = HUGE_DATABASES[case].format(file)
    user = "someone" if file == "passwd" else "1:some"
    for line in (f"USER {user}\nRUN true", f"COPY --chown={user} a /a"):
        context = pybuild.context(f"FROM busybox\nRUN {spoil}\n{line}\n", {"a": "1"})
        code, said, seconds, memory = measured(pybuild, NONE, context)
        assert code == 1 and said.count("error: ") == 1 and "Traceback" not in said, said
        assert seconds < 10 and memory < 150 << 20


def test_RT_18_twin(pybuild: Pybuild) -> None:
    """Half a million groups, as large as may be, are read soon."""
    text = (
        "FROM busybox\nRUN seq 1 500000 | sed 's/.*/g&:x:&:/' >> /etc/group && tail -1 /etc/group\n"
        "COPY --chown=1:g499999 a /a\nUSER 1:g499999\nRUN id -g\n"
    )
    code, said, seconds, memory = measured(pybuild, NONE, pybuild.context(text, {"a": "1"}))
    assert code == 0 and printed(said)[-1] == "499999", said
    assert seconds < 20 and memory < 500 << 20


def test_RT_19_environment_of_the_caller(mode: Mode) -> None:
    """CVE-2021-3602: no process of the step tells what the builder's environment or command line is."""
    script = (
        "for p in /proc/[0-9]*; do cat $p/environ $p/cmdline $p/maps $p/mountinfo $p/status $p/comm; ls -l $p $p/fd $p/cwd $p/root $p/exe; done; "
        "cat /proc/cmdline /proc/mounts /proc/locks; env"
    )
    context = mode.pybuild.context(
        f"FROM busybox\nENV of_the_image=twin-{CANARY[8:]}\nCOPY look /look\nRUN sh /look > /out 2>&1\n",
        {"look": script},
    )
    archive = mode.pybuild.work / "out.tar"
    environment = {"REGISTRY_PASSWORD": CANARY, "PYBUILD_CANARY": CANARY, "DOCKER_AUTH_CONFIG": CANARY}
    mode.pybuild(
        NONE,
        "--no-cache",
        "--label",
        f"x={CANARY}",
        "-o",
        f"type=oci,dest={archive}",
        context,
        env=environment,
    ).ok()
    said = read_image(archive).read("out").decode("utf-8", "replace")
    assert f"twin-{CANARY[8:]}" in said and "VmPeak" in said
    for word in (CANARY, "REGISTRY_PASSWORD", "PYBUILD_ROOT", "_PYBUILD", "python", str(mode.pybuild.store)):
        assert word not in said, word


# -- RT: what a Dockerfile or an image asks for --------------------------------------------


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server of this machine on an abstract socket, which has no file whose mode could protect it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind("\0pybuild-probe-canary")
        server.listen(8)
        server.settimeout(0.2)
        yield server


def test_RT_20_abstract_sockets(mode: Mode, probe: Path, listener: socket.socket) -> None:
    """CVE-2020-15257: only a step on the host's network, which the command line gave it, hears them."""
    text = (
        "FROM busybox\nCOPY probe this-is-for-probes /\nCOPY p /p\nRUN {}/probe try abstract_socket > /out\n"
    )
    for option, line, wanted in (
        (NONE, "", errno.ECONNREFUSED),
        ("--network=default", "", errno.ECONNREFUSED),
        ("--allow=network.host", "--network=host ", 0),
    ):
        context = with_probe(mode, probe, text.format(line))
        image = mode.pybuild.export(context, option, "--no-cache")
        assert read_report(image.read("out")).answers == {"abstract_socket": wanted}
        if wanted:
            with pytest.raises(TimeoutError):
                listener.accept()
        else:
            listener.accept()[0].close()


@pytest.mark.parametrize("mode", MODES[1:], indirect=True)
def test_RT_20_without_a_carrier(mode: Mode, probe: Path, listener: socket.socket) -> None:
    """Where nothing can connect a user's namespace, the host's network is still not given unasked."""
    text = (
        "FROM busybox\nCOPY probe this-is-for-probes /\nCOPY p /p\nRUN {}/probe try abstract_socket > /out\n"
    )
    env = {"PATH": str(_only("", mode.pybuild.work))}
    archive = mode.pybuild.work / "out.tar"
    export = ("--no-cache", "-o", f"type=oci,dest={archive}")
    done = mode.pybuild("--network=default", *export, with_probe(mode, probe, text.format("")), env=env)
    if done.code == 0:  # it may refuse
        answers = read_report(read_image(archive).read("out")).answers
        assert answers == {"abstract_socket": errno.EPERM}  # by Landlock
    asked = with_probe(mode, probe, text.format("--network=host "))
    mode.pybuild("--allow=network.host", NONE, *export, asked, env=env).ok()
    assert read_report(read_image(archive).read("out")).answers == {"abstract_socket": 0}


def test_RT_20_pybuild_has_none(pybuild: Pybuild) -> None:
    """No process of a build listens or waits on an abstract socket."""
    context = pybuild.context("FROM busybox\nENV PYBUILD_TEST=1\nRUN echo here; sleep 1000\n")
    words, env = command(pybuild, "--no-cache", "--network=default", context)
    with subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True) as build:
        assert build.stderr is not None
        while not build.stderr.readline().endswith(" here\n"):
            assert build.poll() is None
        ours = {link for pid in _family(build.pid) for link in _sockets(pid)}
        rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
        abstract = {row[6] for row in rows if len(row) > 7 and row[7].startswith("@")}
        build.terminate()
        build.stderr.read()
    assert ours and not ours & abstract


def _family(first: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [first]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def _sockets(pid: int) -> set[str]:
    """The inode numbers of a process's sockets."""
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            if match := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{name}")):
                found.add(match[1])
    return found


@pytest.mark.parametrize(
    "flag",
    ["--security=insecure", "--security=foo", "--security=", "--network=host", "--network=foo", "--network=", "--device=/dev/fuse"],
)  # fmt: skip
def test_RT_21_privileges(mode: Mode, flag: str) -> None:
    """CVE-2024-23653: what is not allowed or not known is an error, and never less confinement."""
    text = f"FROM busybox\nRUN {flag} echo RAN; touch /ran\n"
    said = mode.pybuild.refuse(text, None, NONE, "--no-cache")
    assert "RAN" not in printed(said)
    twin = (
        "FROM busybox\nRUN --security=sandbox --network=none grep -E 'CapEff|^Seccomp:' /proc/self/status\n"
    )
    done = mode.pybuild(NONE, "--no-cache", mode.pybuild.context(twin)).ok()
    assert [line.split("\t")[-1] for line in printed(done.err)] == ["00000000a80425fb", "2"]


@pytest.mark.parametrize("mode", ["root-unmapped"], indirect=True)
@pytest.mark.parametrize(
    ("flag", "option"),
    [
        ("--security=insecure", "--allow=security.insecure"),
        ("", "--security-opt=systempaths=unconfined"),
        ("", "--cap-add=SYS_ADMIN"),
        ("", "--cap-add=ALL"),
    ],
)
def test_RT_21_nothing_of_the_machines_root(mode: Mode, flag: str, option: str) -> None:
    """Where root of a step has the number of the machine's own, it gets nothing that this number would open."""
    text = f"FROM busybox\nRUN {flag} echo RAN\n"
    said = mode.pybuild.refuse(text, None, NONE, "--no-cache", option)
    assert "this machine's own root" in said and "RAN" not in printed(said)
    mode.pybuild(
        NONE, "--no-cache", "--cap-add=NET_ADMIN", mode.pybuild.context("FROM busybox\nRUN true\n")
    ).ok()


def test_RT_21_insecure_is_still_confined(mode: Mode, probe: Path) -> None:
    """--security=insecure is no way to the machine: not its devices, its settings, its time, its memory."""
    text = (
        "FROM busybox\nCOPY probe this-is-for-probes /\nCOPY p /p\n"
        'RUN --security=insecure ["/probe", "report", "/p/report"]\n'
    )
    context = with_probe(mode, probe, text)
    before = host_values()
    seen = read_report(
        mode.pybuild.export(context, NONE, "--no-cache", "--allow=security.insecure").read("p/report")
    )
    assert host_values() == before
    assert int(seen.data["status"]["CapEff"], 16).bit_count() > 35 and seen.answers["mount_tmpfs"] == 0
    held = [name for name in seen.answers if name.startswith(("node ", "open ", "write /sys"))]
    held += [f"write /proc/sys/{name}" for name in (
        "kernel/core_pattern", "kernel/panic", "kernel/randomize_va_space", "vm/drop_caches", "vm/overcommit_memory", "fs/file-max",
    )]  # fmt: skip
    held += (
        "bpf_map bpf_program bpf_next_id kernel_log set_time set_clock adjust_time adjust_clock swap_on swap_off "
        "accounting hang_up map_files mount_devtmpfs mount_debugfs mount_securityfs open_by_handle_root oom_never "
        "ns_parent_user ns_parent_pid sched_deadline set_trusted limit_core chmod_null touch_null"
    ).split()
    answers = {name: seen.answers[name] for name in held}
    assert not [
        name
        for name, answer in answers.items()
        if answer not in (errno.EPERM, errno.EACCES, errno.ENOENT, errno.EROFS)
    ]
    for name in ("kill_all", "kill_others", "foreign_processes", "proc_root", "proc_root_up", "proc_cwd_up"):
        assert seen.answers[name] in (errno.ESRCH, errno.ENOENT), name


def test_RT_22_config_of_the_image_is_the_steps_alone(pybuild: Pybuild, tmp_path: Path) -> None:
    """CVE-2026-53488: variables and labels of a base image do not reach the programs that pybuild starts."""
    evil = {
        "LD_PRELOAD": "/evil/x.so", "PYTHONPATH": "/evil", "PYTHONSTARTUP": "/evil/s", "BASH_ENV": "/evil/b",
        "GIT_SSH_COMMAND": "/evil/git", "PYBUILD_ROOT": "/evil/root", "SSH_ASKPASS": "/evil/ask",
        "PATH": "/evil/bin:/bin", "HOME": "/evil/home", "TMPDIR": "/evil/tmp", "HTTPS_PROXY": "http://evil.invalid",
    }  # fmt: skip
    lines = "".join(f"ENV {name}={value}\nLABEL {name}={value}\n" for name, value in evil.items())
    labels = "LABEL pybuild.network=host io.pybuild.security=insecure pybuild.mounts=/:/host\n"
    base = pybuild.context(f"FROM busybox\n{lines}{labels}", name="base")
    pybuild(NONE, "-t", "evil-base", base).ok()
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    context = pybuild.context(
        'FROM evil-base\nRUN --mount=type=ssh ["/bin/sh", "-c", "env > /out; ls /evil /host; true"]\n'
    )
    words, env = command(pybuild, NONE, "--no-cache", "--ssh", f"default={key}", "-t", "evil-child", context)
    log = tmp_path / "log"
    trace = ["strace", "-f", "-qq", "-v", "-s", "4096", "-e", "trace=execve", "-o", str(log)]
    subprocess.run([*trace, *words], env=env, check=True, capture_output=True, timeout=60)
    calls = [line for line in log.read_text().splitlines() if "execve(" in line and "ENOENT" not in line]
    step = [line for line in calls if 'execve("/bin/sh"' in line]
    others = [line for line in calls if line not in step]
    assert len(step) == 1 and all(f"{name}={value}" in step[0] for name, value in evil.items())
    assert any("ssh-agent" in line for line in others)
    assert not [line for line in others if "/evil" in line or "evil.invalid" in line]


@pytest.mark.parametrize(
    "trigger", ["FROM busybox", "ONBUILD RUN true", "MAINTAINER me", "RUN --security=insecure true"]
)
def test_RT_22_triggers(pybuild: Pybuild, trigger: str, busybox: Path) -> None:
    """A base image's ONBUILD is no way to what a Dockerfile cannot have."""

    def change(config: dict[str, Any]) -> None:
        config["config"]["OnBuild"] = [trigger]

    (pybuild.work / "base.tar").write_bytes(forged(busybox.read_bytes(), change, "triggers:latest"))
    pybuild("load", pybuild.work / "base.tar").ok()
    pybuild.refuse("FROM triggers\nRUN true\n", None, NONE)


def forged(archive: bytes, change: Callable[[dict[str, Any]], None], name: str) -> bytes:
    """An OCI archive with another config; its digests are right again. *name* is the image's new one."""
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            if member.isreg():
                file = tar.extractfile(member)
                assert file is not None
                files[member.name] = file.read()
    index = json.loads(files["index.json"])
    manifest = json.loads(files.pop(_blob(index["manifests"][0])))
    config = json.loads(files.pop(_blob(manifest["config"])))
    change(config)
    _describe(files, manifest["config"], config)
    manifest.pop("annotations", None)
    _describe(files, index["manifests"][0], manifest)
    index["manifests"][0]["annotations"] = {
        "org.opencontainers.image.ref.name": name,
        "io.containerd.image.name": f"docker.io/library/{name}",
    }
    files["index.json"] = json.dumps(index).encode()
    files.pop("manifest.json", None)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path, data in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def _blob(descriptor: dict[str, Any]) -> str:
    return "blobs/" + str(descriptor["digest"]).replace(":", "/")


def _describe(files: dict[str, bytes], descriptor: dict[str, Any], document: dict[str, Any]) -> None:
    data = json.dumps(document).encode()
    descriptor["digest"] = "sha256:" + hashlib.sha256(data).hexdigest()
    descriptor["size"] = len(data)
    files[_blob(descriptor)] = data


def test_RT_23_metadata_of_an_image(mode: Mode, probe: Path) -> None:
    """CVE-2026-53492: what an image says of mounts, devices, hooks and privileges is not listened to."""
    archive = mode.pybuild.work / "plain.tar"
    context = mode.pybuild.context("FROM scratch\nCOPY . /\n")
    put_probe(context, probe)
    mode.pybuild("-o", f"type=oci,dest={archive}", context).ok()

    def change(config: dict[str, Any]) -> None:
        root = {"source": "/", "destination": "/host", "type": "bind", "options": ["rbind", "rw"]}
        more = {
            "mounts": [root], "Mounts": [root], "Privileged": True, "hooks": {"prestart": [{"path": "/bin/true"}]},
            "HostConfig": {"Binds": ["/:/host"], "Privileged": True, "CapAdd": ["ALL"], "NetworkMode": "host"},
            "linux": {"namespaces": [], "devices": [{"path": "/dev/vda", "type": "b", "major": 254, "minor": 0}]},
            "container_config": {"Privileged": True, "Cmd": ["/evil"]}, "rootfsPath": "../../..",
        }  # fmt: skip
        config.update(more)
        config["config"] = {**config.get("config", {}), **more, "SecurityOpt": ["seccomp=unconfined"]}

    evil = mode.pybuild.work / "evil.tar"
    evil.write_bytes(forged(archive.read_bytes(), change, "metadata:latest"))
    mode.pybuild("load", evil).ok()
    text = mode.pybuild.context('FROM metadata\nRUN ["/probe", "report", "/p/report"]\n')
    seen = read_report(mode.pybuild.export(text, NONE, "--no-cache").read("p/report"))
    assert (seen.summary(), seen.mounts()) == (wanted_summary(mode), mounts())
    assert differences(seen.answers, overrides(mode)) == {}


def test_RT_24_sockets_of_the_host(pybuild: Pybuild, probe: Path, tmp_path: Path) -> None:
    """No bind mount reaches one, and an ssh mount speaks the agent's language only (test_ssh has the twin)."""
    heard: list[bytes] = []
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        server.settimeout(0.1)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError), server.accept()[0] as peer:
                    peer.settimeout(1)
                    with contextlib.suppress(OSError):
                        while data := peer.recv(4096):
                            heard.append(data)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            text = (
                "FROM busybox\nCOPY probe /probe\n"
                'RUN --mount=type=ssh /probe raw "$SSH_AUTH_SOCK" "GET /info HTTP/1.0\r\n\r\n"\n'
            ).replace("\r\n\r\n", "%0d%0a")
            context = with_probe(Mode("root", pybuild), probe, text)
            done = pybuild(NONE, "--no-cache", "--ssh", f"default={path}", context)
            assert done.code in (0, 1) and not heard
            for source in (path, "/var/run/docker.sock", "/../../var/run/docker.sock", "/proc/self/root/run"):
                pybuild.refuse(
                    f"FROM busybox\nRUN --mount=type=bind,source={source},target=/s ls /s\n", {"a": "1"}, NONE
                )
            (context / "link").symlink_to(path)
            (context / "Dockerfile").write_text("FROM busybox\nRUN --mount=source=link,target=/s ls /s\n")
            pybuild(NONE, context).failed()
            with socket.socket(socket.AF_UNIX) as client:  # somebody does hear what is said
                client.connect(str(path))
                client.sendall(b"twin")
        finally:
            time.sleep(0.2)
            over.set()
            thread.join(10)
    assert heard == [b"twin"]


def test_RT_25_devices_in_a_layer(mode: Mode, tmp_path: Path, report: Reporter) -> None:
    """Nodes that an image brings do not open, as those that a step makes do not."""
    disk = os.stat("/").st_dev
    nodes = {
        "kmsg": (tarfile.CHRTYPE, 1, 11), "zero": (tarfile.CHRTYPE, 1, 5), "mem": (tarfile.CHRTYPE, 1, 1),
        "tty": (tarfile.CHRTYPE, 5, 0), "fuse": (tarfile.CHRTYPE, 10, 229), "loop": (tarfile.BLKTYPE, 7, 0),
        "disk": (tarfile.BLKTYPE, os.major(disk), os.minor(disk)),
    }  # fmt: skip
    base = io.BytesIO()
    with tarfile.open(fileobj=base, mode="w") as tar:
        for name, (kind, major, minor) in nodes.items():
            entry = tarfile.TarInfo(f"nodes/{name}")
            entry.type, entry.devmajor, entry.devminor, entry.mode = kind, major, minor, 0o666
            tar.addfile(entry)
        tar.add("/bin/busybox", "bin/busybox")
        twin = tarfile.TarInfo("nodes/twin")
        twin.size, twin.mode = 5, 0o666
        tar.addfile(twin, io.BytesIO(b"twin\n"))
    (mode.pybuild.work / "nodes.tar").write_bytes(base.getvalue())
    mode.pybuild("import", mode.pybuild.work / "nodes.tar", "nodes").ok()
    script = "for n in nodes/*; do /bin/busybox head -c 4 $n > /dev/null 2>&1 && echo $n; done; true"
    context = mode.pybuild.context(f'FROM nodes\nRUN ["/bin/busybox", "sh", "-c", "{script}"]\n')
    done = mode.pybuild(NONE, "--no-cache", context).ok()
    assert printed(done.err) == ["nodes/twin"]
    made = {name: answer for name, answer in report(mode).answers.items() if name.startswith("node ")}
    assert len(made) > 10 and set(made.values()) <= {errno.EPERM, errno.EACCES}


def test_RT_26_shocker(mode: Mode, report: Reporter) -> None:
    """A file handle can be asked for, and not be opened."""
    answers = report(mode).answers
    assert answers["name_to_handle"] == 0
    assert {answers["open_by_handle"], answers["open_by_handle_root"]} == {errno.EPERM}


def test_RT_27_both_abis(mode: Mode, report: Reporter) -> None:
    """What is refused by one entry to the kernel is refused by all of them; libraries can fall back."""
    answers = report(mode).answers
    assert {answer for name, answer in answers.items() if name.startswith("clone3")} == {errno.ENOSYS}
    assert {answer for name, answer in answers.items() if name.startswith("number_")} == {errno.ENOSYS}
    assert not [name for name, answer in answers.items() if answer >= 200], "a probe was killed"
    if X86:
        assert {answer for name, answer in answers.items() if name.startswith("x32_")} == {errno.ENOSYS}
        for name, answer in answers.items():
            native = name.replace("old_", "")
            if name.startswith("old_") and native in answers:
                assert answer == answers[native], name
        assert answers["old_getpid"] == 0


def test_RT_28_setuid_in_the_store(mode: Mode) -> None:
    """Nobody else gets to a file of the store, whatever its bits say."""
    mode.pybuild(
        NONE,
        mode.pybuild.context(
            "FROM busybox\nCOPY --chmod=4755 id /id\nRUN test -u /id\n",
            {"id": Path("/usr/bin/id").read_bytes()},
        ),
    ).ok()
    copies = [
        path for path in mode.pybuild.store.rglob("id") if path.is_file() and path.stat().st_mode & 0o4000
    ]
    assert copies
    # By way of a shell: setpriv itself still has root's capabilities when it looks for a program.
    other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", 'exec "$0" "$@"']
    for path in copies:
        done = subprocess.run([*other, path, "-u"], capture_output=True, text=True, check=False)
        assert done.returncode and "ermission denied" in done.stderr
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        os.chmod(place, 0o755)
        twin = Path(place) / "id"
        twin.write_bytes(copies[0].read_bytes())
        twin.chmod(0o755)
        assert subprocess.check_output([*other, twin, "-u"], text=True) == "65534\n"


# -- RT: what a step does to who builds ----------------------------------------------------


def test_RT_29_many_processes(mode: Mode) -> None:
    """A step ends with its first process, however many there are and however they cling to life."""
    script = (
        "trap '' TERM HUP INT; n=0; while [ $n -lt 300 ]; do (trap '' TERM; exec setsid sleep 1000) & n=$((n+1)); done; "
        "(setsid sh -c 'while :; do echo still; sleep 0.01; done' &); echo last"
    )
    context = mode.pybuild.context("FROM busybox\nENV PYBUILD_TEST=1\nCOPY s /s\nRUN sh /s\n", {"s": script})
    started = time.monotonic()
    done = mode.pybuild(NONE, "--no-cache", context).ok()
    assert "last" in printed(done.err) and time.monotonic() - started < 20


def test_RT_29_fork_bomb(pybuild: Pybuild) -> None:
    """With --pids-limit it fails in the step, and nowhere else."""
    bomb = "b() { b | b & }; b; sleep 2; echo over"
    context = pybuild.context("FROM busybox\nENV PYBUILD_TEST=1\nCOPY s /s\nRUN sh /s\n", {"s": bomb})
    started = time.monotonic()
    done = pybuild(NONE, "--no-cache", "--pids-limit=64", context)
    assert done.code in (0, 1) and "Traceback" not in done.err and time.monotonic() - started < 30
    assert "can't fork" in done.err
    twin = pybuild.context("FROM busybox\nRUN sleep 0 & sleep 0 & wait; echo over\n")
    assert printed(pybuild(NONE, "--no-cache", "--pids-limit=64", twin).ok().err) == ["over"]


CONTROLS = (
    b"\x1b]0;title\x07", b"\x1b]52;c;cGF3bmVk\x07", b"\x1bP$q\x1b\\", b"\x1b[2J\x1b[H", b"fake\rline", b"\x9b2J",
    "\x9b2J".encode(), b"\x1b[6n", b"\x08\x08\x7f", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\0nul", b"\x1bc", b"\x0e",
)  # fmt: skip


def test_RT_30_output_that_drives_the_terminal(pybuild: Pybuild) -> None:
    """Bytes that a terminal would act upon are spelled out; those of text are as they were."""
    payload = b"".join(b"<" + control + b">\n" for control in CONTROLS) + "twin: grün ✓\n".encode()
    context = pybuild.context(
        "FROM busybox\nCOPY bytes /bytes\nRUN cat /bytes; cat /bytes >&2\n", {"bytes": payload}
    )
    words, env = command(pybuild, NONE, "--no-cache", "--progress=plain", context)
    done = subprocess.run(words, env=env, capture_output=True, timeout=60, check=True)
    text = done.stderr.decode("utf-8")  # strictly
    assert text.count("twin: grün ✓") == 2 and text.count(">\n") >= 2 * len(CONTROLS) - 2
    acting = "".join(map(chr, [*range(9), *range(11, 32), *range(127, 160)]))
    assert sorted(set(acting) & set(text)) == []
    failing = pybuild.context("FROM busybox\nCOPY bytes /bytes\nRUN cat /bytes; exit 3\n", {"bytes": payload})
    said = pybuild(NONE, "--no-cache", failing).failed().err
    assert sorted(set(acting) & set(said)) == []


def test_RT_30_on_a_terminal(pybuild: Pybuild) -> None:
    """The same where pybuild itself moves the cursor."""
    payload = b"".join(b"<" + control + b">\n" for control in CONTROLS)
    context = pybuild.context(
        "FROM busybox\nCOPY bytes /bytes\nRUN cat /bytes; echo END\n", {"bytes": payload}
    )
    words, env = command(pybuild, NONE, "--no-cache", "--progress=tty", context)
    controller, terminal = pty.openpty()
    with subprocess.Popen(words, env={**env, "TERM": "xterm"}, stderr=terminal) as build:
        os.close(terminal)
        heard = b""
        with contextlib.suppress(OSError):
            while data := os.read(controller, 65536):
                heard += data
        assert build.wait(60) == 0
    os.close(controller)
    assert b"END" in heard
    assert not [
        control
        for control in (
            b"\x1b]",
            b"\x1bP",
            b"\x1b[2J",
            b"\x1b[6n",
            b"\x1bc",
            b"\x9b2J",
            "\x9b".encode(),
            b"\x0e",
            b"\0",
        )
        if control in heard
    ]


def test_RT_30_one_long_line(pybuild: Pybuild) -> None:
    """64 MiB without an end of line pass through a bounded memory."""
    context = pybuild.context("FROM busybox\nRUN head -c 67108864 /dev/zero | tr '\\0' x; echo; echo END\n")
    code, said, seconds, memory = measured(pybuild, NONE, "--no-cache", "--progress=plain", context)
    assert code == 0 and said.count("x") >= 1 << 26 and printed(said)[-1] == "END"
    assert memory < 256 << 20 and seconds < 30


@EVERY_MODE
def test_RT_31_signals_stay_inside(mode: Mode) -> None:
    """A step can kill and stop its own processes, and nobody else's, of the same user's either."""
    sleeper = ["sleep", "100"]
    if mode.user is not None:
        sleeper = [
            "setpriv",
            f"--reuid={mode.user.uid}",
            f"--regid={mode.user.gid}",
            "--clear-groups",
            *sleeper,
        ]
    with subprocess.Popen(sleeper) as canary:
        script = (
            "sleep 100 & kill -STOP 1; kill -KILL 1; kill -TERM 0; kill -KILL -1; "
            "for p in $(seq 2 400); do kill -KILL $p 2>/dev/null; done; wait; echo alive"
        )
        text = f"FROM busybox\nENV PYBUILD_TEST=1\nRUN trap '' TERM; {script}\nRUN echo next\n"
        done = mode.pybuild(NONE, "--no-cache", mode.pybuild.context(text)).ok()
        assert printed(done.err) == ["alive", "next"]
        assert canary.poll() is None
        canary.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_RT_31_step_that_does_not_want_to_end(mode: Mode, number: signal.Signals) -> None:
    """A step that ignores every signal is ended with the build, soon."""
    script = "trap '' INT TERM HUP QUIT PIPE ALRM USR1; setsid sleep 1000 & echo here; while :; do sleep 1000; done"
    context = mode.pybuild.context("FROM busybox\nENV PYBUILD_TEST=1\nCOPY s /s\nRUN sh /s\n", {"s": script})
    words, env = command(mode.pybuild, NONE, "--no-cache", context)
    with subprocess.Popen(words, env=env, cwd=mode.pybuild.work, stderr=subprocess.PIPE, text=True) as build:
        assert build.stderr is not None
        while not (line := build.stderr.readline()).endswith(" here\n"):
            assert line, "it ended"
        started = time.monotonic()
        build.send_signal(number)
        said = build.stderr.read()
        assert build.wait(20) == 130 and "Traceback" not in said
    assert time.monotonic() - started < 5


def test_RT_32_image_without_layers(mode: Mode) -> None:
    """CVE-2026-24054: nothing to run in is an error, nothing of the store is run in; files can be added."""
    mode.pybuild(NONE, "-t", "empty", mode.pybuild.context("FROM scratch\nLABEL a=b\n")).ok()
    said = mode.pybuild.refuse('FROM empty\nRUN ["/bin/true"]\n', None, NONE)
    assert "/bin/true" in said and "o such file" in said
    tree = mode.pybuild.build("FROM empty\nCOPY a /a\n", {"a": "1"}, NONE).tree()
    assert tree == {"a": "1"}


@pytest.mark.parametrize("case", ["more", "fewer", "other", "none", "twin"])
def test_RT_32_layers_that_do_not_add_up(fresh: Pybuild, case: str, busybox: Path) -> None:
    """An image whose config and layers disagree is not taken in."""

    def change(config: dict[str, Any]) -> None:
        known: list[str] = config["rootfs"]["diff_ids"]
        config["rootfs"]["diff_ids"] = {
            "more": [*known, *known], "fewer": known[:-1], "other": ["sha256:" + "0" * 64], "twin": known, "none": None,
        }[case]  # fmt: skip

    (fresh.work / "odd.tar").write_bytes(forged(busybox.read_bytes(), change, "odd:latest"))
    done = fresh("load", fresh.work / "odd.tar")
    if case == "twin":
        done.ok()
        fresh(NONE, fresh.context("FROM odd\nRUN true\n")).ok()
    else:
        done.failed()
        assert "odd" not in fresh("images").out


def test_RT_32_other_platform(pybuild: Pybuild, busybox: Path) -> None:
    """Programs for another machine are not run, which is said."""

    def change(config: dict[str, Any]) -> None:
        config["architecture"] = "s390x"

    (pybuild.work / "other.tar").write_bytes(forged(busybox.read_bytes(), change, "other:latest"))
    loaded = pybuild("load", pybuild.work / "other.tar")
    assert loaded.code in (0, 1)
    done = pybuild(NONE, pybuild.context("FROM other\nRUN true\n"))
    assert done.code == 1 or "s390x" in done.err, done.err


# -- the network ---------------------------------------------------------------------------


def calls(mode: Mode, carrier: str, *closed: str) -> dict[str, str]:
    """What a step on the default network hears at each address of the world that world.py makes."""
    addresses = " ".join((*world.HOST, world.INTERNET, world.METADATA))
    # And the neighbours by IPv6, which are there without being asked for; an address takes up to two seconds to
    # count, and longer on a busy machine.
    counts = "ip -6 addr show dev eth0 | grep fe80 | grep -qv tentative"
    neighbours = (
        f"$(n=0; until {counts} || [ $n = 100 ]; do n=$((n + 1)); sleep 0.1; done; "
        + "ping6 -c 2 -w 3 -I eth0 ff02::1 | sed -n 's/.*from \\(fe80[^ ]*\\): .*/\\1%eth0/p' | sort -u)"
    )
    script = (
        f"for a in {addresses} $(ip route | awk '/default/ {{print $3}}') 10.0.2.2 {neighbours}; do "
        f'(echo "$a=$(timeout 3 nc -w 1 $a {world.PORT} < /dev/null 2> /dev/null)") & done; wait'
    )
    context = mode.pybuild.context("FROM busybox\nCOPY s /s\nRUN sh /s\n", {"s": script})
    env = {"PATH": str(_only(carrier, mode.pybuild.work))} if carrier else None
    words, environment = command(mode.pybuild, "--no-cache", "--network=default", context, env=env)
    done = subprocess.run(
        ["unshare", "--net", sys.executable, world.__file__, *closed, *words],
        env=environment, cwd=mode.pybuild.work, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(line.split("=") for line in printed(done.stderr) if "=" in line)


def _only(carrier: str, work: Path) -> Path:
    """A folder of programs in which *carrier* is all that can connect a user's namespace."""
    folder = work / "programs"
    folder.mkdir()
    for name in filter(None, (carrier, "newuidmap", "newgidmap")):
        path = shutil.which(name, path="/usr/bin:/usr/sbin")
        assert path is not None, f"{name} is not installed"
        (folder / name).symlink_to(path)
    return folder


CARRIERS = pytest.mark.parametrize(
    ("mode", "carrier"),
    [("root", ""), *((name, carrier) for name in MODES[1:] for carrier in ("pasta", "slirp4netns"))],
    indirect=["mode"],
)


@pytest.fixture(scope="session")
def heard() -> Callable[[Mode, str], dict[str, str]]:
    """What a step hears from whom; asked once of each kind of network."""
    known: dict[tuple[str, str], dict[str, str]] = {}

    def ask(mode: Mode, carrier: str) -> dict[str, str]:
        if (mode.name, carrier) not in known:
            known[mode.name, carrier] = calls(mode, carrier)
        return known[mode.name, carrier]

    return ask


@CARRIERS
def test_network_leads_to_the_internet(
    mode: Mode, carrier: str, heard: Callable[[Mode, str], dict[str, str]]
) -> None:
    """A service out there hears a step, and no service of the host does, on whichever of its addresses."""
    answers = dict(heard(mode, carrier))
    assert answers.pop(world.INTERNET) == world.INTERNET
    assert any(at.startswith("fe80") for at in answers), "IPv6 was not tried"
    assert {at: said for at, said in answers.items() if said and at != world.METADATA} == {}


@pytest.mark.parametrize("mode", ["root"], indirect=True)
def test_network_behind_a_closed_filter(mode: Mode) -> None:
    """Where docker or ufw has the machine forward for nobody, steps still reach the internet, and only that."""
    answers = calls(mode, "", "--closed")
    assert answers.pop(world.INTERNET) == world.INTERNET
    assert {at: said for at, said in answers.items() if said} == {}


NEIGHBOURS = r"""
own=$(ip -4 addr show dev eth0 | sed -n 's/.*inet 10\.213\.0\.\([0-9]*\).*/\1/p')
other=10.213.0.$((5 - own))
n=0; until ip -6 addr show dev eth0 | grep fe80 | grep -qv tentative || [ $n = 50 ]; do n=$((n + 1)); sleep 0.1; done
echo "mtu=$(cat /sys/class/net/eth0/mtu)"
echo "ipv6=$(ping6 -c 2 -W 1 -I eth0 ff02::1 | sed -n 's/.*from \(fe80[^ ]*\):.*/\1/p' | sort -u | wc -l)"
arping -q -c 1 -w 1 -I eth0 $other && echo "arp=answered"
ping -q -c 1 -W 1 $other > /dev/null && echo "ipv4=answered"
ping -q -c 1 -W 1 $1 > /dev/null && echo "outside=$own"
ip addr add $other/32 dev eth0
arping -q -U -c 1 -w 1 -I eth0 -s $other $other
ping -q -c 1 -W 1 -I $other $1 > /dev/null && echo "stolen=answered"
sleep 1
"""


@pytest.mark.parametrize("mode", ["root"], indirect=True)
def test_network_of_steps_at_once(mode: Mode) -> None:
    """None hears another, or gets what is meant for it; and packets are as long as the machine's way out."""
    text = "FROM busybox AS one\nCOPY s /s\nRUN sh /s {0}\nFROM busybox AS two\nCOPY s /s\nRUN sh /s {0} 2\n"
    text += "FROM one\nCOPY --from=two /etc/passwd /x\n"
    context = mode.pybuild.context(text.format(world.INTERNET), {"s": NEIGHBOURS})
    options = ("--no-cache", "--network=default", "--cap-add=NET_ADMIN", "--cap-add=NET_RAW")
    words, environment = command(mode.pybuild, *options, context)
    shorter = ["sh", "-ec", 'ip link set up0 mtu 1400; exec "$@"', "sh"]
    done = subprocess.run(
        ["unshare", "--net", sys.executable, world.__file__, *shorter, *words],
        env=environment, cwd=mode.pybuild.work, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = sorted(line for line in printed(done.stderr) if "=" in line)
    assert said == ["ipv6=1", "ipv6=1", "mtu=1400", "mtu=1400", "outside=2", "outside=3"]


@pytest.mark.parametrize("way", ["--ipv6", "--only-ipv6"])
@pytest.mark.parametrize("mode", ["root"], indirect=True)
def test_network_by_ipv6(mode: Mode, way: str) -> None:
    """Where the machine has it, steps do: to the internet, and to no service of the machine, nor another's step."""
    asked = (world.INTERNET6, world.HOST6, world.METADATA6, "fdb1:9d0e:7a60:2::1", "fdb1:9d0e:7a60:3::2")
    script = f"""
        for a in {" ".join(asked)}; do
            (echo "$a=$(timeout 3 nc -w 1 $a {world.PORT} < /dev/null 2> /dev/null)") & done; wait
        ip -6 addr add fdb1:9d0e:7a60:77::2/64 dev eth0 nodad
        ping6 -q -c 1 -W 1 -I fdb1:9d0e:7a60:77::2 {world.INTERNET6} > /dev/null && echo forged=answered
        true
    """
    context = mode.pybuild.context("FROM busybox\nCOPY s /s\nRUN sh /s\n", {"s": script})
    options = ("--no-cache", "--network=default", "--cap-add=NET_ADMIN")
    words, environment = command(mode.pybuild, *options, context)
    done = subprocess.run(
        ["unshare", "--net", sys.executable, world.__file__, way, "--closed", *words],
        env=environment, cwd=mode.pybuild.work, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = dict(line.split("=") for line in printed(done.stderr) if "=" in line)
    assert answers.pop(world.INTERNET6) == world.INTERNET6, done.stderr
    assert len(answers) == 4 and not any(answers.values()), answers


@pytest.mark.parametrize("mode", MODES[1:], indirect=True)
@pytest.mark.parametrize("carrier", ["pasta", "slirp4netns"])
def test_user_without_a_network(mode: Mode, carrier: str) -> None:
    """A machine that is connected to nothing builds what needs nothing, and the build says what is missing."""
    context = mode.pybuild.context("FROM busybox\nRUN echo one\nRUN echo two\n")
    env = {"PATH": str(_only(carrier, mode.pybuild.work))}
    words, environment = command(mode.pybuild, "--no-cache", "--network=default", context, env=env)
    done = subprocess.run(
        ["unshare", "--net", *words],
        env=environment, cwd=mode.pybuild.work, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = printed(done.stderr)
    assert [line for line in said if "warning" not in line] == ["one", "two"]
    if carrier == "pasta":  # the other one connects a namespace to nothing without a word
        assert len([line for line in said if "steps reach nothing outside: pasta could not" in line]) == 1


@CARRIERS
def test_metadata_service(mode: Mode, carrier: str, heard: Callable[[Mode, str], dict[str, str]]) -> None:
    """What a cloud tells its machines, keys among it, is told to no step."""
    answers = heard(mode, carrier)
    assert answers[world.INTERNET] == world.INTERNET and answers[world.METADATA] == ""


# -- S23 to S25 ----------------------------------------------------------------------------

TRAP = """\
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void trap(void)
{
    FILE *file = fopen(getenv("PWNED") ? getenv("PWNED") : "/PWNED", "w");
    if (file) fclose(file);
}
"""


@pytest.fixture(scope="session")
def trap(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A shared library that leaves a file when it is loaded."""
    folder = tmp_path_factory.mktemp("trap")
    (folder / "trap.c").write_text(TRAP)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "trap.so", folder / "trap.c"], check=True)
    marker = folder / "PWNED"
    subprocess.run(["/bin/true"], env={"LD_PRELOAD": f"{folder}/trap.so", "PWNED": str(marker)}, check=True)
    assert marker.exists(), "the trap is none"
    return (folder / "trap.so").read_bytes()


def trapped_files(trap: bytes) -> Tree:
    """Everywhere an interpreter or a library might look: what would leave a mark."""
    python = "open('/PWNED', 'w').close()\n"
    modules = (
        "encodings",
        "site.py",
        "sitecustomize.py",
        "usercustomize.py",
        "os.py",
        "codecs.py",
        "warnings.py",
        "linecache.py",
        "traceback.py",
        "pwd.py",
        "struct.py",
    )
    stdlib: Tree = {name: {"__init__.py": python} if "." not in name else python for name in modules}
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    nss = {f"libnss_{name}.so.2": trap for name in ("files", "dns", "compat", "systemd", "myhostname")}
    return {
        "usr": {"lib": {version: stdlib, "python3": stdlib, "x86_64-linux-gnu": {**nss, "gconv": {"UTF-16.so": trap}}},
                "local": {"lib": {version: stdlib}}},
        "lib": {"x86_64-linux-gnu": {**nss, "libc.so.6": trap}},
        "lib64": {"libc.so.6": trap},
        "etc": {
            "ld.so.preload": "/lib/x86_64-linux-gnu/libnss_files.so.2\n",
            "nsswitch.conf": "passwd: systemd files\nhosts: myhostname dns\n",
            "passwd": "root:x:0:0:root:/root:/bin/sh\nbob:x:10:20::/home/bob:/bin/sh\n",
            "group": "root:x:0:\nstaff:x:20:\n",
        },
        "root": {".local": {"lib": {version: {"site-packages": stdlib}}}},
        str(Path(builder.__file__).parent).lstrip("/"): {"runtime": {"container": {"syscalls.tbl": "deny everything\n", "init.py": python}}},
    }  # fmt: skip


def test_S23_import_purity(mode: Mode, trap: bytes, tmp_path: Path) -> None:
    """Between entering the image's root and the command nothing is opened, loaded or executed."""
    user = "" if mode.name == "rootless-single" else "USER bob:staff\n"
    text = f"FROM busybox\nCOPY holder /\nENV LANG=tr_TR.UTF-16 LC_ALL=tr_TR.UTF-16 PYTHONPATH=/usr/lib/python3\n{user}WORKDIR /w/x\nRUN id\n"
    context = mode.pybuild.context(text, {"holder": trapped_files(trap)})
    archive = mode.pybuild.work / "out.tar"
    words, env = command(mode.pybuild, NONE, "--no-cache", "-o", f"type=oci,dest={archive}", context)
    trace = ["strace", "-ff", "-qq", "-e", "trace=%file,openat2,pivot_root", "-o", str(tmp_path / "log")]
    done = subprocess.run(
        [*trace, *words],
        env=env,
        cwd=mode.pybuild.work,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    steps = []
    for log in tmp_path.glob("log.*"):
        _before, entered, after = log.read_text().partition("pivot_root(")
        if entered:
            steps.append(after.splitlines()[1:])
    (calls,) = steps
    last = next(n for n, line in enumerate(calls) if line.startswith("execve(") and line.endswith(" = 0"))
    names = [line.partition("(")[0] for line in calls[:last]]
    assert set(names) <= {"umount2", "chdir", "getcwd"}, calls[:last]
    assert len(calls) > last + 1, "what the command does is traced"
    assert "PWNED" not in read_image(archive).tree() and not Path("/PWNED").exists()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody gets to, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="pybuild-open.", dir="/dev/shm"))
    folder.chmod(0o755)
    yield folder
    subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)


@pytest.mark.parametrize("umask", ["000", "022", "077"])
def test_S24_permissions_of_the_store(mode: Mode, umask: str, open_folder: Path, busybox: Path) -> None:
    """CVE-2021-41091: nobody else reads, writes or enters the store; what is built is the same."""
    store = open_folder / "store"
    if mode.user is not None:
        os.chown(open_folder, mode.user.uid, mode.user.gid)
    if umask == "000":  # as somebody who was there before may have left it
        store.mkdir()
        store.chmod(0o777)
        if mode.user is not None:
            os.chown(store, mode.user.uid, mode.user.gid)
    pybuild = dataclasses.replace(mode.pybuild, store=store)
    (pybuild.work / "busybox.tar").write_bytes(busybox.read_bytes())
    context = pybuild.context(
        "FROM busybox\nWORKDIR /made/here\nCOPY d /d\nRUN --mount=type=cache,target=/c touch /c/x /y; mkdir /z\nADD e.tar /e\n",
        {"d": {"f": "1"}, "e.tar": _small_tar()},
    )

    def run(*args: str | Path) -> str:
        words, env = command(pybuild, *args)
        done = subprocess.run(
            ["sh", "-c", f'umask {umask}; exec "$@"', "sh", *words],
            env=env, cwd=pybuild.work, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("load", pybuild.work / "busybox.tar")
    archive = pybuild.work / "out.tar"
    run(NONE, "-t", "x", "-o", f"type=oci,dest={archive}", context)
    modes = {path: oct(entry.mode) for path, (entry, _) in read_image(archive).root().items() if path in
             ("made", "made/here", "d", "d/f", "y", "z", "e", "e/g")}  # fmt: skip
    assert modes == {
        "made": "0o755", "made/here": "0o755", "d": "0o755", "d/f": "0o644", "y": "0o644", "z": "0o755", "e": "0o755",
        "e/g": "0o644",
    }  # fmt: skip
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    search = [
        "find",
        str(store),
        "-readable",
        "-print",
        "-o",
        "-writable",
        "-print",
        "-o",
        "-executable",
        "-print",
    ]
    found = subprocess.run([*nobody, *search], capture_output=True, text=True, check=False)
    assert found.stdout == "" and "ermission denied" in found.stderr
    (open_folder / "twin").write_text("x")
    search[1] = str(open_folder / "twin")
    assert subprocess.run([*nobody, *search], capture_output=True, text=True, check=False).stdout


def _small_tar() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        entry = tarfile.TarInfo("g")
        entry.mode = 0o644
        tar.addfile(entry)
    return data.getvalue()


def test_S25_environment_of_the_caller(mode: Mode) -> None:
    """Not in the image, its history, the export, the store or what is said: nothing of what nobody asked for."""
    pybuild = dataclasses.replace(mode.pybuild, store=mode.pybuild.work / "store")
    busybox = pybuild.work / "busybox.tar"
    mode.pybuild("save", "busybox", "-o", busybox).ok()
    pybuild("load", busybox).ok()
    text = "FROM busybox\nARG asked\nENV a=$PYBUILD_CANARY b=${PYBUILD_CANARY:-none}\nCOPY f /f\nRUN env; echo $PYBUILD_CANARY > /e\n"
    context = pybuild.context(text, {"f": "1"})
    archive = pybuild.work / "out.tar"
    environment = {"PYBUILD_CANARY": CANARY, "REGISTRY_PASSWORD": CANARY, "asked": "twin-" + CANARY[::-1]}
    done = pybuild(
        NONE, "--build-arg", "asked", "-t", "x", "-o", f"type=oci,dest={archive}", context, env=environment
    ).ok()
    image = read_image(archive)
    assert CANARY not in done.err + done.out + json.dumps(image.config) + json.dumps(image.manifest)
    assert CANARY[::-1] in json.dumps(image.history)
    held = b"".join(layer.data for layer in image.layers)
    for folder, _, names in os.walk(pybuild.store):
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                held += path.read_bytes()
    assert CANARY.encode() not in held and CANARY[::-1].encode() in held
