"""A git repository behind a plain web server."""

from __future__ import annotations

import http.server
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path


@contextmanager
def served(folder: Path) -> Iterator[tuple[Path, str]]:
    """A repository that a plain web server serves; the folder to commit in, and its URL."""
    work, public = folder / "work", folder / "served"
    work.mkdir()
    public.mkdir()
    git(work, "init", "-q", "-b", "main")
    (work / "a").write_text("1")
    (work / "run.sh").write_text("#!/bin/sh\n")
    (work / "run.sh").chmod(0o775)
    (work / "link").symlink_to("a")
    (work / "sub/dir").mkdir(parents=True)
    (work / "sub/dir/b").write_text("2")
    (work / "out").symlink_to("/etc")
    publish(work, public, "first")

    handler = partial(_Quiet, directory=str(public))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield work, f"http://127.0.0.1:{server.server_address[1]}/r.git"
    server.shutdown()
    server.server_close()
    thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def git(folder: Path, *args: str) -> str:
    environment = {
        "PATH": os.environ["PATH"],
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_AUTHOR_DATE": "1000000000 +0000",
        "GIT_COMMITTER_DATE": "1000000000 +0000",
        **{f"GIT_{who}_{what}": "x@x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    return subprocess.check_output(["git", *args], cwd=folder, env=environment, text=True).strip()


def publish(work: Path, served: Path, message: str) -> str:
    git(work, "add", "-A")
    git(work, "commit", "-q", "-m", message)
    subprocess.run(["rm", "-rf", served / "r.git"], check=True)
    git(served, "clone", "-q", "--bare", str(work), "r.git")
    git(served / "r.git", "update-server-info")
    return git(work, "rev-parse", "HEAD")
