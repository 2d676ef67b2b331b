"""RUN --mount=type=ssh: a step uses the user's agent, and cannot change or keep it."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import PYBUILD, Pybuild

from builder.plan.ops import SshMount
from builder.request import Ssh
from builder.run.ssh import agent_socket

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "of-a-test", "-f", path], check=True)
    return path


@pytest.fixture
def agent(key: Path, tmp_path: Path) -> Iterator[Path]:
    """A real agent with one key; its socket."""
    path = tmp_path / "agent"
    served = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < end and served.poll() is None
        time.sleep(0.01)
    add = {**os.environ, "SSH_AUTH_SOCK": str(path)}
    subprocess.run(["ssh-add", "-q", key], env=add, check=True, capture_output=True)
    yield path
    served.kill()
    served.wait()


def with_ssh_add(pybuild: Pybuild, lines: str) -> Path:
    """A context whose image has this machine's ssh-add and the libraries it needs."""
    context = pybuild.context(f"FROM busybox\nCOPY root /\n{lines}\n")
    said = subprocess.check_output(["ldd", "/usr/bin/ssh-add"], text=True)
    for name in ["/usr/bin/ssh-add", *re.findall(r"(/\S+) \(0x", said)]:
        copy = context / "root" / name.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(Path(name).read_bytes())
        copy.chmod(0o755)
    return context


def listed(pybuild: Pybuild, lines: str, *options: str | Path) -> str:
    done = pybuild(
        *options, "-t", "s", "--network=none", "--progress=plain", with_ssh_add(pybuild, lines)
    ).ok()
    return done.err


def test_default(pybuild: Pybuild, agent: Path) -> None:
    said = listed(pybuild, "RUN --mount=type=ssh ssh-add -l", "--ssh", f"default={agent}")
    assert "of-a-test" in said
    done = pybuild(
        "--ssh", "default", "--network=none", "--no-cache",
        with_ssh_add(pybuild, "RUN --mount=type=ssh ssh-add -L && echo at $SSH_AUTH_SOCK"),
        env={"SSH_AUTH_SOCK": str(agent)},
    ).ok()  # fmt: skip
    assert "ssh-ed25519" in done.err and "at /run/buildkit/ssh_agent.0" in done.err


def test_key_file(pybuild: Pybuild, key: Path) -> None:
    """For a key an agent is made that lives as long as the step."""
    assert "of-a-test" in listed(pybuild, "RUN --mount=type=ssh,id=k ssh-add -l", "--ssh", f"k={key}")


def test_options(pybuild: Pybuild, agent: Path) -> None:
    line = "RUN --mount=type=ssh,id=a,target=/x/sock,mode=0640,uid=3,gid=4 stat -c '%F %a %u %g' /x/sock"
    assert "socket 640 3 4" in listed(pybuild, line, "--ssh", f"a={agent}")
    two = "RUN --mount=type=ssh,id=a --mount=type=ssh,id=a ls /run/buildkit"
    said = listed(pybuild, two, "--ssh", f"a={agent}")
    assert "ssh_agent.0" in said and "ssh_agent.1" in said


def test_agent_cannot_be_changed(pybuild: Pybuild, agent: Path) -> None:
    """Only listing and signing is passed on: nothing is taken away, and nothing locked."""
    line = "RUN --mount=type=ssh ssh-add -D; ssh-add -d; ssh-add -l"
    assert "of-a-test" in listed(pybuild, line, "--ssh", f"default={agent}")
    here = {**os.environ, "SSH_AUTH_SOCK": str(agent)}
    assert b"of-a-test" in subprocess.check_output(["ssh-add", "-l"], env=here)


def test_leaves_nothing(pybuild: Pybuild, agent: Path) -> None:
    context = pybuild.context("FROM busybox\nRUN --mount=type=ssh true\n")
    image = pybuild.export(context, "--ssh", f"default={agent}", "--network=none")
    assert image.layers[-1].names == [] and str(agent).encode() not in b"".join(image.files.values())
    left = [name for _, _, files in os.walk(pybuild.store) for name in files if name in ("socket", "agent")]
    assert left == []


def test_many_connections(agent: Path, tmp_path: Path) -> None:
    """A step cannot make the builder hold connections without end; what it gives up is free again."""
    mount = SshMount("default", "/s", False, 0o600, 0, 0)
    with agent_socket(Ssh(str(agent)), mount, str(tmp_path), "socket"):
        for _ in range(2):
            clients = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(50)]
            answers = []
            for client in clients:
                client.settimeout(10)
                client.connect(str(tmp_path / "socket"))
            for client in clients:
                try:
                    client.sendall(struct.pack(">IB", 1, 11))
                    answers.append(bool(client.recv(4)))
                except OSError:
                    answers.append(False)
            for client in clients:
                client.close()
            assert sum(answers) == 32
            time.sleep(0.3)


def test_killed_build_leaves_no_agent(fresh: Pybuild, key: Path) -> None:
    context = fresh.context("FROM busybox\nRUN --mount=type=ssh echo here && sleep 60\n")
    build = subprocess.Popen(
        [PYBUILD, "--network=none", "--ssh", f"default={key}", context],
        env=fresh.environment(),
        stderr=subprocess.PIPE,
    )
    assert build.stderr is not None
    while b"here" not in (line := build.stderr.readline()) or b"RUN" in line:
        assert line
    assert agents(build.pid)
    build.kill()
    build.wait()
    build.stderr.close()
    end = time.monotonic() + 2
    while agents(build.pid) and time.monotonic() < end:
        time.sleep(0.02)
    assert not agents(build.pid)


def agents(builder: int) -> list[bytes]:
    """The command lines of agents that a build has started."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            if command.startswith(b"ssh-agent") and b"/proc/%d/" % builder in command:
                found.append(command)
    return found


def test_not_given(pybuild: Pybuild) -> None:
    listed(pybuild, "RUN --mount=type=ssh test ! -e $SSH_AUTH_SOCK")
    said = pybuild.refuse("FROM busybox\nRUN --mount=type=ssh,required true\n", None, "--network=none")
    assert "unset ssh forward key default" in said and "--ssh default" in said


def test_agent_is_no_input(pybuild: Pybuild, agent: Path, key: Path) -> None:
    context = pybuild.context("FROM busybox\nRUN --mount=type=ssh true\n")
    pybuild("--ssh", f"default={agent}", "--network=none", context).ok()
    assert pybuild("--ssh", f"default={key}", "--network=none", context).ok().executed == 0


@pytest.mark.parametrize("text", ["", "=x", "a=/nowhere", "default"])
def test_no_agent(pybuild: Pybuild, text: str) -> None:
    pybuild("--ssh", text, pybuild.context("FROM scratch\n")).failed(2)


def test_damaged_key(pybuild: Pybuild, tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("no key")
    context = pybuild.context("FROM busybox\nRUN --mount=type=ssh echo damaged\n")
    assert (
        "reading the key"
        in pybuild("--ssh", f"default={tmp_path}/bad", "--network=none", context).failed().err
    )


def test_agent_that_lies(pybuild: Pybuild, tmp_path: Path) -> None:
    """A huge length, or nothing at all, ends the connection and no more."""
    path = tmp_path / "liar"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen()
        server.settimeout(30)

        def serve() -> None:
            client, _ = server.accept()
            client.recv(100)
            client.sendall(struct.pack(">I", 1 << 31))
            client.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        listed(pybuild, "RUN --mount=type=ssh ssh-add -l || true", "--ssh", f"default={path}")
        thread.join(30)
