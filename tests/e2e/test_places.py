"""Builds in containers as docker, podman and Kubernetes start them, with nothing allowed besides.

Each gives the image that this machine gives with namespaces. ``scripts/places`` runs more in each.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness import Pybuild, Tree, make_tree
from oci import Image, read_image
from place import MEMORY, Place
from places import CHOSEN, REFUSING, opened
from trees import difference, of_image

pytestmark = [pytest.mark.e2e, pytest.mark.interop]

NONE = "--network=none"
EPOCH = "SOURCE_DATE_EPOCH=1600000000"
BY_CHROOT = "steps are isolated by chroot"
ATTRIBUTES = r"""
#include <sys/xattr.h>
int main(int count, char **names) {
    static const unsigned capability[] = {0x02000001, 1 << 10, 0, 0, 0};  /* cap_net_bind_service+ep */
    return setxattr(names[1], "user.of", "pybuild", 7, 0)
        || setxattr(names[1], "security.capability", capability, sizeof capability, 0);
}
"""
SERVER = """
import socket
with socket.create_server(("127.0.0.1", 8099)) as server:
    server.settimeout(60)
    print("here", flush=True)
    server.accept()
"""
EVERYTHING = """FROM busybox AS build
COPY --chown=1000:1000 src /src
RUN --mount=type=cache,target=/cache mkdir /out && cp -a /src/a /out/ && chmod 4755 /out/a && echo x > /cache/x \
    && ln /out/a /out/b && ln -s a /out/l && rm /bin/ls && rm -r /root && mkdir /root && echo new > /root/new
RUN --mount=type=cache,target=/cache cat /cache/x > /out/cached
RUN --mount=target=/context --mount=type=tmpfs,target=/t <<END
    set -e
    cp /context/src/d/f /out/bound
    touch /t/x
    /src/attributes /out/cached
    mkfifo /out/pipe
    mkdir -m 2775 /out/group
    ln /out/bound /out/group/bound
    echo 1 > /out/group/own
    chown 5:6 /out/group
END
COPY <<one <<two /texts/
1
one
2
two
USER 1000:50
RUN --mount=type=secret,id=s,uid=1000 --mount=type=tmpfs,target=/t test "$(cat /run/secrets/s)" = 1 && touch /t/x
RUN id > /tmp/id && cd /src && rm d/f && ln a c && if touch /out/no 2>/tmp/said; then exit 9; fi
USER 0
RUN chown -h 7:8 /out/l && rm -r /src/d && mv /texts /moved
RUN echo 2 >> /out/group/own
RUN sleep 1000 & (setsid sleep 1000 > /dev/null 2>&1 &) ; echo $? > /out/code
SHELL ["/bin/sh", "-ec"]
RUN set -- $(ls /src | sort) && echo "$@" > /names || busybox ls /src > /names
FROM scratch AS copied
COPY --from=build / /
FROM build
COPY --from=copied /out /copied/
COPY --from=build --chown=5:6 /out /owned/
ENV a=1
WORKDIR /w
"""
FILES: Tree = {"src": {"a": "#!/bin/sh\n", "d": {"f": "1"}}}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The context, with times of its own."""
    folder = make_tree(tmp_path_factory.mktemp("source") / "context", {"Dockerfile": EVERYTHING, **FILES})
    program = folder / "src/attributes"
    compiler = ["gcc", "-static", "-xc", "-", "-o", str(program)]
    subprocess.run(compiler, input=ATTRIBUTES, text=True, check=True)
    subprocess.run(["find", folder, "-exec", "touch", "-hd", "@1500000000", "{}", "+"], check=True)
    return folder


@pytest.fixture(scope="module")
def expected(source: Path, shared_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The image that this machine builds, with namespaces."""
    work = tmp_path_factory.mktemp("expected")
    (work / "s").write_text("1")
    archive = work / "image.tar"
    Pybuild(shared_store, work)("--isolation=namespaces", *_build(work, archive, source)).ok()
    return read_image(archive)


def _build(work: Path, archive: Path, context: Path) -> list[str]:
    """What builds the context into an archive, with times that depend on nothing."""
    output = f"type=oci,rewrite-timestamp=true,dest={archive}"
    return [NONE, "--build-arg", EPOCH, f"--secret=id=s,src={work}/s", "-o", output, str(context)]


@pytest.fixture(scope="module")
def places(source: Path, busybox: Path) -> Iterator[dict[str, Place]]:
    """The places that a test has asked for, each with busybox in its store and the context at hand."""
    with ExitStack() as stack:
        yield _Opened(stack, source, busybox)


class _Opened(dict[str, Place]):
    def __init__(self, stack: ExitStack, source: Path, busybox: Path) -> None:
        super().__init__()
        self._stack, self._source, self._busybox = stack, source, busybox

    def __missing__(self, name: str) -> Place:
        place = self._stack.enter_context(opened(name))
        subprocess.run(["cp", "-a", self._source, self._busybox, place.work], check=True)
        (place.work / "s").write_text("1")
        if name not in REFUSING:
            place("load", place.work / self._busybox.name).ok()
        self[name] = place
        return place


@pytest.fixture(params=CHOSEN)
def place(request: pytest.FixtureRequest, places: dict[str, Place]) -> Place:
    return places[request.param]


def write(place: Place, dockerfile: str, name: str = "small") -> Path:
    """A context that is a Dockerfile."""
    return make_tree(place.work / name, {"Dockerfile": dockerfile})


def same(found: Image, expected: Image) -> None:
    """Compare layer by layer, down to the bytes. Names are compared first: they are easier to read."""
    assert [layer.names for layer in found.layers] == [layer.names for layer in expected.layers]
    different = difference(of_image(found), of_image(expected))
    assert not different, "\n".join(different)
    assert found.config == expected.config and found.manifest == expected.manifest


# -- builds --------------------------------------------------------------------------------


def test_same_image(place: Place, expected: Image) -> None:
    """By what ``auto`` chooses there; a second build is cached, and nothing is left running."""
    archive = place.work / "image.tar"
    build = _build(place.work, archive, place.work / "context")
    first = place(*build).ok()
    assert (BY_CHROOT in first.err) == (CHOSEN[place.name] == "chroot"), first.err
    same(read_image(archive), expected)
    again = place(*build).ok()
    assert again.executed == 0 and again.cached
    assert gone(place)


def test_store_in_memory(place: Place, expected: Image) -> None:
    """On a tmpfs, where overlays can be mounted if anything can."""
    store = f"{MEMORY}/store"
    place("load", place.work / "busybox.tar", store=store).ok()
    archive = place.work / "memory.tar"
    build = _build(place.work, archive, place.work / "context")
    place(*build, store=store).ok()
    same(read_image(archive), expected)
    assert place(*build, store=store).ok().executed == 0
    place.do("/usr/bin/rm", "-rf", store).ok()


def test_step_that_fails(place: Place) -> None:
    failed = place(NONE, write(place, "FROM busybox\nRUN echo said && exit 7\n")).failed().err
    assert "exit code: 7" in failed and "said" in failed and "Dockerfile:2" in failed


def test_no_network(place: Place) -> None:
    """With --network=none a step does not reach a server of its container."""
    serve = place.command("/usr/bin/python3", "-c", SERVER)
    with subprocess.Popen(serve, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None and server.stdout.readline()
        step = "if nc -w 1 127.0.0.1 8099 < /dev/null; then exit 9; fi"
        place(NONE, "--no-cache", write(place, f"FROM busybox\nRUN {step}\n")).ok()
        reach = place("--network=host", "--no-cache", write(place, f"FROM busybox\nRUN {step}\n"))
        assert server.wait(timeout=20) == 0 and "exit code: 9" in reach.failed().err


# -- the other commands --------------------------------------------------------------------


def test_commands(place: Place) -> None:
    text = "FROM busybox\nRUN echo hello > /hello\nUSER 1000\nCMD cat /hello; id -u\n"
    image = place("-q", NONE, "-t", "small", write(place, text)).ok().out.strip()
    assert place("run", NONE, "small").ok().out == "hello\n1000\n"
    assert (
        place("run", NONE, "-u", "0", "-e", "a=1", "small", "sh", "-c", "id -u; echo $a").ok().out == "0\n1\n"
    )
    assert place("run", NONE, "small", "sh", "-c", "exit 9").code == 9
    assert place("run", NONE, "-i", "busybox", "cat", stdin=b"given").ok().out == "given"
    assert json.loads(place("inspect", "small").ok().out)
    assert "echo hello > /hello" in place("history", "small").ok().out
    place("tag", "small", "other:2").ok()
    assert {"small:latest", "other:2"} <= {line.split()[0] for line in place("images").ok().out.splitlines()}
    archive = place.work / "small.tar"
    place("save", "small", "-o", archive).ok()
    place("rmi", "small", "other:2").ok()
    assert "other" not in place("images").ok().out
    assert "small" in place("load", archive).ok().out
    assert place("-q", NONE, "-t", "small", place.work / "small").ok().out.strip() == image
    layer = place.work / "root.tar"
    layer.write_bytes(read_image(archive).layers[0].data)
    place("import", layer, "imported:1").ok()
    assert place("run", NONE, "imported:1", "echo", "in").ok().out == "in\n"


def test_doctor(place: Place) -> None:
    """It finds what a build will do, and that it will do."""
    rows = {row["name"]: row for row in json.loads(place("doctor", "--json").ok().out)}
    assert rows["isolation"]["works"] in ("yes", "limited")
    assert rows["isolation"]["found"].startswith(CHOSEN[place.name]), rows["isolation"]


# -- ends ----------------------------------------------------------------------------------


def started(place: Place, anew: bool = False) -> tuple[subprocess.Popen[str], int]:
    """A build in a long step that has left processes behind it, and its pid in the place."""
    text = "FROM busybox\nRUN setsid sleep 1000 & (sleep 1000 &) ; echo here; sleep 1000\n"
    build = ["pybuild", NONE, "--no-cache", str(write(place, text, "long"))]
    command = place.command("/bin/sh", "-c", f"echo $$ >&2; exec {' '.join(build)}", anew=anew)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    pid = int(process.stderr.readline())
    while (line := process.stderr.readline()) and not line.endswith(" here\n"):
        pass
    assert line, "the build has ended"
    return process, pid


def gone(place: Place, seconds: float = 2) -> bool:
    """Whether nothing runs in the place any more, soon."""
    end = time.monotonic() + seconds
    while left := [found for found in place.processes() if not found.state.startswith("Z")]:
        if time.monotonic() > end:
            pytest.fail(f"still there after {seconds} s: {left}")
    return True


@pytest.mark.parametrize("number", [9, 15, 2])
def test_signal(place: Place, number: int) -> None:
    """A killed build leaves no process; one that is told to end says that it was cancelled. Another works."""
    process, pid = started(place)
    place.do("/usr/bin/kill", f"-{number}", str(pid)).ok()
    said = process.communicate(timeout=20)[1]
    assert process.returncode == (137 if number == 9 else 130)
    assert "Traceback" not in said
    assert gone(place)
    place(NONE, "--no-cache", write(place, "FROM busybox\nRUN echo fine > /f\n")).ok()


@pytest.mark.parametrize("number", ["KILL", "TERM", "INT"])
@pytest.mark.parametrize("name", ["docker", "podman-runc"])
def test_first_process(places: dict[str, Place], name: str, number: str) -> None:
    """A build that is process 1 of its container, as CI systems start it, is told to end too."""
    place = places[name]
    client = place.anew[: place.anew.index("run")]
    load = [
        "/bin/sh",
        "-ec",
        f"pybuild load {place.work}/busybox.tar; exec pybuild {NONE} {place.work}/first",
    ]
    write(place, "FROM busybox\nRUN (sleep 1000 &) ; echo here; sleep 1000\n", "first")
    command = place.command(*load, anew=True)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert process.stderr is not None
        while (line := process.stderr.readline()) and not line.endswith(" here\n"):
            pass
        assert line, "the build has ended"
        subprocess.run([*client, "kill", f"--signal={number}", "first"], check=True, capture_output=True)
        said = process.communicate(timeout=20)[1]
        assert "Traceback" not in said
        assert process.returncode == (137 if number == "KILL" else 130), said
    finally:
        process.kill()
        subprocess.run([*client, "rm", "-f", "first"], check=True, capture_output=True)


# -- refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFUSING)
def test_refused(places: dict[str, Place], name: str) -> None:
    """Where neither way is open one error says what to do."""
    place = places[name]
    said = place(NONE, place.work / "context", store="/tmp/store").failed().err
    assert re.search(r"hint: .*root.*hostUsers: false.*seccomp", said), said
    assert "hostUsers" in place("doctor", store="/tmp/store").out
    said = place("--isolation=chroot", NONE, place.work / "context", store="/tmp/store").failed().err
    assert "only root may chroot" in said
