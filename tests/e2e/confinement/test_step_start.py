"""How a step starts: its folder, interpreter, masks, mounts and consoles (RT-01 to RT-07)."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from confinement import TABLE, compile_c, differences, read_report
from harness import Pybuild, Tree
from modes import EVERY_MODE, NONE, Mode, host_values, look, overrides, printed, wanted_mounts, with_probe
from oci import read_image

import builder

pytestmark = pytest.mark.e2e

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
    before = _names_of_the_kernel("/etc", "/tmp")
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
    assert _names_of_the_kernel("/etc", "/tmp") == before


def _names_of_the_kernel(*directories: str) -> set[str]:
    """The entries of *directories* that are called as one of /proc, /sys or /dev is; others come and go."""
    names = {name for root in ("/proc", "/sys", "/dev") for name in os.listdir(root)}
    return {
        f"{directory}/{name}" for directory in directories for name in os.listdir(directory) if name in names
    }


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
