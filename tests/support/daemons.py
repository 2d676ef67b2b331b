"""A docker daemon of the tests' own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def dockerd(tools: dict[str, str], folder: Path) -> Iterator[list[str]]:
    """A docker daemon without networks; the client's command line."""
    socket = f"unix://{folder}/docker.sock"
    command = [tools["dockerd"], f"--data-root={folder}/data", f"--exec-root={folder}/exec", "-H", socket,
               f"--pidfile={folder}/docker.pid", "--bridge=none", "--iptables=false", "--ip6tables=false"]  # fmt: skip
    with (folder / "docker.log").open("wb") as log:
        daemon = subprocess.Popen(command, stdout=log, stderr=log)
    client = [tools["docker"], "-H", socket]
    try:
        end = time.monotonic() + 60
        while subprocess.run([*client, "info"], capture_output=True, check=False).returncode:
            assert time.monotonic() < end and daemon.poll() is None, (folder / "docker.log").read_text()[
                -3000:
            ]
            time.sleep(0.2)
        yield client
    finally:
        daemon.terminate()
        daemon.wait(timeout=60)
