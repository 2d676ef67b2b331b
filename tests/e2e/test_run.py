"""RUN: what a step sees, what it cannot touch, what it may be given."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest
from harness import PYBUILD, Pybuild

pytestmark = pytest.mark.e2e

CAPABILITIES = 0x00000000A80425FB  # the 14 that docker and BuildKit give


def look(pybuild: Pybuild, script: str, *options: str, lines: str = "") -> str:
    """What *script* prints inside a step."""
    flags = options or ("--network=none",)
    context = pybuild.context(
        f"FROM busybox\n{lines}\nCOPY look /look\nRUN sh /look > /out 2>&1\n", {"look": script}
    )
    return pybuild.export(context, "--no-cache", *flags).read("out").decode("utf-8", "replace")


def test_namespaces(pybuild: Pybuild) -> None:
    """Every kind of its own, also as root."""
    names = ("user", "mnt", "pid", "net", "uts", "ipc", "cgroup")
    seen = look(pybuild, "".join(f"readlink /proc/self/ns/{name}\n" for name in names)).split()
    outside = {os.readlink(f"/proc/self/ns/{name}") for name in names}
    assert len(seen) == 7 and not outside & set(seen)


def test_identity_is_shifted(pybuild: Pybuild) -> None:
    """Root inside is nobody outside; files it makes are root's in the layer."""
    image = pybuild.build(
        "FROM busybox\nRUN cat /proc/self/uid_map > /map; echo x > /f; chown 7:8 /f\n", None, "--network=none"
    )
    inside, outside, _count = image.read("map").split()
    assert inside == b"0" and int(outside) >= 1 << 16
    root = image.root()
    assert [(root[p][0].uid, root[p][0].gid) for p in ("map", "f")] == [(0, 0), (7, 8)]


def test_capabilities_and_privileges(pybuild: Pybuild) -> None:
    status = dict(
        line.split(":\t", 1) for line in look(pybuild, "cat /proc/self/status").splitlines() if ":\t" in line
    )
    sets = {name: int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")}
    assert sets == {
        "CapPrm": CAPABILITIES,
        "CapEff": CAPABILITIES,
        "CapBnd": CAPABILITIES,
        "CapInh": 0,
        "CapAmb": 0,
    }


def test_user_has_no_capabilities(pybuild: Pybuild) -> None:
    """USER: groups of a name from /etc/group, home from passwd, nothing else."""
    etc = (
        "RUN echo 'bob:x:10:20::/home/bob:/bin/sh' >> /etc/passwd && "
        "printf 'wheel:x:30:x,bob\\nstaff:x:20:\\n' >> /etc/group"
    )
    said = look(
        pybuild,
        "id -u; id -g; id -G; echo $HOME; grep CapEff /proc/self/status",
        lines=f"{etc}\nRUN touch /out && chmod 666 /out\nUSER bob",
    )
    assert said.split() == ["10", "20", "20", "30", "/home/bob", "CapEff:", "0000000000000000"]


@pytest.mark.parametrize(
    ("user", "says"),
    [("5", "5 0 0"), ("5:6", "5 6 6"), ("nobody", "65534 65534 65534"), ("0:7", "0 7 7")],
)
def test_user_forms(pybuild: Pybuild, user: str, says: str) -> None:
    """T60."""
    said = look(
        pybuild, "echo $(id -u) $(id -g) $(id -G)", lines=f"RUN touch /out && chmod 666 /out\nUSER {user}"
    )
    assert said.strip() == says


def test_unknown_user(pybuild: Pybuild) -> None:
    """T107."""
    said = pybuild.refuse("FROM busybox\nUSER alice\nRUN true\n", None, "--network=none")
    assert "unable to find user alice" in said


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
def test_hostile_passwd(pybuild: Pybuild, kind: str) -> None:
    """T107: only a regular file inside the root is read, and nothing hangs."""
    make = {
        "fifo": "mkfifo /etc/passwd",
        "link": "ln -s /proc/1/environ /etc/passwd",
        "directory": "mkdir /etc/passwd",
    }
    pybuild.refuse(
        f"FROM busybox\nRUN rm /etc/passwd && {make[kind]}\nUSER alice\nRUN true\n", None, "--network=none"
    )


def test_what_is_mounted(pybuild: Pybuild) -> None:
    """Fresh /proc with masks, read-only /sys, a minimal /dev, nothing of the host."""
    said = look(pybuild, "cat /proc/self/mountinfo")
    mounts = {line.split()[4]: line.split() for line in said.splitlines()}
    assert "ro" in mounts["/sys"][5].split(",")
    assert {"/", "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys"} <= set(mounts)
    masked = {
        "/proc/kcore",
        "/proc/keys",
        "/proc/timer_list",
        "/proc/sysrq-trigger",
        "/proc/irq",
        "/proc/bus",
    }
    assert {path for path in masked if os.path.exists(path)} <= set(mounts)
    assert not [m for m in mounts if m.startswith(("/home", "/work", "/root", "/run", "/var", "/mnt"))]
    devices = look(pybuild, "cd /dev; ls").split()
    assert set(devices) == {
        "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm",
        "stderr", "stdin", "stdout", "tty", "urandom", "zero",
    } - ({"console", "core"} - set(devices))  # fmt: skip


ESCAPES = {
    "sysctl": "echo x > /proc/sys/kernel/core_pattern",
    "sysrq": "echo h > /proc/sysrq-trigger",
    "sysfs": "echo 0 > /sys/kernel/uevent_helper",
    "mount": "mount -t tmpfs x /mnt",
    "remount": "mount -o remount,rw /sys",
    "device": "mknod /x b 8 0 && dd if=/x of=/dev/null count=1",
    "kmsg": "cat /proc/kcore | head -c1 | grep .",
    "time": "date -s 2001-01-01; date +%Y | grep 2001",
    "hostname": "hostname owned",
    "unshare": "unshare -m true",
    "ptrace-init": "cat /proc/1/environ | grep -a PYBUILD",
    "chroot-escape": "ls /proc/1/root/../../proc/1/root/work",
}


@pytest.mark.parametrize("attempt", ESCAPES.values(), ids=ESCAPES.keys())
def test_containment(pybuild: Pybuild, attempt: str) -> None:
    assert look(pybuild, f"if {attempt}; then echo ESCAPED; else echo held; fi").splitlines()[-1] == "held"


def test_no_descriptor_leads_out(pybuild: Pybuild) -> None:
    """Standard input is empty, output a pipe; nothing else is open, in the step or its first process."""
    said = look(
        pybuild,
        "for p in 1 self; do for f in 0 1 2 3 4 5 6 7 8 9; do readlink /proc/$p/fd/$f; done; done; true",
    )
    assert {line.partition(":")[0] for line in said.splitlines()} <= {"/dev/null", "pipe", "/out", "/look"}


def test_hosts_and_resolver_never_reach_a_layer(pybuild: Pybuild) -> None:
    """T85: no stubs, and the folders' own times stay."""
    image = pybuild.build(
        "FROM busybox\nRUN cat /etc/hosts /etc/resolv.conf > /seen && echo 1 >> /etc/hosts; true\n",
        None,
        "--network=none",
    )
    assert b"127.0.0.1\tlocalhost" in image.read("seen")
    assert image.layers[-1].names == ["seen"]


def test_resolver_link_that_dangles(pybuild: Pybuild) -> None:
    """A base whose /etc/resolv.conf links to where nothing is (systemd's way) works, inside the root."""
    etc = {"resolv.conf": "-> ../run/systemd/resolve/stub.conf", "hosts": "-> /../../../../../etc/shadow"}
    image = pybuild.build(
        "FROM busybox\nCOPY etc /etc\nRUN cat /etc/hosts /etc/resolv.conf > /seen\n",
        {"etc": etc},
        "--network=default",
    )
    assert b"localhost" in image.read("seen") and b"nameserver" in image.read("seen")
    assert b"root:" not in image.read("seen")
    assert not [name for name in image.layers[-1].names if "stub" in name or "shadow" in name]


def test_network_default(pybuild: Pybuild) -> None:
    """An address of its own, a way out, the host's name servers; the host's own network stays unseen."""
    said = look(pybuild, "ip -o -4 addr; ip route; cat /etc/resolv.conf", "--network=default")
    assert "eth0" in said and "default via" in said and "nameserver" in said
    own = subprocess.check_output(["ip", "-o", "link"], text=True)
    foreign = [line.split(": ")[1].split("@")[0] for line in own.splitlines()]
    assert not [name for name in foreign if name not in ("lo", "eth0") and f" {name}" in said]


def test_network_none(pybuild: Pybuild) -> None:
    said = look(pybuild, "ip -o link; ip -o -4 addr show lo; ping -c1 -W1 127.0.0.1 >/dev/null && echo up")
    assert "eth0" not in said and "127.0.0.1/8" in said and said.endswith("up\n")


def test_network_host(pybuild: Pybuild) -> None:
    """Only when the build was given it."""
    said = look(pybuild, "readlink /proc/self/ns/net", "--network=host")
    assert said.strip() == os.readlink("/proc/self/ns/net")
    refused = pybuild.refuse("FROM busybox\nRUN --network=host true\n")
    assert "network.host is not allowed" in refused and "--network=host" in refused


def test_network_of_one_step(pybuild: Pybuild) -> None:
    image = pybuild.build("FROM busybox\nRUN --network=none ip -o link > /links\n", None, "--network=default")
    assert b"eth0" not in image.read("links")


def test_two_builds_do_not_meet(pybuild: Pybuild) -> None:
    """Concurrent builds have networks of their own, and no way from one to the other."""
    serve = "FROM busybox\nRUN (sleep 3 | nc -l -p 8080) & sleep 3; ip -o -4 addr show eth0\n"
    call = "FROM busybox\nRUN sleep 1; ip -o -4 addr show eth0; for n in 0 1 2 3; do nc -w 1 10.213.$n.2 8080 </dev/null && echo REACHED; done; true\n"
    builds = [
        subprocess.Popen(
            [PYBUILD, "--no-cache", "--progress=plain", str(pybuild.context(text, name=name))],
            env=pybuild.environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, text in (("serve", serve), ("call", call))
    ]
    said = [build.communicate(timeout=60)[1] for build in builds]
    assert [build.returncode for build in builds] == [0, 0], said
    addresses = {word for text in said for word in text.split() if word.startswith("10.213.") and "/" in word}
    assert len(addresses) == 2, said
    assert "#2" in said[1] and not [line for line in said[1].splitlines() if line.endswith(" REACHED")]


def test_services_of_the_host_are_out_of_reach(pybuild: Pybuild) -> None:
    """What listens on every address of the host does not hear a step on the default network."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        script = f"g=$(ip route | awk '/default/ {{print $3}}'); nc -w 1 $g {port} < /dev/null 2> /dev/null && echo reached; echo tried"
        assert look(pybuild, script, "--network=default").split() == ["tried"]
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()


def test_started_from_a_hostile_folder(pybuild: Pybuild, tmp_path: Path) -> None:
    """Modules of the current folder are never imported (architecture 6)."""
    evil = tmp_path / "evil"
    for name in ("builder", "grammar", "cache", "json", "lark", "pyroute2"):
        (evil / name).mkdir(parents=True)
        (evil / name / "__init__.py").write_text("raise SystemExit('PWNED')")
    (evil / "Dockerfile").write_text("FROM busybox\nRUN true\n")
    done = pybuild("--no-cache", ".", cwd=evil).ok()
    assert "PWNED" not in done.err + done.out


# -- pybuild run ---------------------------------------------------------------------------


def test_run_command(pybuild: Pybuild) -> None:
    """An image's own command, another one, its code, its input; what it writes is gone."""
    context = pybuild.context(
        'FROM busybox\nENV a=b\nWORKDIR /w\nENTRYPOINT ["sh", "-c"]\nCMD ["echo $a; pwd; echo x > /x"]\n'
    )
    pybuild("-t", "runme", "--network=none", context).ok()
    first = pybuild("run", "--network=none", "runme").ok()
    assert first.out == "b\n/w\n"
    assert pybuild("run", "--network=none", "runme", "ls /x").code == 1
    assert pybuild("run", "--network=none", "runme", "exit 9").code == 9
    assert pybuild("run", "--network=none", "runme", "sh -c 'kill -9 $$'; exit $?").code == 137
    assert pybuild("run", "-i", "--network=none", "runme", "cat", stdin=b"in").out == "in"
    assert pybuild("run", "--network=none", "nope").failed().err.startswith("error: there is no image")


def test_insecure(pybuild: Pybuild) -> None:
    """Every capability, but of the step's own user namespace; only where the command line allows it."""
    text = "FROM busybox\nRUN --security=insecure grep CapEff /proc/self/status > /c; cat /proc/keys > /k\n"
    assert "security.insecure is not allowed" in pybuild.refuse(text, None, "--network=none")
    image = pybuild.build(text, None, "--network=none", "--allow", "security.insecure")
    assert int(image.read("c").split()[1], 16).bit_count() > 35
    plain = pybuild.build(
        "FROM busybox\nRUN --security=sandbox grep CapEff /proc/self/status > /c\n", None, "--network=none"
    )
    assert int(plain.read("c").split()[1], 16) == 0xA80425FB
    assert "is not valid" in pybuild.refuse("FROM busybox\nRUN --security=x true\n")
    pybuild("--allow", "everything", pybuild.context("FROM scratch\n")).failed(2)


def test_allowed_host_network(pybuild: Pybuild) -> None:
    text = "FROM busybox\nRUN --network=host ls /sys/class/net > /n\n"
    image = pybuild.build(text, None, "--allow", "network.host", "--network=none")
    assert set(image.read("n").decode().split()) == set(os.listdir("/sys/class/net"))


def test_lines_without_end(pybuild: Pybuild) -> None:
    """A step that writes much waits for nobody to show it: a line costs next to nothing."""
    context = pybuild.context("FROM busybox\nRUN seq 300000; printf 'x\\r\\n\\ty\\033z\\n\\nend'\n")
    done = pybuild("--network=none", "--no-cache", context, timeout=10).ok()
    shown = [line.split(" ", 2)[2] for line in done.err.splitlines() if re.match(r"#2 [0-9.]+ ", line)]
    assert shown[:-4] == [str(number) for number in range(1, 300_001)]
    assert shown[-4:] == ["x", "\ty\\x1bz", "", "end"]


@pytest.mark.parametrize("isolation", ["namespaces", "chroot"])
def test_debug_prints_operations(pybuild: Pybuild, isolation: str) -> None:
    """--debug shows how a container is made; what two steps share is shown once, contents never."""
    text = "FROM busybox\nRUN --mount=type=secret,id=s true\nRUN true\n"
    (pybuild.work / "secret").write_text("never shown")
    options = ("--network=none", "--no-cache", f"--isolation={isolation}", "--debug")
    done = pybuild(*options, f"--secret=id=s,src={pybuild.work}/secret", pybuild.context(text)).ok()
    lines = [line.split(" ", 2)[2] for line in done.err.splitlines() if line.startswith("debug: ")]
    assert lines.count("Execute argv=[/bin/sh, -c, true] env=PATH") == 2
    shared = "Mask path=proc/kcore when=always" if isolation == "namespaces" else "EnterChroot"
    assert lines.count(shared) == 1
    assert "never shown" not in done.err
