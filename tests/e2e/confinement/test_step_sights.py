"""What a step finds: the kernel's files, a terminal, users, groups, an environment (RT-08 to RT-19)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import termios
import threading
from pathlib import Path

import pytest
from confinement import TABLE, differences, read_report
from harness import Pybuild
from modes import CANARY, EVERY_MODE, NONE, Mode, host_values, look, measured, printed, with_probe
from oci import read_image
from rootless import command

pytestmark = pytest.mark.e2e


@EVERY_MODE
def test_standard_streams_by_name(mode: Mode) -> None:
    """A step may open /dev/stdout and /dev/stderr, as those of docker do, also as a user."""
    script = "echo one > /dev/stdout && echo two > /dev/stderr && echo three | tee /dev/stderr > /dev/null"
    other = "" if mode.name == "rootless-single" else f"USER 1\nRUN {script}\n"
    context = mode.pybuild.context(f"FROM busybox\nRUN {script}\n{other}")
    said = mode.pybuild(NONE, "--no-cache", context).ok().err
    times = 2 if other else 1
    assert [said.count(f" {word}\n") for word in ("one", "two", "three")] == [times] * 3


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
