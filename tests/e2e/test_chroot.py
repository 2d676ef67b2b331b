"""Steps without namespaces: a chroot with a supervisor gives the same image, and looks like a container.

Confinement has its own folder (chroot_confinement), real containers theirs (test_places.py).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from harness import PYBUILD, Pybuild

pytestmark = pytest.mark.e2e

CHROOT = ("--isolation=chroot", "--network=none")


def step(pybuild: Pybuild, command: str, *more: str, before: str = "", mount: str = "") -> str:
    """What a RUN step prints."""
    unique = f": {os.urandom(4).hex()}; "  # --no-cache would empty a cache mount
    text = f"FROM busybox\n{before}\nRUN {mount} {unique}{command}\n"
    done = pybuild(*CHROOT, *more, pybuild.context(text)).ok()
    return "\n".join(re.findall(r"^#\d+ \d+\.\d+ (.*)$", done.err, re.MULTILINE))


MIXED = """
FROM busybox AS one
RUN mkdir -p /d/e /opaque && echo a > /d/a && ln /d/a /d/b && ln -s a /d/l && chmod 1777 /d/e && echo x > /opaque/x
RUN chown 5:6 /d/a && chmod 4755 /d/a && rm -rf /opaque && mkdir /opaque && echo y > /opaque/y && rm /bin/ls
RUN touch -d '2001-02-03 04:05:06' /d/a /d/e && mkfifo /d/p && rm -r /var && chmod 700 /root
USER 1000:1001
RUN id -u > /tmp/id && umask 077 && mkdir /tmp/own && echo z > /tmp/own/z
USER 0
COPY f /d/a
RUN --mount=type=cache,target=/c --mount=type=tmpfs,target=/t --mount=target=/m \\
    cp /m/f /c/g && cp /c/g /t/h && cp /t/h /made
FROM one
COPY --from=one /d /copied
RUN mv /d /moved && echo end > /copied/a
"""


def test_same_layers(pybuild: Pybuild) -> None:
    """Names, kinds, modes, owners, links and contents of every layer are those that namespaces give."""
    folder = pybuild.context(MIXED, {"f": "1"})
    made = [pybuild.export(folder, "--network=none", "--no-cache", f"--isolation={way}") for way in ("chroot", "namespaces")]  # fmt: skip
    looks = [
        [
            [(e.name, e.type, oct(e.mode), e.uid, e.gid, e.linkname, e.size) for e in layer.entries.values()]
            for layer in image.layers
        ]
        for image in made
    ]
    assert looks[0] == looks[1]
    assert made[0].tree() == made[1].tree()


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("readlink /proc/self/exe", "/bin/busybox"),
        ("readlink /proc/self/cwd; readlink /proc/self/root", "/\n/"),
        ("cd /tmp && readlink /proc/self/cwd", "/tmp"),
        ("head -1 /proc/self/status", "Name:\thead"),
        ("cat < /proc/self/comm", "cat"),
        ("grep -c processor /proc/cpuinfo > /dev/null && echo cpu", "cpu"),
        ("cut -d' ' -f2 /proc/mounts | head -4 | tr '\\n' ' '", "/ /proc /dev /sys "),
        ("cut -d' ' -f5 /proc/self/mountinfo | head -1", "/"),
        ("ls /proc/self/fd | head -3 | tr '\\n' ' '", "0 1 2 "),
        ("ls -d /proc/1 /proc/$$ | wc -l", "2"),
        ("tr '\\0' ' ' < /proc/1/cmdline | cut -c1-10", "/bin/sh -c"),
        ("cat /proc/$PPID/cmdline 2>&1 | cut -d: -f1,3-", "cat: No such file or directory"),
        ("ps | grep -c '[p]ybuild' || true", "0"),
        ("echo in | cat /dev/stdin", "in"),
        ("echo in | cat /dev/fd/0 /proc/self/fd/0", "in"),
        ("echo in | cp /dev/stdin /x && cat /x", "in"),
        ("echo out > /dev/stdout; echo err > /dev/stderr", "out\nerr"),
        ("ln -s /dev/stdout /log && echo logged > /log", "logged"),
        ("cd /proc/self && echo ../../dev/stdout > /dev/null && echo x > ../../dev/stdout", "x"),
        ("echo x > /dev/null && head -c 3 /dev/zero | wc -c && head -c 5 /dev/urandom | wc -c", "3\n5"),
        ("cat /sys/devices/system/cpu/online | cut -c1", "0"),
        ("ls -d /sys/devices/system/cpu/cpu0", "/sys/devices/system/cpu/cpu0"),
        ("ls /sys/kernel | grep -c -x debug || true", "0"),
        ("(echo 1 > /proc/sys/kernel/hostname) 2>&1 | cut -d: -f3", " Read-only file system"),
        ("test -e /proc/self/exe && test -x /proc/self/exe && test -d /proc/self && echo yes", "yes"),
        ("stat -L -c %F /dev/stdin /proc/self/exe", "character special file\nregular file"),
        ("wc -c < /proc/interrupts; ls /proc/acpi 2>/dev/null; true", "0"),
        ("su -s /bin/sh nobody -c 'id -u; cat /proc/self/status | head -1'", "65534\nName:\tcat"),
        ("cat /etc/hosts | head -1 | cut -f1; test -s /etc/resolv.conf && echo dns", "127.0.0.1\ndns"),
        ("unshare -U true 2>&1 | cut -d: -f2-", " unshare(0x10000000): Operation not permitted"),
        ("mount -t tmpfs none /tmp 2>&1 | cut -d: -f2- | cut -c1-14", " permission de"),
        ("kill -TERM $$; sleep 1; echo no", None),
        ("ulimit -c", "0"),
    ],
)  # fmt: skip
def test_looks_like_a_container(pybuild: Pybuild, command: str, expected: str | None) -> None:
    if expected is None:
        text = f"FROM busybox\nRUN {command}\n"
        assert "signal 15" in pybuild(*CHROOT, pybuild.context(text)).failed().err
    else:
        assert step(pybuild, command) == expected


def test_chroot_of_a_step(pybuild: Pybuild) -> None:
    """It could be left, so it has to be asked for; who tries is told."""
    command = "mkdir r && cp /bin/busybox r/sh && chroot r /sh -c 'echo inside' || true"
    assert "--cap-add SYS_CHROOT allows it" in step(pybuild, command)
    assert step(pybuild, command, "--cap-add=SYS_CHROOT") == "inside"


def test_ports_of_the_internet(pybuild: Pybuild) -> None:
    """Without a network there is no socket for one; unix sockets are there."""
    assert "Address family not supported" in step(pybuild, "nc -w1 127.0.0.1 9 2>&1 || true")


def test_what_is_left_ends(pybuild: Pybuild) -> None:
    """Daemons, their children and what ignores signals are gone when the step is."""
    step(pybuild, "(trap '' TERM HUP INT; setsid sleep 987 &) ; sh -c 'sleep 986 & sleep 985 &' & true")
    assert not subprocess.run(
        ["pgrep", "-f", "sleep 98[567]"], capture_output=True, text=True, check=False
    ).stdout


def test_a_fork_bomb_ends(pybuild: Pybuild) -> None:
    text = "FROM busybox\nRUN sh -c 'b() { b & b; }; b' 2>/dev/null & exec sleep 60\n"
    process = subprocess.Popen(
        [PYBUILD, *CHROOT, "--pids-limit=200", pybuild.context(text)], env=pybuild.environment(), stderr=subprocess.DEVNULL
    )  # fmt: skip
    time.sleep(1.5)
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    assert process.wait(timeout=10) == 130 and time.monotonic() - started < 4


@pytest.mark.parametrize("victim", ["build", "launcher", "supervisor", "keeper"])
def test_killed(fresh: Pybuild, victim: str) -> None:
    """Whoever is killed, the step ends within 2 s; what a cache held is home again after the next build."""
    mount = "--mount=type=cache,id=k,target=/c"
    step(fresh, "echo kept > /c/f", mount=mount)
    text = f"FROM busybox\nRUN {mount} sleep 876\n"
    process = subprocess.Popen(
        [PYBUILD, *CHROOT, fresh.context(text)], env=fresh.environment(), stderr=subprocess.DEVNULL
    )
    pid = _wait_for("sleep 876")
    keeper, supervisor, launcher, build = _parents(pid)
    chain = {"build": build, "launcher": launcher, "supervisor": supervisor, "keeper": keeper}
    assert build == process.pid
    os.kill(chain[victim], signal.SIGKILL)
    process.wait(timeout=10)
    end = time.monotonic() + 2
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < end:
        time.sleep(0.02)
    assert not os.path.exists(f"/proc/{pid}")
    assert step(fresh, "cat /c/f", mount=mount) == "kept"


def _wait_for(command: str) -> int:
    for _ in range(200):
        found = subprocess.run(["pgrep", "-xf", command], capture_output=True, text=True, check=False).stdout
        if found:
            return int(found.split()[0])
        time.sleep(0.05)
    raise AssertionError(f"{command} does not run")


def _parents(pid: int) -> list[int]:
    out = []
    for _ in range(4):
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        out.append(pid)
    return out


# -- mounts that are placed ----------------------------------------------------------------


def test_cache_goes_and_comes(fresh: Pybuild) -> None:
    """Entries of a cache are in the root while its step runs, and in no layer; modes and owners stay."""
    mount = "--mount=type=cache,target=/c/d,mode=0750,uid=3,gid=4"
    assert (
        step(fresh, "stat -c '%a %u %g' /c/d && mkdir /c/d/s && echo 1 > /c/d/s/f", mount=mount) == "750 3 4"
    )
    image = fresh.build(
        f"FROM busybox\nRUN {mount} cat /c/d/s/f > /out && ln /c/d/s/f /linked\n", None, *CHROOT
    )
    assert image.layers[-1].names == ["linked", "out"]
    assert step(fresh, "echo more >> /c/d/s/f; cat /c/d/s/f", mount=mount) == "1\nmore"
    assert fresh.build(f"FROM busybox\nRUN {mount} cat /c/d/s/f > /out && ln /c/d/s/f /linked\n", None, *CHROOT).read("linked") == b"1\n"  # fmt: skip


def test_cache_that_is_removed_is_empty(fresh: Pybuild) -> None:
    mount = "--mount=type=cache,target=/c"
    step(fresh, "echo 1 > /c/f", mount=mount)
    step(fresh, "rm -rf /c", mount=mount)
    assert step(fresh, "ls /c | wc -l", mount=mount) == "0"


@pytest.mark.parametrize(
    "command", ["mv /m /elsewhere", "mv /m /elsewhere && ln -s /etc /m", "mv /m /n && mkdir /m"]
)
def test_a_mount_stays_where_it_is(fresh: Pybuild, command: str) -> None:
    """In a container that is EBUSY; here it is found afterwards, and nothing of the mount is in the image."""
    text = f"FROM busybox\nRUN --mount=type=cache,target=/m {command}\n"
    assert "the step moved the mount at /m" in fresh(*CHROOT, fresh.context(text)).failed().err


def test_read_only(pybuild: Pybuild) -> None:
    """Opens for writing are refused at once, all else when the step has ended."""
    files = {"f": "1"}
    text = "FROM busybox\nRUN --mount=target=/m ! touch /m/f && cd /m && ! touch g && ! mkdir d && ! rm f && ! mv f g && cat f\n"
    pybuild.build(text, files, *CHROOT)
    said = pybuild.refuse("FROM busybox\nRUN --mount=target=/m ln -s /m /n && rm /n/f\n", files, *CHROOT)
    assert "the step changed what is mounted read-only at /m" in said


def test_secret(fresh: Pybuild) -> None:
    """A secret is a file of its mode while the step runs, and nowhere afterwards."""
    text = "FROM busybox\nRUN --mount=type=secret,id=s,uid=7 stat -c '%a %u' /run/secrets/s; cat /run/secrets/s | wc -c\n"
    done = fresh(*CHROOT, "--secret=id=s,env=S", fresh.context(text), env={"S": "very secret words"}).ok()
    assert "400 7" in done.err and " 17\n" in done.err
    found = subprocess.run(
        ["grep", "-rl", "very secret words", fresh.store], capture_output=True, check=False
    )
    assert not found.stdout


def test_nested_mounts(fresh: Pybuild) -> None:
    text = (
        "FROM busybox\nRUN --mount=type=cache,target=/a --mount=type=tmpfs,target=/a/b/c "
        "--mount=type=bind,target=/a/b/c/d echo 1 > /a/b/c/x && cat /a/b/c/d/f\n"
    )
    assert fresh.build(text, {"f": "1"}, *CHROOT).layers[-1].names == []


@pytest.mark.parametrize("links", ["ln -s /nowhere /etc/resolv.conf", "rm -rf /etc && ln -s /usr /etc"])
def test_places_behind_links(pybuild: Pybuild, links: str) -> None:
    """What the image has at /etc/resolv.conf and /etc/hosts is there again after the step."""
    image = pybuild.build(
        f"FROM busybox\nRUN rm -f /etc/resolv.conf; {links}\nRUN cat /etc/hosts > /out\n", None, *CHROOT
    )
    assert b"localhost" in image.read("out") and image.layers[-1].names == ["out"]


# -- the command ---------------------------------------------------------------------------


def test_run_and_options(pybuild: Pybuild) -> None:
    """``pybuild run`` has it too; what needs namespaces is refused in words."""
    env = {"PYBUILD_ISOLATION": "chroot"}
    done = pybuild("run", "--network=none", "busybox", "sh", "-c", "readlink /proc/self/exe; exit 7", env=env)
    assert (done.code, done.out) == (7, "/bin/busybox\n")
    refused = pybuild("run", "-v", "/tmp:/x", "busybox", "true", env=env).failed(2).err
    assert "-v and -p need namespaces" in refused
    device = pybuild(*CHROOT, "--device=/dev/fuse", "--no-cache", pybuild.context("FROM busybox\nRUN true\n"))
    assert "--device needs namespaces" in device.failed().err
    assert "PYBUILD_ISOLATION is 'jail'" in pybuild(".", env={"PYBUILD_ISOLATION": "jail"}).failed(2).err


def test_one_cache_for_both(fresh: Pybuild) -> None:
    """A step that was run one way is cached for the other."""
    folder = fresh.context("FROM busybox\nRUN echo 1 > /f\n")
    fresh(*CHROOT, folder).ok()
    assert fresh("--network=none", "--isolation=namespaces", folder).ok().cached == 2


def test_several_stages_at_once(fresh: Pybuild) -> None:
    """Two steps that need one root get a tree each, and a stage's steps change theirs in turn."""
    text = "FROM busybox AS b\nRUN echo 0 > /0\n" + "".join(
        f"FROM b AS s{n}\nRUN sleep 0.2; echo {n} > /{n}; ls / | grep -c '^[0-9]' > /count\n"
        for n in range(1, 5)
    )
    text += "FROM busybox\n" + "".join(f"COPY --from=s{n} /count /{n} /s{n}/\n" for n in range(1, 5))
    image = fresh.build(text, None, *CHROOT)
    assert [image.read(f"s{n}/count") for n in range(1, 5)] == [b"2\n"] * 4


def test_where_chroot_is_not_allowed(pybuild: Pybuild) -> None:
    """Without the capability there is one error, and what to do about it."""
    done = subprocess.run(
        ["setpriv", "--bounding-set=-sys_chroot", "--inh-caps=-all", PYBUILD, *CHROOT, pybuild.context("FROM busybox\nRUN true\n")],
        env=pybuild.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "CAP_SYS_CHROOT" in done.stderr and "Traceback" not in done.stderr


HALF = """
import os, struct, sys
from builder.runtime import syscalls as sc
sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
allow, refuse = (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | 1)
if sys.argv[1] == "busy":  # a runner that listens itself: the kernel has one listener for all below
    os.set_inheritable(sc.set_seccomp_listener(struct.pack("=HBBI", *allow)), True)
else:
    rules = [(0x20, 0, 0, 0), (0x15, 0, 1, 317), refuse, allow]
    sc.set_seccomp_filter(b"".join(struct.pack("=HBBI", *rule) for rule in rules))
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of system calls are those of x86_64")
@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ("busy", "seccomp notifications"),
        ("seccomp", "seccomp notifications"),
    ],
)
def test_half_a_place(pybuild: Pybuild, lacking: str, said: str) -> None:
    """A place that allows chroot and not what stands in for /proc: one error names what is missing."""
    folder = pybuild.context("FROM busybox\nRUN true\n")
    done = subprocess.run(
        [sys.executable, "-c", HALF, lacking, PYBUILD, *CHROOT, folder],
        env=pybuild.environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_store_knows_no_isolation(fresh: Pybuild, tmp_path: Path) -> None:
    """What was exported by chroot loads elsewhere."""
    folder = fresh.context("FROM busybox\nRUN rm /bin/ls\n")
    archive = tmp_path / "out.tar"
    fresh(*CHROOT, "-o", f"type=oci,dest={archive}", folder).ok()
    other = replace(fresh, store=tmp_path / "other")
    other("load", archive).ok()
