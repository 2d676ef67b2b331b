"""A git repository behind a plain web server."""

from __future__ import annotations

import base64
import http.server
import os
import subprocess
import threading
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from servers import fetch, send


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


@contextmanager
def guarded(url: str, user: str, password: str) -> Iterator[tuple[str, list[str]]]:
    """A server that shows the repository at *url* to one user only; its URL, and whom it let in."""
    wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    folder, accepted = url.rpartition("/")[0], list[str]()

    class Handler(_Quiet):
        def do_GET(self) -> None:
            given = self.headers.get("Authorization")
            if given != wanted:
                self.send_response(403 if given else 401)
                self.send_header("WWW-Authenticate", 'Basic realm="x"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            accepted.append(self.path)
            try:
                send(self, fetch(folder + self.path))
            except urllib.error.HTTPError as error:
                send(self, b"", status=error.code)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/{url.rpartition('/')[2]}", accepted
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
