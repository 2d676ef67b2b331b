"""ADD of git repositories, from servers on loopback (T29, T40, SRC-12)."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import PYBUILD, Pybuild
from repositories import git, guarded, publish, served
from rootless import command
from servers import Misbehaving

pytestmark = pytest.mark.e2e


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    with served(tmp_path) as made:
        yield made


def test_git(pybuild: Pybuild, repository: tuple[Path, str]) -> None:
    """T29: files as git means them, without its folder; history shows the URL."""
    _, url = repository
    image = pybuild.build(f"FROM scratch\nADD {url} /src\n")
    assert image.tree() == {
        "src": "DIR",
        "src/a": "1",
        "src/link": "-> a",
        "src/out": "-> /etc",
        "src/run.sh": "#!/bin/sh\n",
        "src/sub": "DIR",
        "src/sub/dir": "DIR",
        "src/sub/dir/b": "2",
    }
    modes = {name: entry.mode for name, (entry, _) in image.root().items() if not entry.issym()}
    assert modes["src/a"] == 0o644 and modes["src/run.sh"] == 0o755 and modes["src/sub"] == 0o755
    assert image.history[0]["created_by"] == f"ADD {url} /src # buildkit"


def test_git_forms(pybuild: Pybuild, repository: tuple[Path, str]) -> None:
    work, url = repository
    first = git(work, "rev-parse", "HEAD")
    git(work, "tag", "-a", "-m", "x", "v1")
    git(work, "checkout", "-q", "-b", "other")
    (work / "a").write_text("other")
    second = publish(work, work.parent / "served", "second")
    git(work, "checkout", "-q", "main")
    lines = {
        f"{url}#v1": "1",
        f"{url}?tag=v1": "1",
        f"{url}?tag=v1&checksum={first[:12]}": "1",
        f"{url}#other": "other",
        f"{url}?branch=other": "other",
        f"{url}?ref=refs/heads/other&mtime=commit": "other",
        f"{url}#{first}": "1",
        f"{url}?commit={second}": "other",
    }
    git(work.parent / "served/r.git", "update-ref", "refs/pull/7/head", second)
    git(work.parent / "served/r.git", "update-server-info")
    lines |= {
        f"{url}#tags/v1": "1",
        f"{url}#heads/other": "other",
        f"{url}?ref=tags/v1": "1",
        f"{url}#HEAD": "other",
    }
    lines |= {f"{url}#pull/7/head": "other", f"{url}?ref=refs/pull/7/head": "other"}
    text = "".join(f"ADD {source} /{number}/\n" for number, source in enumerate(lines))
    image = pybuild.build(f"FROM scratch\n{text}ADD {url}#v1:sub/dir /s/\nADD {url}?subdir=sub /t\n")
    tree = image.tree()
    assert [tree[f"{number}/a"] for number in range(len(lines))] == list(lines.values())
    assert tree["s/b"] == "2" and tree["t/dir/b"] == "2" and "s/a" not in tree
    assert image.root()["5/a"][0].mtime == 1_000_000_000


def test_git_keeps_its_folder(pybuild: Pybuild, repository: tuple[Path, str]) -> None:
    _, url = repository
    with_user = url.replace("http://", "http://me:hunter2@")
    image = pybuild.build(f"FROM scratch\nADD --keep-git-dir=true {with_user} /src\n")
    config = image.root()["src/.git/config"][1].decode()
    assert f"url = {url}\n" in config and "hunter2" not in config


KEPT = {"": ["main"], "#main": ["main"], "#v1": ["v1", "describe"], "#light": ["light"], "#tags/v1": ["v1", "describe"],
        "#pull/7/head": ["refs/pull/7/head"], "#HASH": []}  # fmt: skip


def test_kept_folder_has_what_was_asked_for(
    pybuild: Pybuild, fresh: Pybuild, repository: tuple[Path, str]
) -> None:
    """Its one ref, an annotated tag as such; nothing of this machine, so that it is the same everywhere."""
    work, url = repository
    (work / "a").write_text("2")
    git(work, "commit", "-q", "-a", "-m", "second")
    git(work, "tag", "-a", "-m", "x", "v1")
    git(work, "tag", "light")
    git(work, "push", "-q", str(work.parent / "served/r.git"), "main", "--tags")
    first = git(work, "rev-parse", "HEAD")
    git(work.parent / "served/r.git", "update-ref", "refs/pull/7/head", first)
    git(work.parent / "served/r.git", "update-server-info")
    lines = [f"ADD --keep-git-dir {url}{ref} /{n}/\n" for n, ref in enumerate(KEPT)]
    text = "FROM scratch\n" + "".join(lines).replace("HASH", first)
    image = pybuild.build(text)
    folder = work.parent / "unpacked"
    for layer in image.layers:
        with tarfile.open(fileobj=io.BytesIO(layer.data)) as tar:
            tar.extractall(folder, filter="fully_trusted")
    for n, (_, names) in enumerate(KEPT.items()):
        here = folder / str(n)
        refs = [name.removeprefix("refs/heads/").removeprefix("refs/tags/")
                for name in git(here, "for-each-ref", "--format=%(refname)").split()]  # fmt: skip
        assert refs == names[:1] and git(here, "status", "--porcelain") == ""
        assert all(git(here, "rev-parse", f"{name}^{{commit}}") == first for name in refs)
        if "describe" in names:
            assert git(here, "describe") == "v1"
        git_dir = {path.name for path in (here / ".git").iterdir()}
        assert git_dir <= {"HEAD", "config", "index", "objects", "refs", "shallow", "packed-refs"}
    contents = [
        {name: data for name, (_, data) in made.root().items() if ".git/" in name}
        for made in (image, fresh.build(text))
    ]
    assert contents[0] == contents[1]


def test_git_is_asked_and_hits(pybuild: Pybuild, repository: tuple[Path, str]) -> None:
    work, url = repository
    context = pybuild.context(f"FROM busybox\nADD {url} /src\nRUN cat /src/a > /x\n")
    pybuild("-t", "a", "--network=none", context).ok()
    assert pybuild("-t", "a", "--network=none", context).ok().cached == 3
    (work / "a").write_text("new")
    publish(work, work.parent / "served", "second")
    pybuild("-t", "a", "--network=none", context).ok()
    assert pybuild("run", "a", "cat", "/x").ok().out == "new"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("#nope", "does not contain ref nope"),
        ("#:../..", "invalid subdir"),
        ("#:out", "invalid subdir"),
        ("#:a", "invalid subdir"),
        ("#:none", "invalid subdir"),
        ("?checksum=" + "0" * 40, "0000"),
        ("?branch=main&checksum=0000", "expected checksum to match 0000, got"),
    ],
)
def test_git_refused(pybuild: Pybuild, repository: tuple[Path, str], more: str, said: str) -> None:
    """T40, SRC-12"""
    assert said in pybuild.refuse(f"FROM scratch\nADD {repository[1]}{more} /src\n")


def test_git_credentials_of_a_url(pybuild: Pybuild, repository: tuple[Path, str], tmp_path: Path) -> None:
    """SRC-15: they reach the server that wants them, and no process shows them among its arguments."""
    log = tmp_path / "log"
    trace = ["strace", "-f", "-qq", "-s", "4000", "-v", "-e", "trace=execve", "-o", str(log)]
    _, url = repository
    with guarded(url, "me", "hunter2") as (guarded_url, accepted):
        context = pybuild.context(f"FROM scratch\nADD {guarded_url.replace('://', '://me:hunter2@')} /src\n")
        words, env = command(pybuild, "-t", "a", context)
        done = subprocess.run([*trace, *words], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert accepted
        assert "403" in pybuild.refuse(f"FROM scratch\nADD {guarded_url.replace('://', '://me:x@')} /src\n")
    arguments = re.findall(r"execve\([^[]*(\[.*?\]), \[", log.read_text())
    assert any("ls-remote" in words for words in arguments) and "hunter2" not in "".join(arguments)


def test_git_server_that_floods(pybuild: Pybuild, web: Misbehaving) -> None:
    refs = b"".join(b"%040x\trefs/heads/%d/HEAD\n" % (n + 1, n) for n in range(300_000))
    web.serve("/r.git/info/refs", refs, "text/plain")
    assert "more than 16 MiB" in pybuild.refuse(f"FROM scratch\nADD http://{web.host}/r.git /src\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("form", ["context", "ADD"])
def test_git_ends_with_the_build(pybuild: Pybuild, form: str, number: signal.Signals) -> None:
    """However the build ends, git and what it has started, which wait for a silent server, end too."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"git://127.0.0.1:{silent.getsockname()[1]}/r.git"
        context = url if form == "context" else pybuild.context(f"FROM scratch\nADD {url} /x\n")
        with subprocess.Popen(
            [PYBUILD, context], env=pybuild.environment(), stderr=subprocess.DEVNULL
        ) as build:
            silent.settimeout(20)
            called = silent.accept()[0]
            assert _programs_with(url)
            build.send_signal(number)
            assert build.wait(5) == (-9 if number == signal.SIGKILL else 130)
        end = time.monotonic() + 2
        while _programs_with(url) and time.monotonic() < end:
            time.sleep(0.02)
        assert _programs_with(url) == []
        called.close()


def _programs_with(url: str) -> list[str]:
    """The command lines of programs that speak of *url*, but for pybuild's own."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if url.encode() in b" ".join(words) and b"pybuild" not in b" ".join(words[:2]):
                found.append(b" ".join(words).decode())
    return found


def test_git_runs_nothing_of_the_machine(pybuild: Pybuild, repository: tuple[Path, str]) -> None:
    """SRC-13: neither configuration nor hooks nor filters of who builds."""
    work, url = repository
    (work / ".gitattributes").write_text("* filter=evil\n")
    publish(work, work.parent / "served", "filter")
    (pybuild.work / ".gitconfig").write_text('[filter "evil"]\n\tsmudge = touch /dev/shm/smudged\n')
    context = pybuild.context(f"FROM scratch\nADD {url} /src\n")
    pybuild(context, env={"HOME": str(pybuild.work), "GIT_DIR": "/nowhere"}).ok()
    assert not Path("/dev/shm/smudged").exists()
