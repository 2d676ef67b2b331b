"""pybuild run: containers from images, and what the command line may change."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from harness import PYBUILD, Pybuild
from rootless import Installation, Rootless, command

pytestmark = pytest.mark.e2e

NONE = "--network=none"
TEXT = """\
FROM busybox
ENV A=1 B=2
WORKDIR /w
USER 7:8
ENTRYPOINT ["echo", "in:"]
CMD ["it"]
"""


@pytest.fixture
def image(pybuild: Pybuild) -> Pybuild:
    pybuild(NONE, "-q", "-t", "app", pybuild.context(TEXT)).ok()
    return pybuild


@pytest.mark.parametrize(
    ("options", "words", "expected"),
    [
        ("", "", "in: it"),
        ("", "that", "in: that"),
        ("--entrypoint=pwd", "", "/w"),
        ("--entrypoint=pwd -w /etc", "", "/etc"),
        ("--entrypoint=pwd --workdir=/new/one", "", "/new/one"),
        ("--entrypoint=id", "-u", "7"),
        ("--entrypoint=id -u 5:6", "-g", "6"),
        ("--entrypoint=", "echo bare", "bare"),
        ("--rm --entrypoint=env -e A=3 -e C -e D -e E=x=y", "", "A=3\nB=2\nC=5\nE=x=y"),
    ],
)
def test_what_is_run(image: Pybuild, options: str, words: str, expected: str) -> None:
    done = image("run", NONE, *options.split(), "app", *words.split(), env={"C": "5"}).ok()
    lines = [line for line in done.out.splitlines() if not line.startswith(("PATH=", "HOME="))]
    assert "\n".join(lines) == expected


def test_file_of_variables(image: Pybuild, tmp_path: Path) -> None:
    (tmp_path / "vars").write_text("# a comment\nA=from file\n\nC\nD=4\n")
    options = ("--entrypoint=env", "--env-file", tmp_path / "vars", "-e", "D=5")
    said = image("run", NONE, *options, "app").ok().out
    assert "A=from file\n" in said and "C=" not in said and "D=5\n" in said


def test_no_command(pybuild: Pybuild) -> None:
    pybuild(NONE, "-q", "-t", "mute", pybuild.context("FROM scratch\nLABEL a=b\n")).ok()
    assert "names no command" in pybuild("run", NONE, "mute").failed(2).err


def test_volumes(image: Pybuild, tmp_path: Path) -> None:
    """Root inside is who owns the files outside; ro is ro; what is made is made as whoever runs it."""
    folder = tmp_path / "shown"
    folder.mkdir()
    (folder / "f").write_text("1")
    script = "cat /v/f && stat -c %u /v/f && touch /v/new /r/new; cat /r/f /one"
    volumes = ("-v", f"{folder}:/v", "-v", f"{folder}:/r:ro", "-v", f"{folder}/f:/one")
    done = image("run", NONE, "--entrypoint=sh", "-u", "0", *volumes, "app", "-c", script)
    assert done.code == 0 and done.out == "10\n11" and "Read-only file system" in done.err
    made = (folder / "new").stat()
    assert (made.st_uid, made.st_gid) == (0, 0)
    relative = image("run", NONE, "--entrypoint=ls", "-v", "./shown:/v", "app", "/v", cwd=tmp_path).ok()
    assert relative.out == "f\nnew\n"


def test_volume_of_a_user(installation: Installation, busybox: Path) -> None:
    """As it is for root, with the ids that the user has; what is another's stays out of reach."""
    user: Rootless = installation.pybuild(installation.ranges, "volumes")
    (user.work / "busybox.tar").write_bytes(busybox.read_bytes())
    user("load", user.work / "busybox.tar").ok()
    script = "touch /v/new && stat -c %u /v/new /v && ! cat /v/secret"
    secret = user.work / "secret"
    secret.write_text("x")
    secret.chmod(0o600)  # root's
    done = user("run", NONE, "-v", f"{user.work}:/v", "busybox", "sh", "-c", script).ok()
    assert done.out == "0\n0\n"
    assert (user.work / "new").stat().st_uid == user.user.uid


@pytest.mark.parametrize(
    "options",
    """
    -v/nothing/there:/x -vname:/x -v/tmp:x -v/tmp:/x:rx -p80 -p1:2:3:4 -px:80 -p70000:80 -p8080:0 -p127.0.0.1:80/udp
    -v/tmp:/ -v/tmp:/.. --cap-add=SYS_ADMIN,-v/tmp:/x:ro
    --env==x -wrelative --network=host,-p1:1
    """.split(),
)
def test_options_that_make_no_sense(image: Pybuild, options: str) -> None:
    image("run", *options.split(","), "app").failed(2)


SERVER = "while true; do echo served-by-$1 | nc -l -p $2; done"


def hear(port: int, patience: float = 10.0) -> str:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as server:
                if said := server.makefile().read().strip():
                    return said
        except OSError:
            pass
        time.sleep(0.05)
    return ""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.mark.parametrize("network", ["none", "default"])
def test_ports_and_neighbours(pybuild: Pybuild, busybox: Path, network: str) -> None:
    """Two containers of one image at once: each its own port, processes and files; they end with Ctrl-C."""
    running = []
    ports = [free_port(), free_port()]
    for number, port in enumerate(ports):
        script = f"echo {number} > /own; echo mine: $(cat /own) >&2; {SERVER}"
        words, env = command(
            pybuild, "run", f"--network={network}", "-p", f"{port}:80", "busybox", "sh", "-c", script, "sh", str(number), "80"
        )  # fmt: skip
        running.append(subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True))
    try:
        for number, (port, process) in enumerate(zip(ports, running, strict=True)):
            assert process.stderr is not None and process.stderr.readline() == f"mine: {number}\n"
            assert hear(port) == f"served-by-{number}"
            assert hear(port) == f"served-by-{number}", "more than once"
    finally:
        for process in running:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)
    assert [process.returncode for process in running] == [130, 130]
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", ports[0]), timeout=1)


def test_much_through_a_port(pybuild: Pybuild) -> None:
    """Both ways at once, to the last byte, and the end of either way is passed on."""
    port = free_port()
    words, env = command(
        pybuild, "run", NONE, "-p", f"{port}:7", "busybox", "nc", "-l", "-p", "7", "-e", "cat"
    )
    sent = os.urandom(3 << 20)
    with subprocess.Popen(words, env=env) as process:
        end = time.monotonic() + 10
        while True:
            try:
                connection = socket.create_connection(("127.0.0.1", port), timeout=20)
                break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.05)
        with connection:

            def send() -> None:
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)

            threading.Thread(target=send).start()
            heard = b""
            while data := connection.recv(1 << 16):
                heard += data
        assert heard == sent and process.wait(20) == 0


def test_port_that_is_taken(image: Pybuild) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        said = image("run", NONE, "-p", f"{port}:80", "app").failed().err
    assert "listening on a port: " in said


def test_many_connections(pybuild: Pybuild) -> None:
    """More than can be served are closed, and those that come later are served."""
    port = free_port()
    words, env = command(
        pybuild, "run", NONE, "-p", f"{port}:80", "busybox", "sh", "-c", SERVER, "sh", "x", "80"
    )
    with subprocess.Popen(["sh", "-c", 'ulimit -n 256; exec "$@"', "sh", *words], env=env) as process:
        try:
            assert hear(port) == "served-by-x"
            idle = []
            for _ in range(150):
                try:
                    idle.append(socket.create_connection(("127.0.0.1", port), timeout=1))
                except OSError:
                    break
            for one in idle:
                one.close()
            assert hear(port, 20) == "served-by-x"
        finally:
            process.send_signal(signal.SIGINT)


def test_volume_over_a_link_to_nowhere(pybuild: Pybuild, tmp_path: Path) -> None:
    pybuild(NONE, "-t", "dangling", pybuild.context("FROM busybox\nRUN ln -s nowhere /l\n")).ok()
    said = pybuild("run", NONE, "-v", f"{tmp_path}:/l:z", "dangling", "true").failed().err
    assert "mounting at /l: the image has a link to nowhere there" in said


def test_reader_that_went_away(pybuild: Pybuild) -> None:
    """A container whose output nobody reads any more ends, as programs in a pipe do."""
    with subprocess.Popen(
        [PYBUILD, "run", NONE, "busybox", "yes"], env=pybuild.environment(), stdout=subprocess.PIPE
    ) as container:
        assert container.stdout is not None
        assert container.stdout.read(2) == b"y\n"
        container.stdout.close()
        container.wait(timeout=10)


# -- how it ends -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "sent", "code"),
    [
        ("trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done", [signal.SIGTERM], 7),
        ("trap 'exit 8' HUP; trap '' INT; echo up; while :; do sleep 0.05; done", [signal.SIGINT, signal.SIGHUP], 8),
        ("trap 'exit 9' USR1; echo up; while :; do sleep 0.05; done", [signal.SIGUSR1], 9),
        ("echo up; exec sleep 60", [signal.SIGTERM], 143),
        ("echo up; exec sleep 60", [signal.SIGHUP], 129),
        ("trap '' TERM; echo up; sleep 60", [signal.SIGTERM] * 3, 137),
    ],
)  # fmt: skip
def test_signals(pybuild: Pybuild, script: str, sent: list[signal.Signals], code: int) -> None:
    """The command gets them and says how it ends; what a shell would be ended by ends it; the third kills."""
    words, env = command(pybuild, "run", NONE, "busybox", "sh", "-c", script)
    with subprocess.Popen(
        words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        for number in sent:
            process.send_signal(number)
            time.sleep(0.1)
        _out, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (code, "")


@pytest.mark.parametrize(
    ("words", "code"), [("nosuch", 127), ("/no/such", 127), ("/etc", 126), ("/etc/passwd", 126)]
)
def test_commands_that_cannot_be_run(pybuild: Pybuild, words: str, code: int) -> None:
    assert f'exec: "{words}"' in pybuild("run", NONE, "busybox", words).failed(code).err


def test_output_that_cannot_be_written(pybuild: Pybuild) -> None:
    """A reader that went away ends it without a word, as it does programs; a full disk is an error."""
    for script, code, error in (
        ("run --network=none busybox yes | head -1; exit ${PIPESTATUS[0]}", 141, ""),
        ("run --network=none busybox yes > /dev/full", 1, "standard output"),
        ("run --network=none busybox echo >&-", 0, ""),
    ):
        words = ["bash", "-c", f"{PYBUILD} {script}"]
        done = subprocess.run(words, env=pybuild.environment(), capture_output=True, text=True, check=False)
        assert done.returncode == code and error in done.stderr and bool(error) == bool(done.stderr), done


# -- what docker's command lines say ---------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xef\xbb\xbfA=1\nD=2\n", "A=1\nD=2"),
        (b"A=1\r\nD=x\ry\r\n", "A=1\nD=x\ry"),
        (b" \tA= 1 \n#B=2\n\nD=\xe9 =", "A= 1 \nD=\xe9 ="),
        (b"# " + b"x" * (2 << 20) + b"\nA=1\nD=2\n", "A=1\nD=2"),
        (b"export A=1\n", ""),
        (b"A=1\nD B=1\n", ""),
        (b"A\t=1\n", ""),
        (b"=1\n", ""),
    ],
)  # fmt: skip
def test_files_of_variables(image: Pybuild, tmp_path: Path, data: bytes, expected: str) -> None:
    """All of it, by docker's rules, or an error that names the line."""
    (tmp_path / "vars").write_bytes(data)
    words = [PYBUILD, "run", NONE, "--entrypoint=env", "--env-file", str(tmp_path / "vars"), "app"]
    done = subprocess.run(words, env=image.environment(), capture_output=True, check=False)
    if expected:
        lines = [line for line in done.stdout.decode("latin-1").split("\n") if line.startswith(("A=", "D="))]
        assert "\n".join(lines) == expected
    else:
        assert done.returncode == 2 and f"line {data.count(10)}: ".encode() in done.stderr, done.stderr


def test_a_file_of_variables_that_is_too_long(image: Pybuild, tmp_path: Path) -> None:
    (tmp_path / "vars").write_bytes(b"A=1\n" * (5 << 20))
    assert "longer than 16 MiB" in image("run", NONE, "--env-file", tmp_path / "vars", "app").failed().err


def test_entrypoint_is_one_word(pybuild: Pybuild) -> None:
    text = "FROM busybox\nRUN mkdir '/my dir' && printf '#!/bin/sh\\necho fine $*' > '/my dir/x' && chmod 755 '/my dir/x'\n"
    pybuild(NONE, "-t", "blank", pybuild.context(text)).ok()
    assert pybuild("run", NONE, "--entrypoint", "/my dir/x", "blank", "a").ok().out == "fine a\n"
    assert '"sh -c"' in pybuild("run", NONE, "--entrypoint", "sh -c", "busybox").failed(127).err


@pytest.mark.parametrize("source", ["/dev/null", "/proc/meminfo", "/sys/kernel/mm", "/proc/self"])
def test_volumes_of_the_kernel(pybuild: Pybuild, source: str) -> None:
    """Devices, and what is in /proc and /sys, have owners that cannot be mapped, and need none."""
    target = "/etc/motd" if source == "/dev/null" else "/x"
    script = f"if [ -d {target} ]; then ls {target}; else cat {target}; fi"
    done = pybuild("run", NONE, "-v", f"{source}:{target}:ro", "busybox", "sh", "-c", script)
    assert done.err == "" and (done.out != "" or source == "/dev/null")
    if os.access("/dev/sda", os.F_OK):
        assert "denied" in pybuild("run", NONE, "-v", "/dev/sda:/x", "busybox", "head", "-c1", "/x").err


def test_a_volume_with_others_in_it(pybuild: Pybuild, tmp_path: Path) -> None:
    """Those that can have mapped ids have them, whatever else is mounted there."""
    for name in ("proc", "disk"):
        (tmp_path / "shown" / name).mkdir(parents=True)
    script = f"""
        mount -t proc proc {tmp_path}/shown/proc && mount -t tmpfs tmpfs {tmp_path}/shown/disk
        {PYBUILD} run {NONE} -v {tmp_path}/shown:/v busybox sh -c 'touch /v/new /v/disk/new; ls -ld /v/proc/cpuinfo'
    """
    words = ["unshare", "-m", "sh", "-ec", script]
    done = subprocess.run(words, env=pybuild.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "nobody" in done.stdout, done.stderr
    assert (tmp_path / "shown/new").stat().st_uid == 0


def test_words_of_volumes(pybuild: Pybuild, tmp_path: Path) -> None:
    """Those without an effect here are taken, others named; a volume in a volume has its place made."""
    (tmp_path / "d").mkdir()
    (tmp_path / "e").mkdir()
    (tmp_path / "e/f").write_text("1")
    for word in ("cached", "delegated,ro", "consistent", "z,rw", "rprivate"):
        assert (
            pybuild("run", NONE, "-v", f"./e:/x:{word}", "busybox", "cat", "/x/f", cwd=tmp_path).ok().out
            == "1"
        )
    for word, said in (("shared", "'shared'"), ("U", "'U'"), ("ro,rw", "both ro and rw")):
        assert (
            said
            in pybuild("run", NONE, "-v", f"./e:/x:{word}", "busybox", "true", cwd=tmp_path).failed(2).err
        )
    words = ["-v", "./d:/x:ro", "-v", "./e:/x/sub", "busybox", "true"]
    said = pybuild("run", NONE, *words, cwd=tmp_path).failed().err
    assert "mounting at /x/sub: there is no such place" in said and "read-only" in said
    words = ["-v", "./e:/x/sub", "-v", "./d:/x", "busybox", "cat", "/x/sub/f"]
    assert pybuild("run", NONE, *words, cwd=tmp_path).ok().out == "1"
