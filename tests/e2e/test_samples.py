"""The samples build, run and export: what a newcomer does first."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import PYBUILD, Pybuild

pytestmark = pytest.mark.e2e

SAMPLES = Path(__file__).resolve().parents[2] / "samples"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Pybuild:
    """A store with the bases of the samples, made by the samples' own script."""
    work = tmp_path_factory.mktemp("samples")
    made = Pybuild(work / "store", work)
    path = f"{Path(PYBUILD).parent}:{os.environ['PATH']}"
    subprocess.run(
        [SAMPLES / "make-bases"], env=made.environment({"PATH": path}), check=True, capture_output=True
    )
    return made


def test_shell_tool(samples: Pybuild) -> None:
    samples("-t", "shell-tool", SAMPLES / "shell-tool").ok()
    assert samples("run", "-i", "shell-tool", stdin=b"one two three").out == "3 words\n"
    assert samples("run", "shell-tool", "a", "b").out == "2 words\n"


def test_c_program_on_scratch(samples: Pybuild) -> None:
    samples("-t", "c-scratch", SAMPLES / "c-scratch").ok()
    image = samples.export(SAMPLES / "c-scratch")
    assert list(image.tree()) == ["hello"]
    assert samples("run", "--network=none", "c-scratch", "all").out == "hello, all\n"


def test_diamond(samples: Pybuild) -> None:
    """Both sides of the diamond are under way before either is done."""
    said = samples("-t", "diamond", SAMPLES / "diamond").ok().err.splitlines()
    steps = {line.split()[0]: line for line in said if "RUN sleep" in line}
    assert len(steps) == 2
    ends = [said.index(line) for line in said if line.split()[0] in steps and " DONE " in line]
    assert max(said.index(line) for line in steps.values()) < min(ends)
    assert samples("run", "diamond").out == "shared\nleft\nright\n"


PROBE = """\
#include <stdio.h>
#include <unistd.h>
#include <sys/syscall.h>
int main(void) {
    printf("%ld\\n", syscall(SYS_request_key, "user", "pybuild-test", 0, 0));
}
"""
WITH_KEY = """\
import ctypes, os, sys
add_key, keyctl = {"x86_64": (248, 250), "aarch64": (217, 219)}[os.uname().machine]
libc = ctypes.CDLL(None)
assert libc.syscall(keyctl, 1, None) > 0
assert libc.syscall(add_key, b"user", b"pybuild-test", b"SECRET", 6, -3) > 0
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_keys_of_the_caller(samples: Pybuild) -> None:
    """RT-14: a step does not have the session keyring of who builds, which here holds a key."""
    lines = (SAMPLES / "c-scratch/Dockerfile").read_text().splitlines()
    dockerfile = "\n".join([lines[1], lines[2], "COPY probe.c /", "RUN gcc -o /probe /probe.c && /probe"])
    context = samples.context(dockerfile + "\n", {"probe.c": PROBE})
    done = subprocess.run(
        [sys.executable, "-c", WITH_KEY, PYBUILD, context],
        env=samples.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [
        line.split()[-1]
        for line in done.stderr.splitlines()
        if line.startswith("#4 ") and line.endswith(" -1")
    ]
    assert answers == ["-1"], done.stderr


@pytest.fixture
def web(samples: Pybuild) -> Iterator[str]:
    """The web application, running; where it answers."""
    samples("-t", "web", SAMPLES / "web-python", timeout=600).ok()
    port = "18471"
    command = ["sh", "-c", f"PORT={port} exec python app.py"]
    served = subprocess.Popen([PYBUILD, "run", "--network=host", "web", *command], env=samples.environment())
    yield f"http://127.0.0.1:{port}/"
    served.terminate()
    assert served.wait(timeout=20) == 143


def test_web_application(samples: Pybuild, web: str) -> None:
    """It answers; it runs as its user; what built it is not in it."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + 30
    while True:
        try:
            with opener.open(web, timeout=5) as answer:
                assert answer.read() == b"built by pybuild\n"
            break
        except OSError:
            assert time.monotonic() < end, "it does not answer"
            time.sleep(0.2)
    assert samples("run", "--network=none", "web", "id", "-u").out == "1000\n"
    assert (
        samples("run", "--network=none", "web", "test", "-e", "/usr/lib/python3/dist-packages/pip").code == 1
    )
    cached = samples(SAMPLES / "web-python").ok()
    assert cached.executed == 0
