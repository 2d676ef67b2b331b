"""What a Dockerfile or an image asks for, and does not get (RT-21 to RT-28)."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from confinement import differences, mounts, put_probe, read_report
from forgery import forged
from harness import Pybuild
from modes import NONE, Mode, host_values, overrides, printed, wanted_summary, with_probe
from rootless import command

pytestmark = pytest.mark.e2e


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
